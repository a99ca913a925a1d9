/* meter DIRECTORY COMMAND...: runs the command and writes down what it took, in DIRECTORY/RANK
 * under MPI, otherwise in DIRECTORY/all: its process id at once; at its end its peak memory
 * (KiB), and its user and system time (us), all with the processes that it has waited for.
 *
 * A process inherits the peak memory of the one that started it: this one is small, a Python is not. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static long long us(struct timeval t) { return t.tv_sec * 1000000LL + t.tv_usec; }

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank) rank = getenv("PMI_RANK");
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", argv[1], rank ? rank : "all");
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) { perror(path); return 126; }
    pid_t child = fork();
    if (child < 0) { perror("fork"); return 126; }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* what a launcher kills is this process */
        execvp(argv[2], argv + 2);
        fprintf(stderr, "%s: %s\n", argv[2], strerror(errno));
        _exit(127);
    }
    dprintf(fd, "%d\n", (int)child);
    int status;
    struct rusage used;
    while (wait4(child, &status, 0, &used) < 0)
        if (errno != EINTR) { perror("wait4"); return 126; }
    dprintf(fd, "%ld %lld %lld\n", used.ru_maxrss, us(used.ru_utime), us(used.ru_stime));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
