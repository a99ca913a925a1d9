"""Is a copy right? Asked of find and diff, which share no code with what is measured."""

import subprocess
from pathlib import Path


def census(root):
    """Entries, regular files, and bytes in them; without pcopy's own records. None if it is not there."""
    if not Path(root).is_dir():
        return None
    argv = ["find", str(root), "-mindepth", "1", "-path", f"{root}/.pcopy", "-prune", "-o", "-printf", "%y%s\n"]
    lines = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.split()
    files = [int(line[1:]) for line in lines if line.startswith(b"f")]
    return len(lines), len(files), sum(files)


def contents_differ(source, copy):
    """None, or the first line of what differs."""
    argv = ["diff", "-rq", "--no-dereference", "-x", ".pcopy", str(source), str(copy)]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return None
    return (done.stdout + done.stderr).partition("\n")[0]
