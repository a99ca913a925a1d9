"""The trees that are copied: what they take, and making them."""

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    small_files: int = 100_000
    large_mib: int = 4096
    large_disk_mib: int = 8192
    empty_files: int = 1_000_000
    skewed_mib: int = 2048
    mixed_from: tuple = ("/usr/share", "/usr/lib")
    idle_seconds: int = 10


QUICK = Sizes(2000, 64, 64, 5000, 256, ("/usr/share/perl", "/usr/share/zoneinfo", "/usr/lib/python3"), 3)


class Trees:
    def __init__(self, sizes):
        self.sizes = sizes

    def make(self, name, root, on_disk):
        """Makes the tree; its root must not be there."""
        root = Path(root)
        root.mkdir()
        if name == "small":
            make_small(root, self.sizes.small_files)
        elif name == "large":
            random_file(root / "large.bin", self.large_mib(on_disk))
        elif name == "mixed":
            make_mixed(root, self.sizes.mixed_from)
        elif name == "million":
            make_empty(root, self.sizes.empty_files)
        elif name == "skewed":
            make_skewed(root, self.sizes.skewed_mib)

    def bytes_with_copy(self, name, on_disk):
        """What the tree and a copy of it take together, roughly, with a margin."""
        sizes = self.sizes
        if name == "small":
            return sizes.small_files * 24576 + 64 * MIB
        if name == "large":
            return 2 * self.large_mib(on_disk) * MIB + 64 * MIB
        if name == "mixed":
            used = subprocess.run(["du", "-scm", *self.sizes.mixed_from], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            return (2 * int(used.stdout.split()[-2]) + 256) * MIB
        if name == "million":
            return sizes.empty_files * 3072 + 256 * MIB  # an inode and a name each, on tmpfs about 1 KiB
        return 2 * sizes.skewed_mib * MIB + 64 * MIB

    def large_mib(self, on_disk):
        return self.sizes.large_disk_mib if on_disk else self.sizes.large_mib


def random_file(path, mib):
    with open(path, "wb", buffering=0) as f:
        for _ in range(mib):
            f.write(os.urandom(MIB))


def make_small(root, count):
    generator = random.Random(1)
    dirs = [f"{root}/d{a}/e{b}/f{c}" for a in range(10) for b in range(10) for c in range(10)]
    for path in dirs:
        os.makedirs(path)
    # slices of a random pool, with a serial number in front: no two alike, none compressible
    pool = generator.randbytes(MIB)
    for i in range(count):
        size = generator.randint(1024, 16384)
        at = generator.randrange(len(pool) - 16384)
        with open(f"{dirs[i % len(dirs)]}/file{i:06d}.dat", "wb", buffering=0) as f:
            f.write(i.to_bytes(8, "little") + pool[at : at + size - 8])


def make_mixed(root, sources):
    for source in filter(os.path.isdir, sources):
        # who is not root may not read everything in there; what was made is what counts
        subprocess.run(["cp", "-a", source, str(root)], stderr=None if os.geteuid() == 0 else subprocess.DEVNULL)


def make_empty(root, count):
    for i in range(count):
        if i % 1000 == 0:
            directory = root / f"{i // 100000:03d}" / f"{i // 1000 % 100:02d}"
            directory.mkdir(parents=True)
        os.close(os.open(f"{directory}/f{i:07d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def make_skewed(root, mib):
    """80 % of the bytes in one file, the others in files of 256 KiB."""
    random_file(root / "large.bin", mib * 4 // 5)
    for d in range(mib // 5 // 4):
        directory = root / f"d{d:03d}"
        directory.mkdir()
        for i in range(16):
            (directory / f"f{i:02d}").write_bytes(os.urandom(MIB // 4))
