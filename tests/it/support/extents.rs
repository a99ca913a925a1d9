//! Where a sparse file has data, and whether a copy of it has the same: for files too long to be read whole.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The stretches of a file that hold data, as the file system tells them.
pub fn data_extents(file: &File) -> Vec<Range<u64>> {
    let seek = |offset: u64, whence| lseek(file, i64::try_from(offset).unwrap(), whence);
    let mut extents = Vec::new();
    let mut at = 0;
    loop {
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => u64::try_from(start).unwrap(),
            Err(Errno::ENXIO) => return extents,
            Err(error) => panic!("SEEK_DATA at {at}: {error}"),
        };
        at = u64::try_from(seek(start, Whence::SeekHole).unwrap()).unwrap();
        extents.push(start..at);
    }
}

/// The first byte that differs where either of two files of the same length has data.
pub fn data_difference(old: &Path, new: &Path) -> Option<u64> {
    let files = [old, new].map(|path| File::open(path).unwrap());
    let [mut left, mut right] = [vec![0; 1 << 20], vec![0; 1 << 20]];
    for extent in files.iter().flat_map(data_extents) {
        for start in extent.clone().step_by(left.len()) {
            let len = usize::try_from(extent.end - start).unwrap().min(left.len());
            let (left, right) = (&mut left[..len], &mut right[..len]);
            files[0].read_exact_at(left, start).unwrap();
            files[1].read_exact_at(right, start).unwrap();
            if left != right {
                let same = left.iter().zip(right.iter()).take_while(|(a, b)| a == b).count();
                return Some(start + u64::try_from(same).unwrap());
            }
        }
    }
    None
}
