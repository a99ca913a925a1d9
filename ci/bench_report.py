"""The report of ci/bench: medians of its runs as a table and as JSON.

bench_report.py RUNS.TSV JSON_FILE|"" MPI_VERSION PCOPY_COMMAND
"""

import csv
import json
import os
import platform
import statistics
import sys

TEXT = {"place", "filesystem", "cache", "workload", "tool", "check"}
REFERENCE = "cp-a"


def read_runs(path):
    """Every run as a dict; a number that was not measured is None."""
    with open(path, newline="") as f:
        return [
            {k: v if k in TEXT else (float(v) if "." in v else int(v)) if v else None for k, v in row.items()}
            for row in csv.DictReader(f, delimiter="\t")
        ]


def groups(runs, *keys):
    """Runs with the same keys together, in the order of their first run."""
    found = {}
    for run in runs:
        found.setdefault(tuple(run[k] for k in keys), []).append(run)
    return found


def summarize(runs):
    """One tool over one workload at one place. Failed runs count as failed, and not in the times."""
    good = [r for r in runs if r["check"] == "ok"]
    keys = ("place", "filesystem", "cache", "workload", "files", "bytes", "tool")
    result = {k: runs[0][k] for k in keys}
    result |= {"runs": len(runs), "failed": len(runs) - len(good)}
    if good:
        seconds = [r["seconds"] for r in good]
        median = statistics.median(seconds)
        peaks = [r["rank0_peak_kib"] for r in good if r["rank0_peak_kib"] is not None]
        result |= {
            "median_seconds": median,
            "min_seconds": min(seconds),
            "max_seconds": max(seconds),
            "median_seconds_with_sync": statistics.median(r["seconds"] + r["sync_seconds"] for r in good),
            "files_per_second": result["files"] / median,
            "megabytes_per_second": result["bytes"] / 1e6 / median,
            "median_cpu_seconds": statistics.median(r["user_seconds"] + r["system_seconds"] for r in good),
            "rank0_peak_kib": max(peaks) if peaks else None,
        }
    return result


def add_ratios(results):
    """How many times as fast as the reference, in time and in time with sync."""
    reference = next((r for r in results if r["tool"] == REFERENCE and "median_seconds" in r), None)
    for r in results:
        if reference and "median_seconds" in r:
            for name in ("median_seconds", "median_seconds_with_sync"):
                r["speed_to_cp" + name.removeprefix("median_seconds")] = reference[name] / r[name]


def print_table(results):
    first = results[0]
    print(
        f"\n{first['workload']} on {first['place']} ({first['filesystem']}, {first['cache']}): "
        f"{first['files']} files, {first['bytes'] / 1e6:.1f} MB, {first['runs']} rounds"
    )
    print(
        f"{'tool':<14} {'median s':>9} {'min..max':>17} {'+sync s':>9} {'files/s':>9} {'MB/s':>8}"
        f" {'x':>6} {'x+sync':>6} {'CPU s':>8} {'rank 0 MiB':>10}"
    )
    for r in results:
        if "median_seconds" in r:
            ratios = [f"{r[k]:.2f}" if k in r else "-" for k in ("speed_to_cp", "speed_to_cp_with_sync")]
            peak = "-" if r["rank0_peak_kib"] is None else f"{r['rank0_peak_kib'] / 1024:.1f}"
            print(
                f"{r['tool']:<14} {r['median_seconds']:9.3f} {r['min_seconds']:8.3f}..{r['max_seconds']:<7.3f}"
                f" {r['median_seconds_with_sync']:9.3f} {r['files_per_second']:9.0f}"
                f" {r['megabytes_per_second']:8.1f} {ratios[0]:>6} {ratios[1]:>6}"
                f" {r['median_cpu_seconds']:8.2f} {peak:>10}",
                end="",
            )
        else:
            print(f"{r['tool']:<14}", end="")
        print(f"  FAILED {r['failed']} of {r['runs']}" if r["failed"] else "")


def main():
    runs_file, json_file, mpi, pcopy = sys.argv[1:]
    runs = read_runs(runs_file)
    results = []
    for group in groups(runs, "place", "workload").values():
        part = [summarize(tool) for tool in groups(group, "tool").values()]
        add_ratios(part)
        print_table(part)
        results += part
    machine = {
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "mpi": mpi,
    }
    print(f"\n{machine['cpus']} CPUs, {machine['memory_bytes'] >> 20} MiB, Linux {machine['kernel']}, {mpi}; {pcopy}")
    if json_file:
        with open(json_file, "w") as f:
            json.dump({"machine": machine, "pcopy": pcopy, "results": results, "runs": runs}, f, indent=1)


if __name__ == "__main__":
    main()
