/* A stand-in for DAOS's interception library, libioil 2.6: preloaded, it serves reads and writes of files on a dfuse (the
 * one of support/fuse/dfuse.rs) from the store itself, past FUSE. As the real one
 *
 * - it takes the symbols that stand below and no others: not fstat, fallocate, copy_file_range, dup3, close_range, closedir,
 *   readdir, rename, the attributes' and the times';
 * - it asks three ioctls of every descriptor that it sees opened, and registers those on a dfuse, directories too, but none
 *   that was opened with O_APPEND or O_PATH;
 * - a descriptor that is closed by a call which it does not see (closedir's own) stays registered: the next file with that
 *   number is taken for what the number was before, and a directory's answers EINVAL; but for read, after whose error the
 *   number is given back to the kernel;
 * - F_SETFL, mmap, SEEK_DATA and SEEK_HOLE give a descriptor back to the kernel;
 * - lseek moves a position of its own, not the kernel's.
 *
 * D_IL_REPORT=0 prints at the end how many calls were taken. PCOPY_IOIL_OUT: a directory; each process writes its counters
 * to a file named by its pid: opens, reads, writes and their bytes, the descriptors that were not seen to be closed (the
 * number came back while it was registered), and the calls on such. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "real.h"

enum { WHOSE = 1, SIZE = 2, OBJECT = 3, TYPE = 0xA3, MAX_FDS = 65536 };

struct object {
    int fd; /* of the store; -1 for a directory */
    int users;
    int given_back;
    off_t at;
};

static struct object *table[MAX_FDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_long opens, reads, bytes_read, writes, bytes_written, unseen_closes, misdirected, given_back;

__attribute__((destructor)) static void end(void) {
    const char *out = getenv("PCOPY_IOIL_OUT"), *report = getenv("D_IL_REPORT");
    char path[PATH_MAX];
    if (report && opens)
        fprintf(stderr, "[libioil] Performed %ld reads and %ld writes from %ld files\n", reads, writes, opens);
    if (!out)
        return;
    snprintf(path, sizeof path, "%s/%d", out, (int)getpid());
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    fprintf(file, "opens %ld\nreads %ld\nbytes_read %ld\n", opens, reads, bytes_read);
    fprintf(file, "writes %ld\nbytes_written %ld\n", writes, bytes_written);
    fprintf(file, "unseen_closes %ld\nmisdirected %ld\ngiven_back %ld\n", unseen_closes, misdirected, given_back);
    fclose(file);
}

static int is_number(int fd) { return fd >= 0 && fd < MAX_FDS; }

static void put(struct object *object) {
    if (object && !--object->users) {
        REAL(int, "close", int);
        if (object->fd >= 0)
            real(object->fd);
        free(object);
    }
}

/* What this number is registered as; to be put back. */
static struct object *get(int fd) {
    if (!is_number(fd))
        return NULL;
    pthread_mutex_lock(&lock);
    struct object *object = table[fd];
    if (object && object->given_back)
        object = NULL;
    if (object)
        object->users++;
    pthread_mutex_unlock(&lock);
    return object;
}

static void done(struct object *object) {
    pthread_mutex_lock(&lock);
    put(object);
    pthread_mutex_unlock(&lock);
}

static void set(int fd, struct object *object) {
    pthread_mutex_lock(&lock);
    struct object *before = table[fd];
    table[fd] = object;
    put(before);
    pthread_mutex_unlock(&lock);
}

/* Opens a file of the store, under a number that no other call meets. */
static int store_open(const char *path, int flags) {
    REAL(int, "open", const char *, int, ...);
    static int (*real_fcntl)(int, int, ...);
    static int (*real_close)(int);
    struct rlimit limit;
    int low = real(path, flags | O_CLOEXEC);
    if (!real_fcntl) {
        real_fcntl = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl");
        real_close = (int (*)(int))dlsym(RTLD_NEXT, "close");
    }
    if (low < 0 || getrlimit(RLIMIT_NOFILE, &limit))
        return -1;
    int own = real_fcntl(low, F_DUPFD_CLOEXEC, (int)(limit.rlim_cur < MAX_FDS ? limit.rlim_cur : MAX_FDS) / 2);
    real_close(low);
    return own;
}

/* A new descriptor: asks whether it is on a dfuse, and registers it. */
static int opened(int fd, int flags) {
    uint64_t whose, size;
    char name[16 << 10];
    struct stat there;
    int saved = errno;
    if (!is_number(fd))
        return fd;
    pthread_mutex_lock(&lock);
    unseen_closes += table[fd] != NULL;
    pthread_mutex_unlock(&lock);
    if (flags & (O_PATH | O_APPEND))
        return fd;
    if (ioctl(fd, _IOC(_IOC_READ, TYPE, WHOSE, sizeof whose), &whose) ||
        ioctl(fd, _IOC(_IOC_READ, TYPE, SIZE, sizeof size), &size) || size > sizeof name ||
        ioctl(fd, _IOC(_IOC_READ, TYPE, OBJECT, size), name)) {
        errno = saved; /* what the number was registered as stays */
        return fd;
    }
    struct object *object = calloc(1, sizeof *object);
    *object = (struct object){.fd = -1, .users = 1};
    if (!S_ISDIR(whose)) {
        uint64_t inode;
        memcpy(&inode, name, sizeof inode);
        int own = store_open(name + sizeof inode, flags & O_ACCMODE);
        REAL(int, "close", int);
        if (own < 0 || fstat(own, &there) || there.st_ino != inode) {
            if (own >= 0)
                real(own);
            free(object);
            errno = saved;
            return fd;
        }
        object->fd = own;
    }
    opens++;
    set(fd, object);
    errno = saved;
    return fd;
}

#define MODE_OF(flags)                                                                            \
    mode_t mode = 0;                                                                              \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                        \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode = va_arg(rest, mode_t);                                                              \
        va_end(rest);                                                                             \
    }

