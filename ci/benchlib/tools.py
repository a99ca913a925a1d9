"""Who takes part: pcopy, its peers and the baselines, each as a command line."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .setup import build_scan

SERIAL = {
    "cp": ["cp", "-a", "{src}", "{dst}"],
    "rsync": ["rsync", "-a", "{src}/", "{dst}"],
    "tar": ["bash", "-o", "pipefail", "-c", 'mkdir "$1" && tar -C "$0" -cf - . | tar -C "$1" -xpf -', "{src}", "{dst}"],
    "xcp": ["xcp", "-r", "--no-progress", "{src}", "{dst}"],
    "fcp": ["fcp", "{src}", "{dst}"],
    "rclone": ["rclone", "copy", "-q", "--links", "--create-empty-src-dirs", "{src}", "{dst}"],
    "fpsync": ["fpsync", "-n", str(os.cpu_count()), "-t", "{scratch}/fpsync", "{src}/", "{dst}/"],
}
DCP = {"dcp": ["-p"], "dcp-s": ["-p", "-s"]}
PCOPY = {"pcopy": [], "pcopy-no-digest": ["--no-digest"]}
BASELINES = ("loop", "fio")
ALL = (*PCOPY, "cp", "rsync", "tar", *DCP, "xcp", "fcp", "rclone", "fpsync", *BASELINES)
LABELS = {"cp": "cp-a", "rsync": "rsync-a", "dcp": "dcp-p", "dcp-s": "dcp-p-s"}


@dataclass(frozen=True)
class Config:
    """How many ranks under which MPI."""

    mpi: str
    np: int

    def __str__(self):
        return f"{self.mpi[0]}{self.np}"


@dataclass(frozen=True)
class Entrant:
    """A command that takes its turn. In its words {src}, {dst} and {scratch} are filled in."""

    tool: str
    argv: tuple
    config: Config = None
    copies: bool = True  # makes {dst}, which did not exist
    reads_source: bool = True
    again: bool = False  # {dst} stays as the run before left it
    slowed: bool = False  # its last rank is stopped half of the time
    keep_output: bool = True
    seconds_from: object = None  # what tells the seconds from its output, if not the clock

    def name(self):
        return self.tool + ("-slowed" if self.slowed else "")

    def __str__(self):
        return f"{self.name()} {self.config}" if self.config else self.name()

    def command(self, **words):
        return [re.sub(r"\{(src|dst|scratch)\}", lambda m: str(words[m[1]]), word) for word in self.argv]


class Toolbox:
    """The tools that are here and wanted."""

    def __init__(self, wanted, launchers, runner, pcopy, base, dcp, args):
        self.wanted, self.launchers, self.runner = wanted, launchers, runner
        self.programs = {"pcopy": pcopy, "base": base, "dcp": dcp}  # each {mpi: file}
        self.args = args
        self.programs["dwalk"] = {
            mpi: str(path) for mpi, path in ((m, Path(f).with_name("dwalk")) for m, f in dcp.items()) if path.exists()
        }
        self.missing = dict(self.find_missing())  # {tool: why}

    def find_missing(self):
        for tool in self.wanted:
            if tool in SERIAL and not shutil.which(SERIAL[tool][0]):
                yield tool, "not on PATH"
        if set(DCP) & set(self.wanted):
            for mpi in self.launchers:
                if mpi not in self.programs["dcp"]:
                    yield f"dcp under {mpi}", "none that is linked with it (--dcp)"

    def has(self, tool):
        return tool in self.wanted and tool not in self.missing

    def serial(self, tool):
        return [Entrant(LABELS.get(tool, tool), tuple(SERIAL[tool]))] if self.has(tool) else []

    def ranked(self, tool, program, options, configs, **traits):
        """The tool under each configuration for which there is a program."""
        found = []
        for config in configs:
            path = self.programs[program].get(config.mpi)
            if path:
                launch = [*self.launchers[config.mpi].argv, "-np", str(config.np)]
                argv = (*launch, *self.runner.metered([path, *options]))
                found.append(Entrant(tool, argv, config, **traits))
        return found

    def pcopy(self, configs, tool="pcopy", options=(), **traits):
        return self.ranked(tool, "pcopy", ["-q", *self.args, *options, "{src}", "{dst}"], configs, **traits)

    def nothing(self, configs):
        """pcopy of an empty directory: what the start of mpirun takes, and all else that no file causes."""
        words = ["-q", *self.args, "{scratch}/empty", "{dst}"]
        traits = {"copies": False, "reads_source": False}
        return self.ranked("pcopy-nothing", "pcopy", words, configs, **traits) if self.has("pcopy") else []

    def scan(self):
        """Rank 0's scan as it is in a copy, without MPI and ranks."""
        return Entrant("pcopy-scan", (build_scan(next(iter(self.launchers))), "{src}"), copies=False)

    def base(self, configs):
        return self.ranked("base", "base", ["-q", *self.args, "{src}", "{dst}"], configs)

    def dcp(self, configs, tools=tuple(DCP), **traits):
        found = []
        for tool in filter(self.has, tools):
            found += self.ranked(LABELS[tool], "dcp", ["-q", *DCP[tool], "{src}", "{dst}"], configs, **traits)
        return found


def io_threads(runner, toolbox, config, scratch):
    """How many I/O threads all ranks of pcopy have together; it says so with -v."""
    options = ["-v", "--dry-run", "{scratch}/empty", "{scratch}/none"]
    runner.run(toolbox.ranked("pcopy", "pcopy", options, [config])[0].command(scratch=scratch), limit=60)
    said = re.search(r"with (\d+) I/O thread", runner.log.read_text(errors="replace"))
    return int(said[1]) if said else 2 * config.np


def loop_entrant(program, threads):
    return Entrant(f"loop-{threads}", (program, "{src}", "{dst}", str(threads)))


def fio_entrants(length_mib):
    """Reading the large file, and writing one of its length."""
    common = ["fio", "--name=x", "--bs=4M", "--direct=1", "--ioengine=psync", "--output-format=json"]
    read = [*common, "--rw=read", "--readonly", "--filename={src}/large.bin"]
    write = [*common, "--rw=write", "--end_fsync=1", f"--size={length_mib}M", "--filename={dst}/large.bin"]
    write = ["bash", "-c", 'mkdir "$0" && exec "$@"', "{dst}", *write]
    return [
        Entrant("fio-read", tuple(read), copies=False, seconds_from=lambda text: fio_seconds(text, "read")),
        Entrant("fio-write", tuple(write), copies=False, seconds_from=lambda text: fio_seconds(text, "write")),
    ]


def fio_seconds(text, side):
    """fio's own time, without its start."""
    job = json.loads(text[text.index("{") :])["jobs"][0]
    return job[side]["io_bytes"] / job[side]["bw_bytes"]
