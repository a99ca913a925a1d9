//! A preloaded library that cannot carry a copy is refused before it does harm.
//!
//! DAOS's libpil4dfs (2.4 to 2.6) ends every Rust program with a segmentation fault: the standard library asks once whether
//! the kernel has statx(2), by a call with null pointers, and libpil4dfs follows them. Past that it hands out descriptors
//! of its own, on which the calls for extended attributes, links and syncs that it does not take fail with EBADF. A check in
//! `main` would come too late, so this one is a constructor of the program, which the loader runs before.

#![allow(unsafe_code)]

use std::ffi::CStr;

use pcopy::sys::is_loaded;

const REFUSED: &[u8] = b"libpil4dfs";
const LINE: &[u8] =
    b"pcopy: libpil4dfs.so is preloaded (LD_PRELOAD): pcopy cannot copy through it; preload libioil.so instead, \
or nothing\n";

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = refuse;

extern "C" fn refuse() {
    if !is_loaded(REFUSED) {
        return;
    }
    if is_first_rank() {
        // SAFETY: `LINE` is readable for its length. Should it not arrive, the exit code still tells.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len()) };
    }
    // Nothing is to be cleaned up, and the library would take part in it: no exit handlers.
    // SAFETY: it does not return.
    unsafe { libc::_exit(2) }
}

/// Whether no launcher has started this process as another rank than the first.
fn is_first_rank() -> bool {
    [c"PMI_RANK", c"OMPI_COMM_WORLD_RANK", c"PMIX_RANK", c"SLURM_PROCID"].iter().all(|variable| {
        // SAFETY: the name ends in NUL, and no other thread runs yet that could change the environment.
        let rank = unsafe { libc::getenv(variable.as_ptr()) };
        // SAFETY: what getenv returns ends in NUL.
        rank.is_null() || unsafe { CStr::from_ptr(rank) } == c"0"
    })
}