#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...) {                                                  \
        REAL(int, #name, const char *, int, ...);                                                 \
        MODE_OF(flags)                                                                            \
        return opened(real(path, flags, mode), flags);                                            \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                              \
    int name(int dir, const char *path, int flags, ...) {                                         \
        REAL(int, #name, int, const char *, int, ...);                                            \
        MODE_OF(flags)                                                                            \
        return opened(real(dir, path, flags, mode), flags);                                       \
    }
OPENAT(openat)
OPENAT(openat64)

#define OPEN_2(name)                                                                              \
    int name(const char *path, int flags) {                                                       \
        REAL(int, #name, const char *, int);                                                      \
        return opened(real(path, flags), flags);                                                  \
    }
OPEN_2(__open_2)
OPEN_2(__open64_2)

#define CREAT(name)                                                                               \
    int name(const char *path, mode_t mode) {                                                     \
        REAL(int, #name, const char *, mode_t);                                                   \
        return opened(real(path, mode), O_WRONLY | O_CREAT | O_TRUNC);                            \
    }
CREAT(creat)
CREAT(creat64)

#define MKSTEMP(name)                                                                             \
    int name(char *template) {                                                                    \
        REAL(int, #name, char *);                                                                 \
        return opened(real(template), O_RDWR);                                                    \
    }
MKSTEMP(mkstemp)
MKSTEMP(mkstemp64)

int close(int fd) {
    REAL(int, "close", int);
    if (is_number(fd))
        set(fd, NULL);
    return real(fd);
}

int fclose(FILE *file) {
    REAL(int, "fclose", FILE *);
    int fd = fileno(file);
    if (is_number(fd))
        set(fd, NULL);
    return real(file);
}

static void give_back(struct object *object) {
    given_back++;
    object->given_back = 1;
    done(object);
}

/* A call on a directory's number, or on what has it by now. */
static ssize_t wrong(struct object *object) {
    misdirected++;
    done(object);
    errno = EINVAL;
    return -1;
}

static ssize_t took(struct object *object, atomic_long *calls, atomic_long *bytes, ssize_t len) {
    int saved = errno;
    ++*calls;
    if (len > 0)
        *bytes += len;
    done(object);
    errno = saved;
    return len;
}

static ssize_t moved(struct object *object, atomic_long *calls, atomic_long *bytes, ssize_t len) {
    if (len > 0)
        object->at += len;
    return took(object, calls, bytes, len);
}

ssize_t read(int fd, void *to, size_t len) {
    REAL(ssize_t, "read", int, void *, size_t);
    static ssize_t (*at)(int, void *, size_t, off_t);
    struct object *object = get(fd);
    if (!object)
        return real(fd, to, len);
    if (object->fd < 0) {
        misdirected++;
        give_back(object);
        return real(fd, to, len);
    }
    if (!at)
        at = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
    return moved(object, &reads, &bytes_read, at(object->fd, to, len, object->at));
}

ssize_t write(int fd, const void *from, size_t len) {
    REAL(ssize_t, "write", int, const void *, size_t);
    static ssize_t (*at)(int, const void *, size_t, off_t);
    struct object *object = get(fd);
    if (!object)
        return real(fd, from, len);
    if (object->fd < 0)
        return wrong(object);
    if (!at)
        at = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    return moved(object, &writes, &bytes_written, at(object->fd, from, len, object->at));
}

#define AT(name, type, calls, bytes)                                                              \
    ssize_t name(int fd, type buffer, size_t len, off_t at) {                                     \
        REAL(ssize_t, #name, int, type, size_t, off_t);                                           \
        struct object *object = get(fd);                                                          \
        if (!object)                                                                              \
            return real(fd, buffer, len, at);                                                     \
        if (object->fd < 0)                                                                       \
            return wrong(object);                                                                 \
        return took(object, &calls, &bytes, real(object->fd, buffer, len, at));                   \
    }
AT(pread, void *, reads, bytes_read)
AT(pread64, void *, reads, bytes_read)
AT(pwrite, const void *, writes, bytes_written)
AT(pwrite64, const void *, writes, bytes_written)

#define VECTOR(name, name_at, calls, bytes)                                                       \
    ssize_t name(int fd, const struct iovec *parts, int n) {                                      \
        REAL(ssize_t, #name, int, const struct iovec *, int);                                     \
        static ssize_t (*at)(int, const struct iovec *, int, off_t);                              \
        struct object *object = get(fd);                                                          \
        if (!object)                                                                              \
            return real(fd, parts, n);                                                            \
        if (object->fd < 0)                                                                       \
            return wrong(object);                                                                 \
        if (!at)                                                                                  \
            at = (ssize_t(*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, name_at);    \
        return moved(object, &calls, &bytes, at(object->fd, parts, n, object->at));               \
    }
VECTOR(readv, "preadv64", reads, bytes_read)
VECTOR(writev, "pwritev64", writes, bytes_written)

#define VECTOR_AT(name, calls, bytes)                                                             \
    ssize_t name(int fd, const struct iovec *parts, int n, off_t at) {                            \
        REAL(ssize_t, #name, int, const struct iovec *, int, off_t);                              \
        struct object *object = get(fd);                                                          \
        if (!object)                                                                              \
            return real(fd, parts, n, at);                                                        \
        if (object->fd < 0)                                                                       \
            return wrong(object);                                                                 \
        return took(object, &calls, &bytes, real(object->fd, parts, n, at));                      \
    }
VECTOR_AT(preadv, reads, bytes_read)
VECTOR_AT(preadv64, reads, bytes_read)
VECTOR_AT(pwritev, writes, bytes_written)
VECTOR_AT(pwritev64, writes, bytes_written)

#define LSEEK(name)                                                                               \
    off_t name(int fd, off_t offset, int whence) {                                                \
        REAL(off_t, #name, int, off_t, int);                                                      \
        struct object *object = get(fd);                                                          \
        if (!object)                                                                              \
            return real(fd, offset, whence);                                                      \
        if (whence == SEEK_END && object->fd >= 0) {                                              \
            off_t at = real(object->fd, offset, whence);                                          \
            object->at = at < 0 ? object->at : at;                                                \
            done(object);                                                                         \
            return at;                                                                            \
        }                                                                                         \
        if (whence != SEEK_SET && whence != SEEK_CUR) {                                           \
            give_back(object);                                                                    \
            return real(fd, offset, whence);                                                      \
        }                                                                                         \
        off_t at = offset + (whence == SEEK_CUR ? object->at : 0);                                \
        if (at < 0)                                                                               \
            return wrong(object);                                                                 \
        object->at = at;                                                                          \
        done(object);                                                                             \
        return at;                                                                                \
    }
LSEEK(lseek)
LSEEK(lseek64)

#define FTRUNCATE(name)                                                                           \
    int name(int fd, off_t len) {                                                                 \
        REAL(int, #name, int, off_t);                                                             \
        struct object *object = get(fd);                                                          \
        if (!object)                                                                              \
            return real(fd, len);                                                                 \
        if (object->fd < 0)                                                                       \
            return wrong(object);                                                                 \
        int failed = real(object->fd, len), saved = errno;                                        \
        done(object);                                                                             \
        errno = saved;                                                                            \
        return failed;                                                                            \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

/* fsync and fdatasync are the kernel's; the real one takes them only to log them. */

static int duplicated(int from, int to) {
    struct object *object = get(from);
    if (object && is_number(to))
        set(to, object);
    else if (object)
        done(object);
    return to;
}

int dup(int fd) {
    REAL(int, "dup", int);
    return duplicated(fd, real(fd));
}

int dup2(int fd, int to) {
    REAL(int, "dup2", int, int);
    if (is_number(to) && to != fd)
        set(to, NULL);
    return duplicated(fd, real(fd, to));
}

#define FCNTL(name)                                                                               \
    int name(int fd, int command, ...) {                                                          \
        REAL(int, #name, int, int, ...);                                                          \
        va_list rest;                                                                             \
        va_start(rest, command);                                                                  \
        void *argument = va_arg(rest, void *);                                                    \
        va_end(rest);                                                                             \
        if (command == F_SETFL) {                                                                 \
            struct object *object = get(fd);                                                      \
            if (object)                                                                           \
                give_back(object);                                                                \
        }                                                                                         \
        int answer = real(fd, command, argument);                                                 \
        return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? duplicated(fd, answer) : answer; \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

#define MMAP(name)                                                                                \
    void *name(void *at, size_t len, int protection, int flags, int fd, off_t offset) {           \
        REAL(void *, #name, void *, size_t, int, int, int, off_t);                                \
        struct object *object = flags & MAP_ANONYMOUS ? NULL : get(fd);                           \
        if (object)                                                                               \
            give_back(object);                                                                    \
        return real(at, len, protection, flags, fd, offset);                                      \
    }
MMAP(mmap)
MMAP(mmap64)
