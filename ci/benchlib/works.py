"""What is copied how: each work's tree, and who takes a turn at it."""

from dataclasses import dataclass

from .tools import Config, fio_entrants, loop_entrant

SKEWED_NP = 4


@dataclass(frozen=True)
class Work:
    name: str
    tree: str
    entrants: object  # of an Event
    fuse: str = ""  # the side that is on a FUSE mount: src, dst
    has_contents: bool = True

    def is_wanted(self, only):
        """By its name, or by the first word of it."""
        return bool({self.name, self.name.partition("-")[0]} & set(only))


@dataclass(frozen=True)
class Event:
    """What a work's entrants depend on."""

    toolbox: object
    configs: list
    threads: dict  # {configuration: I/O threads of pcopy}
    loop: str  # the program
    large_mib: int
    on_disk: bool


def copying(event, no_digest=False):
    box, configs = event.toolbox, event.configs
    found = []
    if box.has("pcopy"):
        found += box.pcopy(configs) + box.base(configs)
    if no_digest and box.has("pcopy-no-digest"):
        found += box.pcopy(configs, "pcopy-no-digest", ["--no-digest"])
    for tool in ("cp", "rsync", "tar", "xcp", "fcp", "rclone", "fpsync"):
        found += box.serial(tool)
    return found + box.dcp(configs)


def small(event):
    threads = sorted(set(event.threads.values())) if event.toolbox.has("loop") else []
    return copying(event) + event.toolbox.nothing(event.configs) + [loop_entrant(event.loop, n) for n in threads]


def large(event):
    fio = fio_entrants(event.large_mib) if event.on_disk and event.toolbox.has("fio") else []
    return copying(event, no_digest=True) + fio


def rerun(event):
    found = []
    for config in event.configs if event.toolbox.has("pcopy") else []:
        found += event.toolbox.pcopy([config])
        found += event.toolbox.pcopy([config], "pcopy-rerun", again=True)
    return found


def scan(event):
    box, configs = event.toolbox, event.configs
    found = []
    if box.has("pcopy"):
        found.append(box.scan())
        # a line an entry on standard output
        found += box.pcopy(configs, "pcopy-dry-run", ["--dry-run"], copies=False, keep_output=False)
    if box.has("dcp"):
        found += box.ranked("dwalk", "dwalk", ["-q", "{src}"], configs, copies=False)
        found += box.ranked("dwalk-lite", "dwalk", ["-q", "--lite", "{src}"], configs, copies=False)
    return found


def fuse(event):
    box, configs = event.toolbox, event.configs
    pcopy = box.pcopy(configs) + box.base(configs) if box.has("pcopy") else []
    return pcopy + box.serial("cp") + box.dcp(configs)


def skewed(event):
    box = event.toolbox
    found = []
    for mpi in box.launchers:
        config = [Config(mpi, SKEWED_NP)]
        for slowed in (False, True):
            found += box.pcopy(config, slowed=slowed) if box.has("pcopy") else []
            found += box.dcp(config, ["dcp"], slowed=slowed)
    return found


# Those with one tree stand together: it is made once.
WORKS = [
    Work("small", "small", small),
    Work("rerun-small", "small", rerun),
    Work("large", "large", large),
    Work("fuse-from", "large", fuse, fuse="src"),
    Work("fuse-to", "large", fuse, fuse="dst"),
    Work("mixed", "mixed", copying),
    Work("rerun-mixed", "mixed", rerun),
    Work("million", "million", copying, has_contents=False),
    Work("scan", "million", scan, has_contents=False),
    Work("skewed", "skewed", skewed),
]
IDLE = "idle"  # see idle.py
