/* Preloaded into the FUSE server: what it opens goes through the page cache, also where its client said
 * O_DIRECT. mergerfs hands the flag on, and then writes from where in the request the data happen to be;
 * a disk's file system refuses that with EINVAL. A client's direct request still reaches the server as it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>

typedef int open_fn(const char *, int, ...);

static int open_buffered(const char *path, int flags, mode_t mode) {
    open_fn *real = (open_fn *)dlsym(RTLD_NEXT, "open64");
    return real(path, flags & ~O_DIRECT, mode);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_buffered(path, flags, mode);
}

/* what a fortified program calls without a mode */
int __open64_2(const char *path, int flags) { return open_buffered(path, flags, 0); }
