"""What ranks cost that have nothing to do: 64 of them, and one file that one of them copies in one piece from a
slow mount. Of each rank user and system time are read from /proc at two moments of the copy."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from .mounts import slow
from .tools import Config
from .trees import MIB, random_file

NP = 64
MIB_PER_SECOND = 16
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Idle:
    toolbox: object
    mpi: str
    seconds: int  # for so long
    limit: int

    def measure(self, src, dst, mount_point):
        """What the run took; CPU in percent of one core by rank, but for the one that copies; ok, or what is wrong."""
        src.mkdir()
        # for as long as is measured, before that until it is seen, and some time after
        random_file(src / "slow.bin", MIB_PER_SECOND * (self.seconds + 8))
        runner = self.toolbox.runner
        entrant = self.toolbox.pcopy([Config(self.mpi, NP)], options=["-k", "1TiB", "--progress", "0"])[0]
        with slow(runner, src, mount_point, MIB_PER_SECOND * MIB):
            with runner.start(entrant.command(src=mount_point, dst=dst)) as job:
                percent = self.percent(job) if self.has_begun(job) else {}
                measured = job.wait(self.limit)
        if measured.exit_code:
            return measured, percent, f"exit code {measured.exit_code}"
        if len(percent) < NP - 1:
            return measured, percent, "the copy ended while it was measured"
        whole = (dst / "slow.bin").stat().st_size == (src / "slow.bin").stat().st_size
        return measured, percent, "ok" if whole else "not copied whole"

    def has_begun(self, job):
        """Waits until a rank has read what takes a second."""
        deadline = job.started + self.limit
        while max(bytes_read(job, rank) for rank in range(NP)) < MIB_PER_SECOND * MIB:
            if job.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def percent(self, job):
        began, before = time.monotonic(), [cpu_seconds(job, rank) for rank in range(NP)]
        time.sleep(self.seconds)
        took, after = time.monotonic() - began, [cpu_seconds(job, rank) for rank in range(NP)]
        copier = max(range(NP), key=lambda rank: bytes_read(job, rank))
        idle = (rank for rank in range(NP) if rank != copier and None not in (before[rank], after[rank]))
        return {rank: 100 * (after[rank] - before[rank]) / took for rank in idle}


def bytes_read(job, rank):
    try:
        return int(Path(f"/proc/{job.pid_of(rank)}/io").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def cpu_seconds(job, rank):
    """User and system time of all its threads; None when it has ended."""
    try:
        fields = Path(f"/proc/{job.pid_of(rank)}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS
