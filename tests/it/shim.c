/* Preloaded into the ranks by interception.rs: counts what passes through the C library's symbols,
 * which is what an interception library (libioil, libpil4dfs) would see.
 *
 * PCOPY_SHIM_SRC, PCOPY_SHIM_DST: absolute directories, without symbolic links.
 * PCOPY_SHIM_OUT: a directory; each process writes its counters to a file named by its pid. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "real.h"

enum place { ELSEWHERE, SOURCE, DESTINATION, STATE };

static const char *prefixes[2];
static atomic_long source_opens, source_bytes_read;
static atomic_long destination_opens, destination_bytes_written, state_bytes_written;
static atomic_long kernel_copies; /* copy_file_range, sendfile, splice that touch either tree */

__attribute__((constructor)) static void begin(void) {
    prefixes[0] = getenv("PCOPY_SHIM_SRC");
    prefixes[1] = getenv("PCOPY_SHIM_DST");
}

__attribute__((destructor)) static void end(void) {
    const char *out = getenv("PCOPY_SHIM_OUT");
    char path[PATH_MAX];
    if (!out)
        return;
    snprintf(path, sizeof path, "%s/%d", out, (int)getpid());
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    fprintf(file, "source_opens %ld\nsource_bytes_read %ld\n", source_opens, source_bytes_read);
    fprintf(file, "destination_opens %ld\n", destination_opens);
    fprintf(file, "destination_bytes_written %ld\n", destination_bytes_written);
    fprintf(file, "state_bytes_written %ld\n", state_bytes_written);
    fprintf(file, "kernel_copies %ld\n", kernel_copies);
    fclose(file);
}

static int below(const char *path, const char *prefix) {
    size_t len = prefix ? strlen(prefix) : 0;
    return len && !strncmp(path, prefix, len) && (path[len] == '/' || !path[len]);
}

static enum place place_of(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len <= 0)
        return ELSEWHERE;
    path[len] = 0;
    if (below(path, prefixes[0]))
        return SOURCE;
    if (!below(path, prefixes[1]))
        return ELSEWHERE;
    return strncmp(path + strlen(prefixes[1]), "/.pcopy/", 8) ? DESTINATION : STATE;
}

static int opened(int fd) {
    if (fd >= 0) {
        enum place place = place_of(fd);
        source_opens += place == SOURCE;
        destination_opens += place == DESTINATION;
    }
    return fd;
}

static ssize_t was_read(int fd, ssize_t len) {
    if (len > 0 && place_of(fd) == SOURCE)
        source_bytes_read += len;
    return len;
}

static ssize_t was_written(int fd, ssize_t len) {
    if (len > 0) {
        enum place place = place_of(fd);
        if (place == DESTINATION)
            destination_bytes_written += len;
        if (place == STATE)
            state_bytes_written += len;
    }
    return len;
}

static void kernel_copy(int a, int b) {
    if (place_of(a) != ELSEWHERE || place_of(b) != ELSEWHERE)
        kernel_copies++;
}

#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                  \
        REAL(int, #name, const char *, int, ...);                                                 \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = va_arg(rest, mode_t);                                                       \
        va_end(rest);                                                                             \
        return opened(real(path, flags, mode));                                                   \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                              \
    int name(int dir, const char *path, int flags, ...) {                                         \
        REAL(int, #name, int, const char *, int, ...);                                            \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = va_arg(rest, mode_t);                                                       \
        va_end(rest);                                                                             \
        return opened(real(dir, path, flags, mode));                                              \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int fd, void *to, size_t len) {
    REAL(ssize_t, "read", int, void *, size_t);
    return was_read(fd, real(fd, to, len));
}

ssize_t write(int fd, const void *from, size_t len) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return was_written(fd, real(fd, from, len));
}

#define PREAD(name)                                                                               \
    ssize_t name(int fd, void *to, size_t len, off_t at) {                                        \
        REAL(ssize_t, #name, int, void *, size_t, off_t);                                         \
        return was_read(fd, real(fd, to, len, at));                                               \
    }
PREAD(pread)
PREAD(pread64)

#define PWRITE(name)                                                                              \
    ssize_t name(int fd, const void *from, size_t len, off_t at) {                                \
        REAL(ssize_t, #name, int, const void *, size_t, off_t);                                   \
        return was_written(fd, real(fd, from, len, at));                                          \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define VECTOR(name, count)                                                                       \
    ssize_t name(int fd, const struct iovec *parts, int n) {                                      \
        REAL(ssize_t, #name, int, const struct iovec *, int);                                     \
        return count(fd, real(fd, parts, n));                                                     \
    }
VECTOR(readv, was_read)
VECTOR(writev, was_written)

#define VECTOR_AT(name, count)                                                                    \
    ssize_t name(int fd, const struct iovec *parts, int n, off_t at) {                            \
        REAL(ssize_t, #name, int, const struct iovec *, int, off_t);                              \
        return count(fd, real(fd, parts, n, at));                                                 \
    }
VECTOR_AT(preadv, was_read)
VECTOR_AT(preadv64, was_read)
VECTOR_AT(pwritev, was_written)
VECTOR_AT(pwritev64, was_written)

#define VECTOR_AT_WITH_FLAGS(name, count)                                                         \
    ssize_t name(int fd, const struct iovec *parts, int n, off_t at, int flags) {                 \
        REAL(ssize_t, #name, int, const struct iovec *, int, off_t, int);                         \
        return count(fd, real(fd, parts, n, at, flags));                                          \
    }
VECTOR_AT_WITH_FLAGS(preadv2, was_read)
VECTOR_AT_WITH_FLAGS(preadv64v2, was_read)
VECTOR_AT_WITH_FLAGS(pwritev2, was_written)
VECTOR_AT_WITH_FLAGS(pwritev64v2, was_written)

ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t len, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    kernel_copy(in, out);
    return real(in, in_at, out, out_at, len, flags);
}

#define SENDFILE(name)                                                                            \
    ssize_t name(int out, int in, off_t *at, size_t len) {                                        \
        REAL(ssize_t, #name, int, int, off_t *, size_t);                                          \
        kernel_copy(in, out);                                                                     \
        return real(out, in, at, len);                                                            \
    }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t splice(int in, off_t *in_at, int out, off_t *out_at, size_t len, unsigned flags) {
    REAL(ssize_t, "splice", int, off_t *, int, off_t *, size_t, unsigned);
    kernel_copy(in, out);
    return real(in, in_at, out, out_at, len, flags);
}
