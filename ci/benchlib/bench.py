"""The benchmark itself: at each place each work, in turns, with every copy checked."""

import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from . import idle, mounts
from .check import census, contents_differ
from .process import Measured
from .setup import compile_c, die
from .tools import io_threads
from .trees import Trees
from .works import IDLE, WORKS, Event

GIB = 1 << 30
# Who takes longer than both, this and that many times the slowest pcopy, need not show it again.
SLOW_SECONDS, SLOW_RATIO = 10, 10
# More files than this are worth the wait for ext4 after they were removed.
MANY_FILES, FORGETS_SECONDS = 10_000, 65
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def remove(*paths):
    subprocess.run(["rm", "-rf", "--", *map(str, paths)], check=True)


class Place:
    """A directory to work in, on tmpfs or on a disk; removed in the end."""

    def __init__(self, kind, parent, stack):
        if not os.access(parent, os.W_OK | os.X_OK):
            die(f"{parent}: not a directory to write in")
        self.kind, self.parent = kind, parent
        self.dir = Path(tempfile.mkdtemp(prefix="pcopy-bench.", dir=parent)).resolve()
        stack.callback(remove, self.dir)
        self.src, self.dst = self.dir / "src", self.dir / "dst"
        self.on_disk = kind == "disk"
        df = ["df", "--output=source,fstype", "--", str(self.dir)]
        device, self.filesystem = subprocess.run(df, capture_output=True, text=True, check=True).stdout.split()[-2:]
        journal = Path("/sys/fs/ext4", Path(device).resolve().name, "journal_task")
        self.forgets_slowly = journal.exists() and "<none>" in journal.read_text()
        if self.on_disk == (self.filesystem == "tmpfs"):
            die(f"--{kind} {parent}: this is {self.filesystem}")

    def room(self):
        """Bytes that can be written here."""
        stat = os.statvfs(self.dir)
        free = stat.f_bavail * stat.f_frsize
        if not self.on_disk:  # that is memory; a GiB stays for everybody else
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    free = min(free, int(line.split()[1]) * 1024 - GIB)
        return free

    def sync(self):
        subprocess.run(["sync", "-f", str(self.dir)], check=True)

    def clear(self, need=0):
        """Makes {dst} free for the next copy. On a disk the old one is put aside as long as there is room for `need` bytes:
        for a minute or more an ext4 without a journal looks through the inodes that were freed before it makes new ones
        (recently_deleted), which made the next copy of many files take up to three times as long."""
        if not self.on_disk:
            remove(self.dst)
        elif self.dst.exists():
            self.dst.rename(Path(tempfile.mkdtemp(prefix="aside.", dir=self.dir), "dst"))
        if self.on_disk and self.room() < need:
            self.clear_all(*self.dir.glob("aside.*"))

    def clear_all(self, *trees):
        """Removes trees for good, and waits until that has no effect any more."""
        trees = [tree for tree in trees if tree.exists()]
        many = any(sum(1 for _, _, files in os.walk(tree) for _ in files) > MANY_FILES for tree in trees)
        remove(*trees)
        if self.forgets_slowly and many:
            self.sync()
            print(f"  waiting {FORGETS_SECONDS} s for {self.filesystem} to forget what was removed")
            time.sleep(FORGETS_SECONDS)


