//! A file for what rank 0 does not keep in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::coordinator::Store;

/// Bytes that are gathered before they are written.
const GATHERED: usize = 256 << 10;

/// Bytes of the file, at most: for some ten million files with names of usual lengths.
const MAX_LEN: u64 = 4 << 30;

/// A file without a name in the directory for temporary files (`TMPDIR`) of rank 0's node, made when it is needed.
#[derive(Default)]
pub(super) struct Spill {
    file: Option<File>,
    /// Bytes in the file, and those that are to follow.
    written: u64,
    gathered: Vec<u8>,
}

impl Spill {
    fn write(&mut self) -> std::io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        if let Some(file) = &self.file {
            file.write_all_at(&self.gathered, self.written)?;
        }
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }
}

impl Store for Spill {
    fn put(&mut self, bytes: &[u8]) -> Option<u64> {
        // what is gathered stays readable if it cannot be written
        if self.written >= MAX_LEN || (self.gathered.len() >= GATHERED && self.write().is_err()) {
            return None;
        }
        let at = self.written + self.gathered.len() as u64;
        self.gathered.extend_from_slice(bytes);
        Some(at)
    }

    fn get(&mut self, at: u64, len: u32) -> Option<Vec<u8>> {
        let len = usize::try_from(len).ok()?;
        if at >= self.written {
            let start = usize::try_from(at - self.written).ok()?;
            return self.gathered.get(start..start.checked_add(len)?).map(Vec::from);
        }
        let mut bytes = vec![0; len];
        self.file.as_ref()?.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_back_from_the_file_and_from_behind_it() {
        let mut spill = Spill::default();
        let places: Vec<_> = (0..60_000_u32).map(|n| spill.put(&n.to_le_bytes()).expect("there is room")).collect();
        let long = spill.put(&[7; GATHERED]).expect("there is room");
        let last = spill.put(b"last").expect("there is room");
        assert!(spill.file.is_some() && last >= spill.written);
        for (n, at) in (0..60_000_u32).zip(places) {
            assert_eq!(spill.get(at, 4).as_deref(), Some(n.to_le_bytes().as_slice()));
        }
        assert_eq!(spill.get(long, 3).as_deref(), Some([7; 3].as_slice()));
        assert_eq!(spill.get(last, 4).as_deref(), Some(b"last".as_slice()));
        assert_eq!(spill.get(last, 5), None);
    }
}
