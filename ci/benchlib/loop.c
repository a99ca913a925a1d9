/* loop SRC DST THREADS: the least that a copy of a tree of small files can do. For each file openat
 * by its directory's descriptor, fstat, creat with the mode, read, write, futimens, two closes; no
 * more checks than it takes to notice that something went wrong. Regular files and directories only. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char **dirs; /* relative to the roots; each comes after its parent */
static size_t ndirs;
static atomic_size_t next_dir;
static int from_root, to_root;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void add_dir(const char *path) {
    if ((ndirs & (ndirs - 1)) == 0) dirs = realloc(dirs, (ndirs ? 2 * ndirs : 1) * sizeof *dirs);
    if (!dirs || !(dirs[ndirs++] = strdup(path))) fail("memory");
}

static DIR *list(int root, const char *path) {
    DIR *d = fdopendir(openat(root, path, O_RDONLY | O_DIRECTORY));
    if (!d) fail(path);
    return d;
}

static void make_dirs(void) {
    add_dir(".");
    for (size_t i = 0; i < ndirs; i++) {
        if (i && mkdirat(to_root, dirs[i], 0755)) fail(dirs[i]);
        DIR *d = list(from_root, dirs[i]);
        for (struct dirent *e; (e = readdir(d));)
            if (e->d_type == DT_DIR && strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) {
                char path[4096];
                snprintf(path, sizeof path, "%s/%s", dirs[i], e->d_name);
                add_dir(path);
            }
        closedir(d);
    }
}

static void copy_file(int from_dir, int to_dir, const char *name, char *buffer, size_t room) {
    struct stat st;
    int from = openat(from_dir, name, O_RDONLY | O_NOFOLLOW);
    if (from < 0 || fstat(from, &st)) fail(name);
    int to = openat(to_dir, name, O_WRONLY | O_CREAT | O_EXCL, st.st_mode & 07777);
    if (to < 0) fail(name);
    for (off_t left = st.st_size; left > 0;) {
        ssize_t n = read(from, buffer, (size_t)left < room ? (size_t)left : room);
        if (n <= 0 || write(to, buffer, n) != n) fail(name);
        left -= n;
    }
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    if (futimens(to, times) || close(to) || close(from)) fail(name);
}

static void *copy_dirs(void *unused) {
    (void)unused;
    size_t room = 1 << 20, i;
    char *buffer = malloc(room);
    if (!buffer) fail("memory");
    while ((i = atomic_fetch_add(&next_dir, 1)) < ndirs) {
        DIR *d = list(from_root, dirs[i]);
        int to = openat(to_root, dirs[i], O_RDONLY | O_DIRECTORY);
        if (to < 0) fail(dirs[i]);
        for (struct dirent *e; (e = readdir(d));)
            if (e->d_type == DT_REG) copy_file(dirfd(d), to, e->d_name, buffer, room);
        close(to);
        closedir(d);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    umask(0);
    from_root = open(argv[1], O_RDONLY | O_DIRECTORY);
    if (from_root < 0) fail(argv[1]);
    if (mkdir(argv[2], 0755) || (to_root = open(argv[2], O_RDONLY | O_DIRECTORY)) < 0) fail(argv[2]);
    make_dirs();
    size_t n = strtoul(argv[3], NULL, 10);
    pthread_t threads[n];
    for (size_t i = 0; i < n; i++)
        if (pthread_create(&threads[i], NULL, copy_dirs, NULL)) fail("pthread_create");
    for (size_t i = 0; i < n; i++) pthread_join(threads[i], NULL);
    return 0;
}
