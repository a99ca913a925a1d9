//! Random bytes.

#![allow(unsafe_code)]

use nix::errno::Errno;

/// 16 bytes from the kernel's random number generator.
///
/// # Errors
/// Those of getrandom(2).
pub fn random_bytes() -> Result<[u8; 16], Errno> {
    let mut bytes = [0; 16];
    // SAFETY: `bytes` has room for as many as it is asked for; so few come at once, or none.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    Errno::result(got).map(|_| bytes)
}
