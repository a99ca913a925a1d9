"""ci/bench, whose head says what this does and takes. In the order of reading: works.py (what is copied, by whom),
tools.py (their command lines), bench.py (a turn), process.py (a run), report.py, targets.py, plot.py."""

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import plot, report, targets
from .bench import Bench, Place
from .process import Runner
from .setup import Launcher, build_pcopy, compile_c, die, linked_mpi, need_packages
from .tools import ALL, Config, Toolbox
from .trees import QUICK, Sizes
from .works import IDLE, WORKS

EXIT_USAGE = 2


class Parser(argparse.ArgumentParser):
    def error(self, message):
        die(f"{message} (see ci/bench --help)", EXIT_USAGE)


def listed(text, known, option):
    words = text.split(",")
    for word in words:
        if word not in known:
            die(f"{option} {text}: what is '{word}'? Of {','.join(known)}", EXIT_USAGE)
    return words


def numbers(text, option):
    words = text.split(",")
    if not all(word.isdigit() and int(word) > 0 for word in words):
        die(f"{option} {text}: numbers from 1, with commas", EXIT_USAGE)
    return [int(word) for word in words]


def parse(argv):
    parser = Parser(add_help=False, allow_abbrev=False)
    for option in ("--only", "--rounds", "--pcopy", "--base", "--dcp", "--json", "--svg"):
        parser.add_argument(option)
    parser.add_argument("--tools", default=",".join(ALL))
    parser.add_argument("--np", default="2,4")
    parser.add_argument("--mpi", default="openmpi,mpich")
    parser.add_argument("--tmpfs", default="/dev/shm")
    parser.add_argument("--disk", default=os.environ.get("TMPDIR") or "/tmp")
    parser.add_argument("--cold", action="store_const", const="cold", dest="cache")
    parser.add_argument("--warm", action="store_const", const="warm", dest="cache")
    parser.add_argument("--args", default="")
    parser.add_argument("--check", choices=("census", "full"), default="full")
    parser.add_argument("--limit", default="1800")
    parser.add_argument("--quick", action="store_true")
    if "--args" in argv[:-1]:  # its value begins with dashes, which argparse would take for another option
        at = argv.index("--args")
        argv = [*argv[:at], f"--args={argv[at + 1]}", *argv[at + 2 :]]
    options = parser.parse_args(argv)
    names = [name for work in WORKS for name in (work.name, work.name.partition("-")[0])] + [IDLE]
    options.only = listed(options.only, list(dict.fromkeys(names)), "--only") if options.only else names
    options.tools = listed(options.tools, ALL, "--tools")
    options.mpi = listed(options.mpi, ("openmpi", "mpich"), "--mpi")
    options.np = numbers(options.np, "--np")
    options.rounds = numbers(options.rounds or ("1" if options.quick else "3"), "--rounds")[0]
    options.limit = numbers(options.limit, "--limit")[0]
    if options.cache == "cold" and not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        die("--cold: only root can drop the page cache")
    return options


def programs(text, mpis, option):
    """FILE, or openmpi=FILE,mpich=FILE: {mpi: file}."""
    pairs = [word.partition("=")[::2] if "=" in word else (linked_mpi(word), word) for word in text.split(",")]
    found = {mpi: str(Path(file).resolve()) for mpi, file in pairs}
    for mpi, file in found.items():
        if not os.access(file, os.X_OK):
            die(f"{option}: {file} is no program that can be run", EXIT_USAGE)
    return {mpi: found[mpi] for mpi in mpis if mpi in found}


def toolbox(options, runner):
    launchers = {mpi: Launcher(mpi) for mpi in options.mpi}
    pcopy = programs(options.pcopy, options.mpi, "--pcopy") if options.pcopy else build_pcopy(options.mpi)
    for mpi in options.mpi:
        if mpi not in pcopy:
            die(f"--pcopy: none for {mpi}", EXIT_USAGE)
    base = programs(options.base, options.mpi, "--base") if options.base else {}
    dcp = options.dcp or shutil.which("dcp")
    dcp = programs(dcp, options.mpi, "--dcp") if dcp else {}
    return Toolbox(options.tools, launchers, runner, pcopy, base, dcp, shlex.split(options.args))


def packages(options):
    """What the wanted works need, and peers that are not here are left out."""
    only = set(options.only)
    if only & {"fuse", "fuse-from", "fuse-to"}:
        yield from ("fuse3", "mergerfs")
    if IDLE in only:
        yield from ("fuse3", "bindfs")
    if "large" in only and "fio" in options.tools and options.disk != "none":
        yield "fio"


def main():
    options = parse(sys.argv[1:])
    for path in filter(None, (options.json, options.svg)):
        open(path, "w").close()  # now, not after an hour
    needed = sorted(set(packages(options)))
    if needed:
        need_packages(*needed)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pcopy-bench."))
        stack.callback(ignore_signals)
        runner = Runner(compile_c("meter", scratch), scratch)
        box = toolbox(options, runner)
        configs = [Config(mpi, np) for mpi in options.mpi for np in options.np]
        bench = Bench(box, configs, options, QUICK if options.quick else Sizes(), scratch)
        for tool, why in box.missing.items():
            bench.skip(f"{tool}: {why}")
        stopped = 0
        try:
            for kind, parent in (("tmpfs", options.tmpfs), ("disk", options.disk)):
                if parent != "none":
                    bench.at(Place(kind, parent, stack))
        except Stopped as reason:  # what was measured until then is worth having
            stopped = reason.code
    failures = report_all(bench, options) if bench.runs else 0
    return stopped or failures


def report_all(bench, options):
    summaries = report.summarize(bench.runs)
    reached = targets.judge(summaries, bench.threads)
    report.print_tables(summaries)
    targets.print_table(reached, options.quick)
    machine = report.machine(bench.toolbox.launchers.values())
    print("\n" + report.machine_line(machine))
    if options.json:
        everything = {
            "machine": machine,
            "options": vars(options),
            "skipped": bench.skipped,
            "summaries": summaries,
            "targets": reached,
            "runs": bench.runs,
        }
        Path(options.json).write_text(json.dumps(everything, indent=1) + "\n")
    if options.svg:
        Path(options.svg).write_text(plot.ratios(summaries, report.machine_line(machine)))
    failed = [run for run in bench.runs if run["check"] != "ok"]
    if failed:
        print(f"{len(failed)} run(s) failed or did not copy everything (see above)", file=sys.stderr)
    return 1 if failed else 0


def ignore_signals():
    """While what was made is removed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Stopped(SystemExit):
    """By a signal; the code is the exit code."""


def stop(number, _):
    ignore_signals()
    raise Stopped(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
