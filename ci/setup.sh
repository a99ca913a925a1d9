# shellcheck shell=bash
# Sourced by quickstart, test and bench: what has to be installed, and how each MPI is
# called. It changes nothing when it is sourced. The caller has set -euo pipefail.

# Not one of pcopy's exit codes (0, 1, 2, 70): nothing was copied, the machine lacks something.
readonly EXIT_SETUP=69

# mkfs and sshd live in sbin, which a plain user's PATH leaves out on Debian.
PATH=$PATH:/usr/sbin:/sbin
# Both would win over MPICC when the mpi crate looks for an MPI.
unset MPI_PKG_CONFIG CRAY_MPICH_DIR

die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "$EXIT_SETUP"
}

has() { command -v "$1" >/dev/null 2>&1; }

usage() { # [EXIT CODE]: the comment at the head of the script is its help
  sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"
  exit "${1:-0}"
}

finds_header() { # COMPILER HEADER
  has "$1" && "$1" -fsyntax-only -x c - <<<"#include <$2>" >/dev/null 2>&1
}

# bindgen loads libclang.so or a versioned name at build time, and needs clang's own headers
# (stddef.h). The clang program is not needed.
has_libclang() {
  [[ -n ${LIBCLANG_PATH:-} ]] || {
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null &&
      compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
  }
}

# Is what we want of this Debian package there, whoever installed it? By what it gives and not
# by its name, so that nothing asks for root where everything is in place.
is_there() { # PACKAGE
  case $1 in
    # cargo trusts no registry without them
    ca-certificates) [[ -s /etc/ssl/certs/ca-certificates.crt ]] ;;
    gcc) has gcc && has cc ;;
    libc6-dev) finds_header gcc stdio.h ;;
    openmpi-bin) has mpirun.openmpi && has mpicc.openmpi ;;
    libopenmpi-dev) finds_header mpicc.openmpi mpi.h ;;
    mpich) has mpirun.mpich && has mpicc.mpich ;;
    libmpich-dev) finds_header mpicc.mpich mpi.h ;;
    libclang-dev) has_libclang ;;
    acl) has setfacl ;;
    attr) has setfattr ;;
    btrfs-progs) has mkfs.btrfs ;;
    ceph-common) has ceph && has radosgw-admin ;;
    e2fsprogs) has mkfs.ext4 ;;
    exfat-fuse) has mount.exfat-fuse ;;
    exfatprogs) has mkfs.exfat ;;
    fuse3) has fusermount3 ;;
    glusterfs-client) has mount.glusterfs ;;
    glusterfs-server) has glusterd && has gluster ;;
    iproute2) has ip ;;
    libcap2-bin) has setcap ;;
    moosefs-chunkserver) has mfschunkserver ;;
    moosefs-client) has mfsmount ;;
    moosefs-master) has mfsmaster ;;
    openssh-client) has ssh-keygen ;;
    openssh-server) has sshd ;;
    slurm-client) has srun ;;
    xfsprogs) has mkfs.xfs ;;
    *) has "$1" ;; # the package is called like its program
  esac
}

apt() { # ARGUMENTS of apt-get, as root and without questions
  local run=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300
    -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@")
  if [[ $(id -u) != 0 ]]; then run=(sudo "${run[@]}"); fi
  "${run[@]}" </dev/null
}

need_packages() { # PACKAGE...
  local missing=() still=() p
  for p; do is_there "$p" || missing+=("$p"); done
  if [[ ${#missing[@]} = 0 ]]; then
    echo "Already here: $*"
    return
  fi
  echo "To install with apt-get: ${missing[*]}"
  has apt-get || die "no apt-get here (not Debian or Ubuntu): install the like of ${missing[*]} yourself"
  [[ $(id -u) = 0 ]] || has sudo ||
    die "not root and no sudo: ask for 'apt-get install ${missing[*]}', then start this again"
  # A machine whose lists were never fetched knows no package. Old lists may still do.
  apt update || echo "apt-get update failed; trying with the lists that are here" >&2
  apt install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install ${missing[*]} (see above)"
  for p in "${missing[@]}"; do is_there "$p" || still+=("$p"); done
  [[ ${#still[@]} = 0 ]] || die "installed, and yet not usable: ${still[*]}"
}

# cargo and rustc, new enough for Cargo.toml's rust-version; never installed by us: which Rust
# a machine has is its owner's decision.
need_rust() { # REPOSITORY
  local want have='' cargo_bin=${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin
  want=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$1/Cargo.toml")
  [[ -n $want ]] || die "no rust-version in $1/Cargo.toml"
  # where rustup puts it, though the shell that called us does not know yet
  if ! has cargo && [[ -x $cargo_bin/cargo ]]; then PATH=$cargo_bin:$PATH; fi
  if ! has cargo || ! has rustc; then
    rust_advice "pcopy needs Rust $want or newer, and there is no cargo and rustc on PATH."
  fi
  # rustup's rustc without a toolchain prints why and fails
  have=$(cd "$1" && rustc --version 2>&1) || rust_advice "rustc does not run: ${have%%$'\n'*}"
  [[ $have =~ ^rustc\ ([0-9]+(\.[0-9]+)+) ]] || rust_advice "rustc says '$have' instead of its version."
  if ! sort -CV <<<"$want"$'\n'"${BASH_REMATCH[1]}"; then
    rust_advice "pcopy needs Rust $want or newer; $(command -v rustc) is ${BASH_REMATCH[1]}."
  fi
  echo "Rust ${BASH_REMATCH[1]} (needs $want)"
}

rust_advice() { # WHAT IS WRONG
  {
    printf '%s: %s\n' "${0##*/}" "$1"
    if has rustup; then
      echo "  rustup is here:            rustup update stable && rustup default stable"
    else
      echo "  with rustup (rustup.rs):   curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
      echo "  or from the distribution, where it has it (Debian 13, Ubuntu 24.04 and newer):"
      echo "                             apt-get install rustup && rustup default stable"
    fi
    if [[ -n ${SUDO_USER:-} ]]; then
      echo "  Started with sudo: root may lack the Rust that $SUDO_USER has. Start this as $SUDO_USER;"
      echo "  it calls sudo itself where it must."
    fi
    echo "Then start this again."
  } >&2
  exit "$EXIT_SETUP"
}

# Sets mpi_packages, mpi_cc and mpi_run, for the caller. Always the explicit names: what mpicc and mpirun mean
# is the alternatives system's affair and changes with each MPI that is installed.
# shellcheck disable=SC2034
select_mpi() { # openmpi | mpich
  case $1 in
    openmpi)
      mpi_packages=(openmpi-bin libopenmpi-dev)
      mpi_cc=mpicc.openmpi
      # Ranks that copy wait for disks: more ranks than cores is fine, and a rank pinned to
      # one core would pin its I/O threads there too.
      mpi_run=(mpirun.openmpi --oversubscribe --bind-to none)
      if [[ $(id -u) = 0 ]]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
      fi
      ;;
    mpich)
      mpi_packages=(mpich libmpich-dev)
      mpi_cc=mpicc.mpich
      mpi_run=(mpirun.mpich)
      ;;
    *) die "which MPI is '$1'? openmpi or mpich" ;;
  esac
}

# shellcheck disable=SC2034 # for the caller
build_packages=(ca-certificates gcc libc6-dev libclang-dev)

build_release() { # REPOSITORY MPI: after select_mpi
  (cd "$1" && MPICC=$mpi_cc cargo build --release --locked --target-dir "target/$2" </dev/null)
}
