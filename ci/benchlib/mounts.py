"""FUSE mounts that last for one run, each with a page cache of its own."""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

# mergerfs with one branch is a passthrough. Of the servers in Debian 12 it is the one that can do this: its
# own libfuse takes messages of 256 pages and a fixed number of threads, while bindfs there is built with
# libfuse 2 (128 KiB, threads without a limit). What it does was checked with strace: direct reads and
# writes are 1 MiB; buffered reads are as long as the readahead; buffered writes as long as each write(2), to 1 MiB.
PASSTHROUGH = "threads=4,fuse_msg_size=256,cache.files=auto-full,use_ino,minfreespace=0,moveonenospc=false"
READAHEAD_KIB = 1024
# For glibc's malloc: otherwise the server's buffers, one a request, are mapped and unmapped each time, and a third of
# all CPU time of a copy goes into their page faults. Servers made for speed keep their buffers.
KEEPS_BUFFERS = "GLIBC_TUNABLES=" + ":".join(
    f"glibc.malloc.{name}={size}"
    for name, size in [("mmap_threshold", 1 << 30), ("trim_threshold", 1 << 30), ("top_pad", 64 << 20)]
)


class MountFailed(Exception):
    pass


def why_not():
    """None, or why there can be no FUSE mount."""
    return None if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse: cannot be opened"


@contextmanager
def passthrough(runner, buffered, backing, mount_point):
    """The backing directory once more, by 1 MiB requests to 4 threads; preloads buffered.c."""
    env = ["env", f"LD_PRELOAD={buffered}", KEEPS_BUFFERS]
    argv = [*env, "mergerfs", "-f", "-o", PASSTHROUGH, str(backing), str(mount_point)]
    with served(runner, argv, mount_point):
        yield


@contextmanager
def slow(runner, backing, mount_point, bytes_per_second):
    """The backing directory once more; no more than this can be read in a second."""
    argv = ["bindfs", "-f", "--no-allow-other", f"--read-rate={bytes_per_second}", str(backing), str(mount_point)]
    with served(runner, argv, mount_point):
        yield


@contextmanager
def served(runner, argv, mount_point):
    Path(mount_point).mkdir(exist_ok=True)
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    runner.servers.add(server.pid)
    try:
        deadline = time.monotonic() + 10
        while not os.path.ismount(mount_point):
            if server.poll() is not None or time.monotonic() > deadline:
                raise MountFailed(f"{argv[0]} did not mount {mount_point}")
            time.sleep(0.01)
        set_readahead(mount_point)
        yield
    finally:
        # lazily: also when somebody still has a file open there
        subprocess.run(["fusermount3", "-u", "-z", "-q", str(mount_point)])
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        runner.servers.discard(server.pid)


def set_readahead(mount_point):
    device = os.stat(mount_point).st_dev
    try:
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(str(READAHEAD_KIB))
    except OSError:
        pass  # not root: 128 KiB
