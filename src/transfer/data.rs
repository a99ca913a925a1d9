//! The bytes of a file: read a block, hash it, write it.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{At, DEST, Mover, Place, SOURCE};
use crate::digest::PieceHasher;
use crate::plan::Range;
use crate::proto::{Direct, Reflink, Sparse};
use crate::sys::{
    Buffer, End, Errno, Meta, Reading, errno_of_lost_write, next_data, open_read, open_write, share_blocks, sync_file,
};
use crate::types::{Call, Failure, Op, Verdict};
use crate::watch;

/// Bytes. Below it, direct I/O costs more than the page cache on every file system measured.
const DIRECT_MIN_LEN: u64 = 1 << 20;
/// Bytes. Below it, writing the data costs less than sharing its blocks.
const SHARE_MIN_LEN: u64 = 128 << 10;

/// Bytes of a block where neither side is direct: what was read is still in the processor's cache when it is hashed and
/// written.
const CACHED_BLOCK_LEN: usize = 512 << 10;

/// How copying a span of a file went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Span {
    Copied,
    /// The source ended before its length, or has bytes where it should have none.
    NotItsLength,
}

/// A file that is being copied, open on both sides.
pub(super) struct Pair<'a> {
    /// What it is called at the destination, and where.
    made: (BorrowedFd<'a>, &'a [u8]),
    /// Bytes of the whole file.
    len: u64,
    dev: u64,
    /// Its data alone is copied, into a destination that is a hole.
    sparse: bool,
    /// The destination has its length already, whatever is written.
    has_length: bool,
    pub(super) from: End,
    pub(super) to: End,
}

impl<'a> Pair<'a> {
    /// A small file, whose descriptors are open on both sides; `meta` is the source's.
    pub(super) fn small(
        mover: &Mover,
        (place, made): (&Place, (BorrowedFd<'a>, &'a [u8])),
        (from, to): (OwnedFd, OwnedFd),
        meta: &Meta,
        (sparse, has_length): (bool, bool),
    ) -> Self {
        let (from, to) = if mover.wants_direct(meta.size) {
            let (dir, name) = place.source();
            let from = End::direct_source(from, dir, name, mover.reading);
            (mover.preferring(from), End::direct_destination(to, made.0, made.1))
        } else {
            (End::buffered(from), End::buffered(to))
        };
        Self { made, len: meta.size, dev: meta.dev, sparse, has_length, from, to }
    }

    /// A file that is copied in ranges, whose source is open already; `meta` is the source's.
    pub(super) fn large(
        mover: &Mover,
        made: (BorrowedFd<'a>, &'a [u8]),
        from: End,
        meta: &Meta,
        sparse: bool,
    ) -> Result<Self, Failure> {
        let to = if mover.wants_direct(meta.size) {
            End::open_destination(made.0, made.1).at(Op::Open, DEST)?
        } else {
            End::buffered(open_write(made.0, made.1).at(Op::Open, DEST)?)
        };
        mover.check_temporary(to.plain()).at(Op::Open, DEST)?;
        let from = mover.preferring(from);
        Ok(Self { made, len: meta.size, dev: meta.dev, sparse, has_length: true, from, to })
    }
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

    /// A source, from memory where it is there, if the user has not said otherwise.
    fn preferring(&self, from: End) -> End {
        if self.job.tuning.direct == Direct::Auto { from.preferring_cache() } else { from }
    }

    /// Whether the copy of a file gets the holes that its source has.
    pub(super) fn keeps_holes(&self, meta: &Meta) -> bool {
        self.job.tuning.sparse != Sparse::Never && meta.is_sparse()
    }

    /// Copies `range` of the source to the same place of the destination: read and written, or shared. Returns what the
    /// hasher makes of it, where digests are wanted; `new_hasher` is for this range.
    pub(super) fn copy_piece(
        &mut self,
        pair: &mut Pair<'_>,
        range: Range,
        new_hasher: impl Fn() -> PieceHasher,
    ) -> Result<(Span, Option<[u8; 32]>), Failure> {
        let digest = self.job.tuning.digest;
        if self.share(pair, range)? {
            if !digest {
                self.task.bytes_moved += range.len;
                return Ok((Span::Copied, None));
            }
            // the digest is that of the copy: the source may have changed since
            let mut hasher = new_hasher();
            let mut back = self.open_copy(pair)?;
            let span = self.copy_span(&mut back, None, range, pair.sparse, Some(&mut hasher))?;
            return Ok((span, Some(hasher.finish())));
        }
        let reads_back = self.node.reads_back(range.len, pair.has_length);
        let mut hasher = (digest || reads_back).then(&new_hasher);
        let span = self.copy_span(&mut pair.from, Some(&mut pair.to), range, pair.sparse, hasher.as_mut())?;
        let value = hasher.map(PieceHasher::finish);
        if let Some(value) = value.filter(|_| reads_back && span == Span::Copied) {
            self.read_back(pair, range, new_hasher(), value)?;
        }
        Ok((span, value.filter(|_| digest)))
    }

