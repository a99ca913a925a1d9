"""What ranks cost that have nothing to do: 64 of them, and one file that one of them copies in one piece from a
slow mount. Of each rank user and system time are read from /proc at two moments of the copy."""

import os
import time
from pathlib import Path

from .tools import Config
from .trees import MIB, random_file
from .mounts import slow

NP = 64
BYTES_PER_SECOND = 16 * MIB
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def measure(toolbox, mpi, directory, mount_point, seconds, limit):
    """CPU in percent of one core, by rank, of all but the one that copies; as a result with the run's peaks."""
    source, copy = Path(directory, "src"), Path(directory, "dst")
    source.mkdir()
    # for as long as is measured, before that until it is seen, and some time after
    random_file(source / "slow.bin", BYTES_PER_SECOND * (seconds + 8) // MIB)
    runner = toolbox.runner
    with slow(runner, source, mount_point, BYTES_PER_SECOND):
        options = ["-k", "1TiB", "--progress", "0"]
        entrant = toolbox.pcopy([Config(mpi, NP)], options=options)[0]
        with runner.start(entrant.command(src=mount_point, dst=copy)) as job:
            deadline = time.monotonic() + limit
            while max((bytes_read(job, rank) for rank in range(NP)), default=0) < BYTES_PER_SECOND:
                if job.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the copy did not begin: " + runner.log.read_text(errors="replace"))
                time.sleep(0.1)
            began, before = time.monotonic(), [cpu_seconds(job, rank) for rank in range(NP)]
            time.sleep(seconds)
            took, after = time.monotonic() - began, [cpu_seconds(job, rank) for rank in range(NP)]
            copier = max(range(NP), key=lambda rank: bytes_read(job, rank))
            measured = job.wait(limit)
    percent = {r: 100 * (after[r] - before[r]) / took for r in range(NP) if r != copier and None not in (before[r], after[r])}
    same_size = (copy / "slow.bin").exists() and (copy / "slow.bin").stat().st_size == (source / "slow.bin").stat().st_size
    if measured.exit_code:
        check = f"exit code {measured.exit_code}"
    elif len(percent) < NP - 1:
        check = "the copy ended while it was measured"
    else:
        check = "ok" if same_size else "not copied whole"
    return measured, percent, check


def bytes_read(job, rank):
    try:
        return int(Path(f"/proc/{job.pid_of(rank)}/io").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def cpu_seconds(job, rank):
    try:
        fields = Path(f"/proc/{job.pid_of(rank)}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS
