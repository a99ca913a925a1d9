"""What is to be reached, and whether it was: each line of a list of targets, where this invocation has the runs for it.

A speed is a ratio of medians, pcopy's figure being the better the higher it is. No figure is rounded before it is judged.
"""

from dataclasses import dataclass

from .tools import Config
from .works import IDLE

BOTH = ("tmpfs", "disk")


@dataclass(frozen=True)
class Target:
    work: str
    places: tuple
    text: str  # with the limit in it
    figure: object  # of a View of one configuration: the figure, None without the runs, or (figure, limit)
    limit: float = None  # None with no limit of its own: the figure stands beside another
    at_most: bool = False

    def judge(self, view):
        """{figure, limit, reached}, or None."""
        figure = self.figure(view)
        if figure is None:
            return None
        figure, limit = figure if isinstance(figure, tuple) else (figure, self.limit)
        reached = None if limit is None else figure <= limit if self.at_most else figure >= limit
        return {"figure": figure, "limit": limit, "reached": reached}


class View:
    """The summaries of one work at one place, as one configuration sees them."""

    def __init__(self, group, config, threads):
        self.config, self.threads = config, threads.get(config)
        self.found = {}
        for one in group:
            if "median_seconds" in one and one["mpi"] in (None, config.mpi) and one["np"] in (None, config.np):
                self.found[one["tool"]] = one

    def value(self, tool, field="median_seconds"):
        return self.found.get(tool, {}).get(field)

    def quotient(self, above, below):
        above, below = self.value(above), self.value(below)
        return above / below if above and below else None


def faster_than(*peers, tool="pcopy"):
    """Against the fastest of the peers that ran."""

    def figure(view):
        return min(filter(None, (view.quotient(peer, tool) for peer in peers)), default=None)

    return figure


def loop_rate(view):
    return view.quotient(f"loop-{view.threads}", "pcopy")


def slowdown(tool):
    """Over the ideal time: what it takes with as much of 4 ranks as runs."""

    def figure(view):
        over = view.quotient(f"{tool}-slowed", tool)
        return over and over / (4 / 3.5)

    return figure


def cpu_a_file(view):
    own, peer = (view.value(tool, "cpu_microseconds_a_file") for tool in ("pcopy", "cp-a"))
    return (own, peer) if own and peer else None


def cpu_a_gib(view):
    own, peer = (view.value(tool, "cpu_seconds_a_gib") for tool in ("pcopy", "dcp-p"))
    return (own, peer + 0.4) if own and peer else None


def idle_percent(view):
    return view.value("pcopy", "idle_cpu_percent_max")


TARGETS = [
    Target("small", ("tmpfs",), "2.0 times dcp -p", faster_than("dcp-p"), 2.0),
    Target("small", ("tmpfs",), "1.0 times fcp", faster_than("fcp"), 1.0),
    Target("small", ("tmpfs",), "1.0 times xcp", faster_than("xcp"), 1.0),
    Target("small", ("tmpfs",), "0.7 of the bare loop's rate", loop_rate, 0.7),
    Target("small", ("disk",), "1.5 times dcp -p", faster_than("dcp-p"), 1.5),
    Target("small", ("disk",), "1.2 times cp -a", faster_than("cp-a"), 1.2),
    Target("small", BOTH, "CPU us a file at most cp -a's", cpu_a_file, at_most=True),
    Target("large", ("disk",), "1.0 times the better of dcp -p -s and xcp", faster_than("dcp-p-s", "xcp"), 1.0),
    Target("large", ("disk",), "0.9 of fio's serial direct copy", faster_than("fio-serial"), 0.9),
    Target("large", ("tmpfs",), "1.0 times dcp -p", faster_than("dcp-p"), 1.0),
    Target("large", ("tmpfs",), "1.2 times dcp -p, --no-digest", faster_than("dcp-p", tool="pcopy-no-digest"), 1.2),
    Target("large", BOTH, "CPU s a GiB at most dcp -p's and 0.4", cpu_a_gib, at_most=True),
    Target("mixed", BOTH, "1.5 times dcp -p", faster_than("dcp-p"), 1.5),
    Target("mixed", BOTH, "1.5 times cp -a", faster_than("cp-a"), 1.5),
    Target("million", BOTH, "2.0 times dcp -p", faster_than("dcp-p"), 2.0),
    Target("scan", BOTH, "2.0 times dwalk", faster_than("dwalk", tool="pcopy-scan"), 2.0),
    Target("skewed", BOTH, "at most 1.3 of the ideal time", slowdown("pcopy"), 1.3, at_most=True),
    Target("skewed", BOTH, "  dcp -p beside it", slowdown("dcp-p")),
    Target("fuse-from", BOTH, "2.0 times dcp -p", faster_than("dcp-p"), 2.0),
    Target("fuse-from", BOTH, "2.0 times cp -a", faster_than("cp-a"), 2.0),
    Target("fuse-to", BOTH, "2.0 times dcp -p", faster_than("dcp-p"), 2.0),
    Target("fuse-to", BOTH, "2.0 times cp -a", faster_than("cp-a"), 2.0),
    Target("rerun-small", BOTH, "10 times the first run", faster_than("pcopy", tool="pcopy-rerun"), 10.0),
    Target("rerun-mixed", BOTH, "10 times the first run", faster_than("pcopy", tool="pcopy-rerun"), 10.0),
    Target(IDLE, BOTH, "an idle rank under 2 % CPU", idle_percent, 2.0, at_most=True),
]


def judge(summaries, threads):
    """A dict for each target and place with a figure for at least one configuration."""
    judged = []
    for target in TARGETS:
        for place in target.places:
            group = [s for s in summaries if (s["workload"], s["place"]) == (target.work, place)]
            configs = dict.fromkeys(Config(s["mpi"], s["np"]) for s in group if s["mpi"])
            figures = {str(config): target.judge(View(group, config, threads)) for config in configs}
            figures = {config: figure for config, figure in figures.items() if figure}
            if figures:
                judged.append({"work": target.work, "place": place, "target": target.text, "figures": figures})
    return judged


def print_table(judged, is_quick):
    if not judged:
        return
    print("\nTargets (o2: OpenMPI, np 2)" + ("; with --quick these figures tell nothing" if is_quick else ""))
    for line in judged:
        cells = []
        for config, one in line["figures"].items():
            verdict = {True: " yes", False: " NO", None: ""}[one["reached"]]
            cells.append(f"{config} {one['figure']:.2f}{verdict}".ljust(14))
        print(f"{line['work']:<12} {line['place']:<6} {line['target']:<43} " + " ".join(cells).rstrip())