    fn open_copy(&self, pair: &Pair<'_>) -> Result<End, Failure> {
        let ((dir, name), reading) = (pair.made, Reading::default());
        if self.wants_direct(pair.len) || self.node.reads_back(pair.len, pair.has_length) {
            return End::open_source(dir, name, reading).at(Op::Open, DEST);
        }
        Ok(End::buffered(open_read(dir, name, reading).at(Op::Open, DEST)?))
    }

    /// Demands that a range which was written is there, past the page cache: where a file system may say that it has taken
    /// data which it then loses. Where that is for want of space, it is the errno.
    fn read_back(
        &mut self,
        pair: &Pair<'_>,
        range: Range,
        mut hasher: PieceHasher,
        value: [u8; 32],
    ) -> Result<(), Failure> {
        sync_file(pair.to.plain()).at(Op::Fsync, DEST)?;
        let mut back = self.open_copy(pair)?;
        let moved = self.task.bytes_moved;
        let span = self.copy_span(&mut back, None, range, false, Some(&mut hasher))?;
        self.task.bytes_moved = moved;
        if span == Span::Copied && hasher.finish() == value {
            return Ok(());
        }
        Err(errno_of_lost_write(pair.to.plain(), range.len)).at(Op::Write, DEST)
    }

    /// Lets the destination share the source's blocks, where that is wanted and possible.
    fn share(&self, pair: &Pair<'_>, range: Range) -> Result<bool, Failure> {
        let tuning = &self.job.tuning;
        let wanted = match tuning.reflink {
            Reflink::Auto => pair.len >= SHARE_MIN_LEN && self.node.may_share(pair.dev),
            Reflink::Always => range.len > 0,
            Reflink::Never => false,
        };
        if !wanted || tuning.sparse != Sparse::Auto {
            return Ok(false);
        }
        match share_blocks(pair.from.plain(), pair.to.plain(), range.offset, range.len) {
            Ok(()) => Ok(true),
            Err(err) if tuning.reflink == Reflink::Always => Err(err).at(Op::Clone, DEST),
            Err(err) => match Call::Clone.verdict(DEST, err) {
                // No space, or an error of the disk: a copy of the data would fail too.
                Verdict::Halt(_) | Verdict::Again => Err(err).at(Op::Clone, DEST),
                verdict => {
                    // It holds for all files of these two file systems.
                    if verdict == Verdict::Unsupported {
                        self.node.never_shares(pair.dev);
                    }
                    Ok(false)
                }
            },
        }
    }

    /// Copies `range` to the same place of `to`, or only reads it; of a sparse file its data only.
    pub(super) fn copy_span(
        &mut self,
        from: &mut End,
        mut to: Option<&mut End>,
        range: Range,
        sparse: bool,
        mut hasher: Option<&mut PieceHasher>,
    ) -> Result<Span, Failure> {
        let end = range.offset + range.len;
        let side = if to.is_some() { SOURCE } else { DEST };
        // files of /proc and the like have no length, but content
        if range.len == 0 && from.read(&mut self.buffer, 1, 0).at(Op::Read, side)? > 0 {
            return Ok(Span::NotItsLength);
        }
        let punches = self.job.tuning.sparse == Sparse::Always;
        let mut at = range.offset;
        while at < end {
            let (data, data_end) =
                if sparse { next_data(from.plain(), at, end).at(Op::Seek, side)? } else { (at, end) };
            if let Some(hasher) = &mut hasher {
                hasher.update_zeros(data - at);
            }
            at = data;
            while at < data_end {
                let direct = from.is_direct() || to.as_ref().is_some_and(|to| to.is_direct());
                let block_len = self.job.tuning.block_len.min(if direct { usize::MAX } else { CACHED_BLOCK_LEN });
                let len = usize::try_from(data_end - at).map_or(block_len, |left| left.min(block_len));
                self.throttle.wait(len, || self.is_halting());
                if self.is_halting() {
                    return Err(Failure::STOPPED);
                }
                let got = from.read(&mut self.buffer, len, at).at(Op::Read, side)?;
                if got < len {
                    return Ok(Span::NotItsLength);
                }
                if let Some(hasher) = &mut hasher {
                    hasher.update(&self.buffer[..len]);
                }
                let block = &self.buffer[..len];
                if let Some(to) = &mut to {
                    if punches { write_data(to, block, at) } else { to.write(block, at) }.at(Op::Write, DEST)?;
                }
                at += len as u64;
                self.task.bytes_moved += len as u64;
                if at < data_end {
                    watch::goes_on();
                }
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
