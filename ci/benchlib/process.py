"""Runs one command and measures it: time, CPU, and the peak memory of every rank.

Whatever it starts is gone when it is done, also on a signal: this process adopts orphans, so that
no rank can outlive its launcher unseen.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SLOW_PERIOD_SECONDS = 0.1  # a slowed rank is stopped and runs for this long in turns


@dataclass
class Measured:
    exit_code: int = 0
    seconds: float = 0.0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    peak_kib: int = 0  # of the largest process
    rank_peak_kib: list = field(default_factory=list)


def adopt_orphans():
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root):
    """The processes below a process, from /proc."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def end_all(spare):
    """Ends every process below this one, but for those to spare."""
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience
        pids = [p for p in descendants(os.getpid()) if p not in spare]
        for pid in pids:
            send(pid, number)
            send(pid, signal.SIGCONT)
        while pids and time.monotonic() < deadline:
            time.sleep(0.02)
            pids = [p for p in descendants(os.getpid()) if p not in spare]


def has_ended(pid, seconds):
    """Waits for it, for so long at most. (Popen.wait with a limit looks only 20 times a second.)"""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


class SlowedRank(threading.Thread):
    """Stops a process half of the time."""

    def __init__(self, pid_of_rank):
        super().__init__(daemon=True)
        self.pid_of_rank = pid_of_rank
        self.done = threading.Event()

    def run(self):
        pid = None
        while pid is None and not self.done.wait(0.005):
            pid = self.pid_of_rank()
        while pid and not self.done.is_set():
            send(pid, signal.SIGSTOP)
            self.done.wait(SLOW_PERIOD_SECONDS)
            send(pid, signal.SIGCONT)
            self.done.wait(SLOW_PERIOD_SECONDS)


class Runner:
    """Starts commands under meter.c, one at a time."""

    def __init__(self, meter, scratch):
        self.meter = meter
        self.notes = Path(scratch, "notes")  # what meter wrote: all, 0, 1, ...
        self.log = Path(scratch, "log")
        self.servers = set()  # processes that outlive a run
        adopt_orphans()

    def metered(self, argv):
        """A command that is measured by rank, for behind mpirun."""
        return [self.meter, str(self.notes), *argv]

    def start(self, argv, keep_output=True):
        return Job(self, argv, keep_output)

    def run(self, argv, limit, slowed_rank=None, keep_output=True):
        with self.start(argv, keep_output) as job:
            return job.wait(limit, slowed_rank)


class Job:
    """A running command."""

    def __init__(self, runner, argv, keep_output):
        self.runner = runner
        shutil.rmtree(runner.notes, ignore_errors=True)
        runner.notes.mkdir()
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with open(runner.log, "wb") as log:
            self.started = time.monotonic()
            # A session of its own: what a terminal's Ctrl-C reaches is this process, which ends the other.
            self.process = subprocess.Popen(
                runner.metered(argv),
                stdin=subprocess.DEVNULL,
                stdout=log if keep_output else subprocess.DEVNULL,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.returncode is None:
            end_all(spare=self.runner.servers)
            self.process.wait()

    def note(self, name):
        """What meter wrote of a rank, or of all: [pid] or [pid, peak KiB, user us, system us]."""
        try:
            return [int(word) for word in (self.runner.notes / str(name)).read_text().split()]
        except FileNotFoundError:
            return []

    def pid_of(self, rank):
        return next(iter(self.note(rank)), None)

    def wait(self, limit, slowed_rank=None):
        slowed = None
        if slowed_rank is not None:
            slowed = SlowedRank(lambda: self.pid_of(slowed_rank))
            slowed.start()
        try:
            left = limit - (time.monotonic() - self.started)
            in_time = self.process.returncode is not None or has_ended(self.process.pid, max(left, 0))
            seconds = time.monotonic() - self.started
        finally:
            if slowed:
                slowed.done.set()
                slowed.join()
        if not in_time:
            end_all(spare=self.runner.servers)
        result = Measured(self.process.wait() if in_time else 124, seconds)
        whole = self.note("all")
        if len(whole) == 4:
            result.peak_kib = whole[1]
            result.user_seconds, result.system_seconds = whole[2] / 1e6, whole[3] / 1e6
        ranks = sorted(int(p.name) for p in self.runner.notes.iterdir() if p.name != "all")
        result.rank_peak_kib = [note[1] for note in map(self.note, ranks) if len(note) == 4]
        return result