class Bench:
    def __init__(self, toolbox, configs, options, sizes, scratch):
        self.toolbox, self.configs, self.options, self.scratch = toolbox, configs, options, Path(scratch)
        self.trees = Trees(sizes)
        self.loop = compile_c("loop", scratch)
        self.buffered = compile_c("buffered", scratch, "-shared", "-fPIC", "-ldl")
        Path(scratch, "empty").mkdir()
        self.threads = {}
        if "small" in options.only and toolbox.has("loop"):
            self.threads = {c: io_threads(toolbox.runner, toolbox, c, scratch) for c in configs}
        self.runs = []
        self.skipped = []
        self.idle_done = False

    def skip(self, reason):
        print(f"SKIP: {reason}")
        self.skipped.append(reason)

    def at(self, place):
        tree, want = None, None
        for work in (w for w in WORKS if w.is_wanted(self.options.only)):
            if work.tree != tree:
                place.clear_all(place.src, place.dst, *place.dir.glob("aside.*"))
                tree = None
            why_not = self.why_not(work, place, makes=tree is None)
            if why_not:
                self.skip(f"{work.name} on {place.kind}: {why_not}")
                continue
            if tree is None:
                print(f"{place.kind} ({place.parent}, {place.filesystem}): making the tree {work.tree}")
                self.trees.make(work.tree, place.src, place.on_disk)
                place.sync()
                tree, want = work.tree, census(place.src)
            self.turns(work, place, want)
        remove(place.src, place.dst, *place.dir.glob("aside.*"))
        if IDLE in self.options.only and not self.idle_done:
            self.idle(place)

    def why_not(self, work, place, makes):
        """None, or why this cannot be done here."""
        if makes:
            need, room = self.trees.bytes_with_copy(work.tree, place.on_disk), place.room()
            if room < need:
                return f"needs {need >> 20} MiB, {place.parent} has {room >> 20}"
        return mounts.why_not() if work.fuse else None

    def turns(self, work, place, want):
        large_mib = self.trees.large_mib(place.on_disk)
        event = Event(self.toolbox, self.configs, self.threads, self.loop, large_mib, place.on_disk)
        entrants = work.entrants(event)
        print(f"{work.name} on {place.kind}: {want[1]} files, {want[2] / 1e6:.1f} MB")
        sitting_out = set()
        for number in range(1, self.options.rounds + 1):
            pcopy_seconds = []  # of this round
            for entrant in (e for e in entrants if e.name() not in sitting_out):
                run = self.turn(work, place, want, entrant, number)
                self.runs.append(run)
                if entrant.name() == "pcopy":
                    pcopy_seconds.append(run["seconds"])
                elif run["seconds"] > max(SLOW_SECONDS, SLOW_RATIO * max(pcopy_seconds, default=math.inf)):
                    sitting_out.add(entrant.name())
                    print(f"  {entrant.name()} sits out what is left of {work.name}")

    def turn(self, work, place, want, entrant, number):
        """One run: its line in the table of runs."""
        runner = self.toolbox.runner
        if not entrant.again:
            place.clear(self.trees.bytes_with_copy(work.tree, place.on_disk))
        cache = self.prepare_cache(work, place)
        try:
            measured = self.measure(work, place, entrant)
            began = time.monotonic()
            place.sync()
            sync_seconds = time.monotonic() - began
            check = self.check(work, place, want, entrant, measured, number)
        except mounts.MountFailed as failure:
            measured, sync_seconds, check = Measured(), 0.0, str(failure)
        if check == "ok" and entrant.seconds_from:
            measured.seconds = entrant.seconds_from(runner.log.read_text())
        self.tell(f"round {number}: {entrant}", measured.seconds, check)
        return {
            "place": place.kind,
            "filesystem": place.filesystem,
            "cache": cache,
            "workload": work.name,
            "files": want[1] if entrant.reads_source else 0,
            "bytes": want[2] if entrant.reads_source else 0,
            "tool": entrant.name(),
            "mpi": entrant.config and entrant.config.mpi,
            "np": entrant.config and entrant.config.np,
            "round": number,
            "sync_seconds": sync_seconds,
            "check": check,
            **asdict(measured),
        }

    def measure(self, work, place, entrant):
        mount_point = self.scratch / "mount"
        mount = mounts.passthrough(self.toolbox.runner, self.buffered, place.dir, mount_point) if work.fuse else nullcontext()
        with mount:
            src = mount_point / "src" if work.fuse == "src" else place.src
            dst = mount_point / "dst" if work.fuse == "dst" else place.dst
            command = entrant.command(src=src, dst=dst, scratch=self.scratch)
            slowed_rank = entrant.config.np - 1 if entrant.slowed else None
            return self.toolbox.runner.run(command, self.options.limit, slowed_rank, entrant.keep_output)

    def prepare_cache(self, work, place):
        if not place.on_disk:
            return "memory"
        place.sync()
        chosen = self.options.cache or ("cold" if work.tree == "large" and os.access(DROP_CACHES, os.W_OK) else "warm")
        if chosen == "cold":
            os.sync()
            DROP_CACHES.write_text("3")
        return chosen

    def check(self, work, place, want, entrant, measured, number):
        if measured.exit_code == 124:
            return f"ended after {self.options.limit} s"
        if measured.exit_code:
            return f"exit code {measured.exit_code}"
        if entrant.copies:
            got = census(place.dst)
            if got != want:
                return f"copied {got}, not {want} (entries, files, bytes)"
            if number == 1 and self.options.check == "full" and work.has_contents:
                return contents_differ(place.src, place.dst) or "ok"
        return "ok"

    def tell(self, what, seconds, check):
        print(f"  {what}: {seconds:.3f} s" + ("" if check == "ok" else f": {check}"))
        if check != "ok":
            sys.stderr.writelines(self.toolbox.runner.log.read_text(errors="replace").splitlines(keepends=True)[-5:])

    def idle(self, place):
        """At one place: it is the ranks that are measured."""
        if not self.toolbox.has("pcopy"):
            return
        if mounts.why_not():
            self.skip(f"idle: {mounts.why_not()}")
            return
        self.idle_done = True
        for mpi in self.toolbox.launchers:
            print(f"idle under {mpi}: {idle.NP} ranks, one of them copies")
            work = idle.Idle(self.toolbox, mpi, self.trees.sizes.idle_seconds, self.options.limit)
            try:
                measured, percent, check = work.measure(place.src, place.dst, self.scratch / "mount")
            except mounts.MountFailed as failure:
                measured, percent, check = Measured(), {}, str(failure)
            remove(place.src, place.dst)
            self.tell(f"most of an idle rank {max(percent.values(), default=0):.2f} %, the copy", measured.seconds, check)
            self.runs.append(
                {
                    "place": place.kind,
                    "filesystem": place.filesystem,
                    "workload": IDLE,
                    "tool": "pcopy",
                    "mpi": mpi,
                    "np": idle.NP,
                    "round": 1,
                    "check": check,
                    "idle_cpu_percent": percent,
                    **asdict(measured),
                }
            )
