/* Preloaded into the ranks by support/crash.rs: counts the calls that change something below a directory, or
 * make it durable, and kills the process just before one of them.
 *
 * PCOPY_CRASH_DIR: absolute, without symbolic links. Syncs of the directory above it count too.
 * PCOPY_CRASH_LOG: a file; each call becomes a line "NUMBER NAME PATH", of renames and links "NUMBER NAME PATH -> PATH".
 * PCOPY_CRASH_AT: the number of the call before which the process is killed; 0 or none for never.
 * PCOPY_CRASH_RANK: which rank counts; none for every process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "real.h"

static const char *dir;
static int log_fd = -1;
static long crash_at;
static atomic_long count;

static int real_open(const char *path, int flags, mode_t mode) {
    REAL(int, "open", const char *, int, ...);
    return real(path, flags, mode);
}

static ssize_t real_write(int fd, const void *from, size_t len) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return real(fd, from, len);
}

static int is_rank(const char *wanted) {
    const char *names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"};
    for (int i = 0; i < 3; i++)
        if (getenv(names[i]))
            return !strcmp(getenv(names[i]), wanted);
    return !strcmp(wanted, "0"); /* started without a launcher */
}

__attribute__((constructor)) static void begin(void) {
    const char *at = getenv("PCOPY_CRASH_AT"), *log = getenv("PCOPY_CRASH_LOG");
    const char *rank = getenv("PCOPY_CRASH_RANK");
    if (rank && !is_rank(rank))
        return;
    dir = getenv("PCOPY_CRASH_DIR");
    crash_at = at ? atol(at) : 0;
    if (dir && log)
        log_fd = real_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int below(const char *path) {
    size_t len = strlen(dir);
    return !strncmp(path, dir, len) && (path[len] == '/' || !path[len]);
}

/* Whether a path is that of the directory above. */
static int above(const char *path) {
    const char *slash = strrchr(dir, '/');
    return (size_t)(slash - dir) == strlen(path) && !strncmp(path, dir, strlen(path));
}

/* The path of a descriptor; empty where it has none. */
static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, PATH_MAX - 1);
    path[len > 0 ? len : 0] = 0;
    return path;
}

/* The path of a name in a directory. */
static const char *path_at(int at, const char *name, char *path) {
    if (*name == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return path;
    }
    if (at == AT_FDCWD) {
        if (!getcwd(path, PATH_MAX))
            return "";
    } else {
        path_of(at, path);
    }
    size_t len = strlen(path);
    snprintf(path + len, PATH_MAX - len, "/%s", name);
    return path;
}

static void step(const char *call, const char *path, const char *to) {
    long number = atomic_fetch_add(&count, 1) + 1;
    if (log_fd >= 0) {
        char line[2 * PATH_MAX + 64];
        int len = snprintf(line, sizeof line, "%ld %s %s%s%s\n", number, call, path, to ? " -> " : "", to ? to : "");
        if (real_write(log_fd, line, (size_t)len) < 0)
            abort();
    }
    if (number == crash_at) {
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
}

static void changes_fd(const char *call, int fd) {
    char path[PATH_MAX];
    if (dir && below(path_of(fd, path)))
        step(call, path, NULL);
}

static void syncs_fd(const char *call, int fd) {
    char path[PATH_MAX];
    if (dir && (below(path_of(fd, path)) || above(path)))
        step(call, path, NULL);
}

static void changes_at(const char *call, int at, const char *name) {
    char path[PATH_MAX];
    if (dir && below(path_at(at, name, path)))
        step(call, path, NULL);
}

static void changes_two(const char *call, int from_at, const char *from, int to_at, const char *to) {
    char from_path[PATH_MAX], to_path[PATH_MAX];
    if (dir && (below(path_at(from_at, from, from_path)) | below(path_at(to_at, to, to_path))))
        step(call, from_path, to_path);
}

#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                  \
        REAL(int, #name, const char *, int, ...);                                                 \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = va_arg(rest, mode_t);                                                       \
        va_end(rest);                                                                             \
        if (flags & (O_CREAT | O_TRUNC))                                                          \
            changes_at("open", AT_FDCWD, path);                                                   \
        return real(path, flags, mode);                                                           \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                              \
    int name(int at, const char *path, int flags, ...) {                                          \
        REAL(int, #name, int, const char *, int, ...);                                            \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = va_arg(rest, mode_t);                                                       \
        va_end(rest);                                                                             \
        if (flags & (O_CREAT | O_TRUNC))                                                          \
            changes_at("open", at, path);                                                         \
        return real(at, path, flags, mode);                                                       \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *from, size_t len) {
    changes_fd("write", fd);
    return real_write(fd, from, len);
}

#define PWRITE(name)                                                                              \
    ssize_t name(int fd, const void *from, size_t len, off_t at) {                                \
        REAL(ssize_t, #name, int, const void *, size_t, off_t);                                   \
        changes_fd("write", fd);                                                                  \
        return real(fd, from, len, at);                                                           \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    changes_fd("write", fd);
    return real(fd, parts, n);
}

#define PWRITEV(name)                                                                             \
    ssize_t name(int fd, const struct iovec *parts, int n, off_t at) {                            \
        REAL(ssize_t, #name, int, const struct iovec *, int, off_t);                              \
        changes_fd("write", fd);                                                                  \
        return real(fd, parts, n, at);                                                            \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

#define FTRUNCATE(name)                                                                           \
    int name(int fd, off_t len) {                                                                 \
        REAL(int, #name, int, off_t);                                                             \
        changes_fd("ftruncate", fd);                                                              \
        return real(fd, len);                                                                     \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

#define SYNC(name)                                                                                \
    int name(int fd) {                                                                            \
        REAL(int, #name, int);                                                                    \
        syncs_fd(#name, fd);                                                                      \
        return real(fd);                                                                          \
    }
SYNC(fsync)
SYNC(fdatasync)
SYNC(syncfs)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    changes_two("rename", AT_FDCWD, from, AT_FDCWD, to);
    return real(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    changes_two("rename", from_at, from, to_at, to);
    return real(from_at, from, to_at, to);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    changes_two("rename", from_at, from, to_at, to);
    return real(from_at, from, to_at, to, flags);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    changes_two("link", AT_FDCWD, from, AT_FDCWD, to);
    return real(from, to);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    changes_two("link", from_at, from, to_at, to);
    return real(from_at, from, to_at, to, flags);
}

int symlinkat(const char *target, int at, const char *path) {
    REAL(int, "symlinkat", const char *, int, const char *);
    changes_at("symlink", at, path);
    return real(target, at, path);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    changes_at("unlink", AT_FDCWD, path);
    return real(path);
}

int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    changes_at("unlink", AT_FDCWD, path);
    return real(path);
}

int unlinkat(int at, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    changes_at("unlink", at, path);
    return real(at, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    changes_at("mkdir", AT_FDCWD, path);
    return real(path, mode);
}

int mkdirat(int at, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    changes_at("mkdir", at, path);
    return real(at, path, mode);
}
