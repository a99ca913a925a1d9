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
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
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

/* The entries of directories are read by getdents64(2), for which the program calls this function. */
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long given[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        given[i] = va_arg(list, long);
    va_end(list);
    long got = real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
    if (number != SYS_getdents64 || got <= 0 || !tells("name", (int)given[0]))
        return got;
    for (char *at = (char *)given[1], *end = at + got; at < end; at += ((struct dirent64 *)at)->d_reclen) {
        struct dirent64 *entry = (struct dirent64 *)at;
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            strcpy(entry->d_name, "a/b");
    }
    return got;
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
