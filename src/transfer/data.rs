//! The bytes of a file: read a block, hash it, write it.

use super::{At, DEST, Mover, SOURCE};
use crate::digest::PieceHasher;
use crate::plan::Range;
use crate::proto::{Direct, Sparse};
use crate::sys::{Buffer, End, Errno, Meta, next_data};
use crate::types::{Failure, Op};

/// Bytes. Below it, direct I/O costs more than the page cache on every file system measured.
const DIRECT_MIN_LEN: u64 = 1 << 20;

/// How copying a span of a file went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Span {
    Copied,
    /// The source ended before its length, or has bytes where it should have none.
    NotItsLength,
}

impl Mover {
    /// Whether a file of this many bytes is to be moved with `O_DIRECT`.
    pub(super) fn wants_direct(&self, len: u64) -> bool {
        match self.job.tuning.direct {
            Direct::Auto => len >= DIRECT_MIN_LEN,
            Direct::Always => len > 0,
            Direct::Never => false,
        }
    }

    /// Whether the copy of a file gets the holes that its source has.
    pub(super) fn keeps_holes(&self, meta: &Meta) -> bool {
        self.job.tuning.sparse != Sparse::Never && meta.is_sparse()
    }

    /// Copies `range` of the source to the same place of the destination; of a sparse file its data
    /// only, into a destination that is a hole there.
    pub(super) fn copy_span(
        &mut self,
        (source, dest): (&mut End, &mut End),
        range: Range,
        sparse: bool,
        mut hasher: Option<&mut PieceHasher>,
    ) -> Result<Span, Failure> {
        let end = range.offset + range.len;
        // files of /proc and the like have no length, but content
        if range.len == 0 && source.read(&mut self.buffer, 1, 0).at(Op::Read, SOURCE)? > 0 {
            return Ok(Span::NotItsLength);
        }
        let block_len = self.job.tuning.block_len;
        let punches = self.job.tuning.sparse == Sparse::Always;
        let mut at = range.offset;
        while at < end {
            let (data, data_end) =
                if sparse { next_data(source.plain(), at, end).at(Op::Seek, SOURCE)? } else { (at, end) };
            if let Some(hasher) = &mut hasher {
                hasher.update_zeros(data - at);
            }
            at = data;
            while at < data_end {
                let len = usize::try_from(data_end - at).map_or(block_len, |left| left.min(block_len));
                self.throttle.wait(len, || self.is_halting());
                if self.is_halting() {
                    return Err(Failure::STOPPED);
                }
                let got = source.read(&mut self.buffer, len, at).at(Op::Read, SOURCE)?;
                if got < len {
                    return Ok(Span::NotItsLength);
                }
                if let Some(hasher) = &mut hasher {
                    hasher.update(&self.buffer[..len]);
                }
                let block = &self.buffer[..len];
                if punches { write_data(dest, block, at) } else { dest.write(block, at) }.at(Op::Write, DEST)?;
                at += len as u64;
                self.task.bytes_moved += len as u64;
            }
        }
        Ok(Span::Copied)
    }
}

/// Writes what is not zero, by pages, into a destination that is a hole there.
fn write_data(dest: &mut End, block: &[u8], at: u64) -> Result<(), Errno> {
    static ZEROS: [u8; Buffer::ALIGN] = [0; Buffer::ALIGN];
    let is_zero = |page: &[u8]| page == &ZEROS[..page.len()];
    let mut start = 0;
    for run in block.chunks(Buffer::ALIGN).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|page| page.len()).sum();
        if !is_zero(run[0]) {
            dest.write(&block[start..start + len], at + start as u64)?;
        }
        start += len;
    }
    Ok(())
}
