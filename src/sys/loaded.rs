//! Libraries that are loaded into this process, whoever preloaded them.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};

/// Whether a library is loaded whose file name begins like this. It may be asked before `main`.
pub fn is_loaded(mut name: &[u8]) -> bool {
    let name: *mut &[u8] = &raw mut name;
    // SAFETY: `begins` is called with this pointer only while `name` lives, for one loaded object after the other.
    unsafe { libc::dl_iterate_phdr(Some(begins), name.cast()) != 0 }
}

/// Whether an object's file name begins like this: 1 ends the search.
extern "C" fn begins(object: *mut libc::dl_phdr_info, _: usize, wanted: *mut c_void) -> c_int {
    // SAFETY: it is the pointer that `is_loaded` passed.
    let wanted: &[u8] = unsafe { *wanted.cast::<&[u8]>() };
    // SAFETY: the loader passes a valid object, whose name is null or ends in NUL.
    let path = unsafe {
        let path = (*object).dlpi_name;
        if path.is_null() { c"" } else { CStr::from_ptr(path) }
    };
    let file = path.to_bytes().rsplit(|&b| b == b'/').next().unwrap_or_default();
    c_int::from(file.starts_with(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loaded_is_told_from_what_is_not() {
        assert!(is_loaded(b"libc.so"));
        assert!(!is_loaded(b"libpil4dfs") && !is_loaded(b"ibc.so"));
    }
}
