//! Memory for direct I/O.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A block of memory aligned to [`Buffer::ALIGN`], for `O_DIRECT`.
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl Buffer {
    /// Bytes. No file system in use wants more of the memory's address than a page.
    pub const ALIGN: usize = 4096;

    /// Zeroed memory of `len` bytes, rounded up to the alignment; at least one unit of it.
    pub fn new(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(Self::ALIGN);
        let layout = Layout::from_size_align(len, Self::ALIGN).expect("a block is far below half the address space");
        // SAFETY: the layout has a size of at least one page.
        let start = unsafe { alloc_zeroed(layout) };
        Self { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and not freed before.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `layout.size()` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Buffer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_rounded_up() {
        for (wanted, len) in [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192)] {
            let mut buffer = Buffer::new(wanted);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % Buffer::ALIGN, 0);
            assert!(buffer.iter().all(|&b| b == 0));
            buffer[len - 1] = 7;
            assert_eq!(buffer[len - 1], 7);
        }
    }
}
