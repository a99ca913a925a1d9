//! Memory for direct I/O.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// A block of memory aligned to [`Buffer::ALIGN`], for `O_DIRECT`; of huge pages where it is large enough and the system
/// gives them on demand: each page of it has to be looked up for each direct read and write.
pub struct Buffer {
    mapping: NonNull<c_void>,
    mapping_len: usize,
    /// Offset of the block in the mapping, in bytes.
    start: usize,
    len: usize,
}

impl Buffer {
    /// Bytes. No file system in use wants more of the memory's address than a page.
    pub const ALIGN: usize = 4096;
    /// Bytes of a huge page, on the usual processors; on others the block is only aligned to more than it has to be.
    const HUGE: usize = 2 << 20;

    /// Zeroed memory of `len` bytes, rounded up to the alignment; at least one unit of it. It is there when it is touched.
    ///
    /// # Panics
    /// Without address space.
    pub fn new(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(Self::ALIGN);
        let align = if len >= Self::HUGE { Self::HUGE } else { Self::ALIGN };
        let mapping_len = len + align - Self::ALIGN;
        let wanted = NonZeroUsize::new(mapping_len).expect("a page at least");
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let mapping = unsafe { mmap_anonymous(None, wanted, access, flags) }
            .unwrap_or_else(|err| panic!("{mapping_len} bytes of memory for a buffer: {err}"));
        let start = mapping.addr().get().next_multiple_of(align) - mapping.addr().get();
        let buffer = Self { mapping, mapping_len, start, len };
        // SAFETY: the range is within the new mapping; the advice changes nothing that can be seen.
        let _no_huge_pages = unsafe { madvise(buffer.mapping.byte_add(start), len, MmapAdvise::MADV_HUGEPAGE) };
        buffer
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: the offset is within the mapping.
        unsafe { self.mapping.byte_add(self.start) }.cast()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and not unmapped before; no reference outlives `self`.
        let _never_fails = unsafe { munmap(self.mapping, self.mapping_len) };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` bytes of the mapping, initialised by the kernel, that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Buffer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_rounded_up() {
        let large = 4 << 20;
        for (wanted, len) in
            [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (large, large), (large + 1, large + 4096)]
        {
            let mut buffer = Buffer::new(wanted);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % Buffer::ALIGN, 0);
            assert!(buffer.iter().all(|&b| b == 0));
            buffer[len - 1] = 7;
            assert_eq!(buffer[len - 1], 7);
        }
    }
}
