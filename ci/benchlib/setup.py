"""What the benchmark runs with: packages, MPI launchers and pcopy itself, all through ci/setup.sh."""

import json
import os
import subprocess
import sys
from pathlib import Path

CI = Path(__file__).resolve().parent.parent
EXIT_SETUP = 69


def die(message, code=EXIT_SETUP):
    print(f"bench: {message}", file=sys.stderr)
    sys.exit(code)


def shell(script, *args):
    """Runs bash with ci/setup.sh sourced; what it prints."""
    script = f'set -euo pipefail; source "$0/setup.sh"; {script}'
    done = subprocess.run(["bash", "-c", script, str(CI), *args], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return done.stdout


def need_packages(*packages):
    shell('need_packages "$@" >&2', *packages)


BUILD = """
need_rust "$0/.." >&2  # it may have to extend PATH
select_mpi "$1"
need_packages "${mpi_packages[@]}" "${build_packages[@]}" >&2
build_release "$0/.." "$1"
"""


def build_pcopy(mpis):
    """The release build for each MPI: {mpi: file}."""
    for mpi in mpis:
        shell(BUILD, mpi)
    return {mpi: str(CI.parent / "target" / mpi / "release" / "pcopy") for mpi in mpis}


def build_scan(mpi):
    """The benchmark of the scan alone (ci/benches/scan.rs): its program."""
    manifest = str(CI.parent / "Cargo.toml")
    argv = ["cargo", "bench", "--bench", "scan", "--no-run", "--locked", "--quiet", "--message-format=json"]
    argv += ["--manifest-path", manifest, "--target-dir", str(CI.parent / "target" / mpi)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "MPICC": f"mpicc.{mpi}"})
    built = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    programs = [one["executable"] for one in built if one.get("executable") and one["target"]["name"] == "scan"]
    if done.returncode or not programs:
        die("ci/benches/scan.rs cannot be built")
    return programs[-1]


class Launcher:
    """One MPI's mpirun, with the options that it needs on one machine."""

    def __init__(self, mpi):
        self.mpi = mpi
        shell('select_mpi "$1"; need_packages "${mpi_packages[@]}" >&2', mpi)
        self.argv = shell('select_mpi "$1"; printf "%s\\n" "${mpi_run[@]}"', mpi).split("\n")[:-1]

    def version(self):
        text = subprocess.run([self.argv[0], "--version"], capture_output=True, text=True).stdout
        words = text.replace(":", " ").split()
        return next((w for w in words if w[0].isdigit() and "." in w), "?")


def linked_mpi(program):
    """Which MPI a program is linked with."""
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return "mpich" if "libmpich" in libraries else "openmpi"


def compile_c(name, scratch, *options):
    """Builds NAME.c from beside this file; the program's path."""
    program = Path(scratch) / name
    source = Path(__file__).with_name(f"{name}.c")
    done = subprocess.run(["gcc", "-O2", "-pthread", *options, "-o", str(program), str(source)])
    if done.returncode:
        die(f"gcc could not compile {source}")
    return str(program)


def is_root():
    return os.geteuid() == 0
