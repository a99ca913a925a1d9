/* Preloaded into the ranks by panics.rs: answers that a C library never gives, so that an assertion
 * of the program fails where no test could make it fail otherwise.
 *
 * PCOPY_LIAR_BELOW: an absolute directory, without symbolic links; elsewhere the truth is told.
 * PCOPY_LIAR_TELLS: "name": a subdirectory has a name with a slash in it.
 *                   "length": the list of a file's attributes is longer than the room for it; told
 *                   by rank 1 alone; the others' files take a while, so that it gets some.
 *                   "sync": a file system below the directory cannot be made durable. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <unistd.h>

static int tells(const char *what, int fd) {
    const char *lie = getenv("PCOPY_LIAR_TELLS"), *below = getenv("PCOPY_LIAR_BELOW");
    char link[64], path[PATH_MAX];
    if (!lie || !below || strcmp(lie, what))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len <= 0)
        return 0;
    path[len] = 0;
    size_t prefix = strlen(below);
    return !strncmp(path, below, prefix) && (path[prefix] == '/' || !path[prefix]);
}

static int is_rank_1(void) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank)
        rank = getenv("PMI_RANK");
    return rank && !strcmp(rank, "1");
}

struct dirent64 *readdir64(DIR *dir) {
    static struct dirent64 *(*real)(DIR *);
    static __thread struct dirent64 lie;
    if (!real)
        real = (struct dirent64 * (*)(DIR *)) dlsym(RTLD_NEXT, "readdir64");
    struct dirent64 *entry = real(dir);
    if (!entry || entry->d_type != DT_DIR || entry->d_name[0] == '.' || !tells("name", dirfd(dir)))
        return entry;
    lie = (struct dirent64){.d_ino = entry->d_ino, .d_type = DT_DIR, .d_name = "up/../away"};
    return &lie;
}

int syncfs(int fd) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "syncfs");
    if (!tells("sync", fd))
        return real(fd);
    errno = EIO;
    return -1;
}

ssize_t flistxattr(int fd, char *list, size_t size) {
    static ssize_t (*real)(int, char *, size_t);
    if (!real)
        real = (ssize_t(*)(int, char *, size_t))dlsym(RTLD_NEXT, "flistxattr");
    if (!tells("length", fd))
        return real(fd, list, size);
    if (is_rank_1())
        return (ssize_t)size + 1;
    usleep(20000);
    return real(fd, list, size);
}
