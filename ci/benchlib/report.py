"""From runs to summaries: medians, ratios to pcopy, costs; and the tables of them."""

import os
import platform
import statistics

from .tools import Config
from .works import IDLE

GIB = 1 << 30
REFERENCES = ("pcopy", "pcopy-dry-run")  # what others are compared with; a work has one of them


def summarize(runs):
    """One dict for each tool under each configuration over each work at each place."""
    groups = {}
    for run in [*runs, *serial_fio(runs)]:
        key = (run["place"], run["workload"], run["tool"], run["mpi"], run["np"])
        groups.setdefault(key, []).append(run)
    summaries = [summary(group) for group in groups.values()]
    for one in summaries:
        if "median_seconds" in one and one["workload"] != IDLE:
            one["ratio_to_pcopy"] = ratios(one, summaries)
    return summaries


def serial_fio(runs):
    """One after the other is the limit of a copy that reads, then writes."""
    reads = {(r["place"], r["workload"], r["round"]): r for r in runs if r["tool"] == "fio-read"}
    for write in runs:
        read = reads.get((write["place"], write["workload"], write["round"]))
        if write["tool"] == "fio-write" and read:
            both = dict(write, tool="fio-serial")
            for field in ("seconds", "sync_seconds", "user_seconds", "system_seconds"):
                both[field] += read[field]
            if read["check"] != "ok":
                both["check"] = read["check"]
            yield both


def summary(runs):
    """Failed runs count as failed, and not in the times."""
    good = [run for run in runs if run["check"] == "ok"]
    fields = ("place", "filesystem", "cache", "workload", "files", "bytes", "tool", "mpi", "np")
    result = {field: runs[0].get(field) for field in fields}
    result |= {"runs": len(runs), "failed": len(runs) - len(good)}
    if not good:
        return result
    seconds = [run["seconds"] for run in good]
    cpu = statistics.median(run["user_seconds"] + run["system_seconds"] for run in good)
    ranks = [run["rank_peak_kib"] for run in good if run["rank_peak_kib"]]
    result |= {
        "median_seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "median_cpu_seconds": cpu,
        "peak_kib": max(map(max, ranks)) if ranks else max(run["peak_kib"] for run in good),
        "rank0_peak_kib": max(peaks[0] for peaks in ranks) if ranks else None,
    }
    if runs[0]["workload"] == IDLE:
        percents = [percent for run in good for percent in run["idle_cpu_percent"].values()]
        result |= {"idle_cpu_percent_max": max(percents), "idle_cpu_percent_median": statistics.median(percents)}
        return result
    files, size = result["files"], result["bytes"]
    result |= {
        "median_seconds_with_sync": statistics.median(run["seconds"] + run["sync_seconds"] for run in good),
        "files_per_second": files / result["median_seconds"],
        "megabytes_per_second": size / 1e6 / result["median_seconds"],
        "cpu_microseconds_a_file": cpu * 1e6 / files if files else None,
        "cpu_seconds_a_gib": cpu / (size / GIB) if size else None,
    }
    return result


def ratios(one, summaries):
    """{configuration: the tool's median over pcopy's}: its own, or each where it has none."""
    slowed = "-slowed" if one["tool"].endswith("-slowed") else ""
    found = {}
    for other in summaries:
        same_work = (other["place"], other["workload"]) == (one["place"], one["workload"])
        same_config = one["mpi"] is None or (other["mpi"], other["np"]) == (one["mpi"], one["np"])
        is_reference = other["tool"] in [name + slowed for name in REFERENCES]
        if same_work and same_config and is_reference and "median_seconds" in other:
            found[str(Config(other["mpi"], other["np"]))] = one["median_seconds"] / other["median_seconds"]
    return found


def by_work(summaries):
    groups = {}
    for one in summaries:
        groups.setdefault((one["workload"], one["place"]), []).append(one)
    return groups


def label(one):
    return one["tool"] + (f" {Config(one['mpi'], one['np'])}" if one["mpi"] else "")


def cell(value, width, digits=2):
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"


def mib(kib):
    return None if kib is None else kib / 1024


def print_tables(summaries):
    for (work, place), group in by_work(summaries).items():
        if work == IDLE:
            print_idle(place, group)
        else:
            print_work(work, place, group)


def print_work(work, place, group):
    first = group[0]
    columns = list(dict.fromkeys(config for one in group for config in one.get("ratio_to_pcopy", {})))
    print(
        f"\n{work} on {place} ({first['filesystem']}, {first['cache']}): {first['files']} files, "
        f"{first['bytes'] / 1e6:.1f} MB, {max(one['runs'] for one in group)} rounds"
    )
    print(
        f"{'tool':<19} {'median s':>8} {'min..max':>17} {'+sync s':>8} {'files/s':>8} {'MB/s':>7} {'CPU s':>7} {'us/file':>8}"
        f" {'s/GiB':>7} {'peak MiB':>8} {'rank 0':>7} " + " ".join(f"{c:>6}" for c in columns)
    )
    for one in group:
        if "median_seconds" in one:
            many = one["files"] >= 100
            line = [
                f"{label(one):<19} {one['median_seconds']:8.3f} {one['min_seconds']:8.3f}..{one['max_seconds']:<7.3f}",
                cell(one["median_seconds_with_sync"], 8, 3),
                cell(one["files_per_second"] if many else None, 8, 0),
                cell(one["megabytes_per_second"] or None, 7, 0),
                cell(one["median_cpu_seconds"], 7),
                cell(one["cpu_microseconds_a_file"] if many else None, 8, 1),
                cell(one["cpu_seconds_a_gib"], 7),
                cell(mib(one["peak_kib"]), 8, 1),
                cell(mib(one["rank0_peak_kib"]), 7, 1),
                *(cell(one["ratio_to_pcopy"].get(column), 6) for column in columns),
            ]
            print(" ".join(line), end="")
        else:
            print(f"{label(one):<19}", end="")
        print(f"  FAILED {one['failed']} of {one['runs']}" if one["failed"] else "")


def print_idle(place, group):
    print(f"\nidle on {place}: CPU of a rank that has nothing to do, in percent of one core")
    print(f"{'tool':<19} {'median':>8} {'max':>8} {'CPU s':>7} {'peak MiB':>8} {'rank 0':>7}")
    for one in group:
        if "median_seconds" in one:
            values = [
                cell(one["idle_cpu_percent_median"], 8),
                cell(one["idle_cpu_percent_max"], 8),
                cell(one["median_cpu_seconds"], 7),
                cell(mib(one["peak_kib"]), 8, 1),
                cell(mib(one["rank0_peak_kib"]), 7, 1),
            ]
            print(f"{label(one):<19} " + " ".join(values))
        else:
            print(f"{label(one):<19}  FAILED")


def machine(launchers):
    return {
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "mpi": {launcher.mpi: launcher.version() for launcher in launchers},
    }


def machine_line(machine):
    mpis = ", ".join(f"{mpi} {version}" for mpi, version in machine["mpi"].items())
    return f"{machine['cpus']} CPUs, {machine['memory_bytes'] >> 20} MiB, Linux {machine['kernel']}, {mpis}"
