//! One item as journals, messages and streams hold it: its length (u32), then its postcard encoding. Sorted, merged and
//! passed on it stays as it is.

use std::io::{self, Read};
use std::ops::Range;

use super::Item;

/// Bytes before an item's encoding: its length.
const PREFIX_LEN: usize = 4;
/// Bytes of an item, at most: far more than two paths of the deepest tree and a link's target. A longer one is damage.
const LONGEST: u32 = 1 << 20;

/// An item in its encoding, in memory that the next one can be read into.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    bytes: Vec<u8>,
    path: Range<usize>,
}

impl Encoded {
    /// The encoding of an item.
    pub fn of(item: &Item) -> Self {
        let mut bytes = Vec::new();
        encode_item(item, &mut bytes);
        let path = path_of(&bytes).expect("it was just encoded");
        Self { bytes, path }
    }

    /// Reads the next item in place of this one; `false` at the end.
    ///
    /// # Errors
    /// Those of reading; `InvalidData` where the bytes cannot be an item.
    pub fn read(&mut self, from: &mut impl Read) -> io::Result<bool> {
        let mut len = [0; PREFIX_LEN];
        match from.read(&mut len[..1])? {
            0 => return Ok(false),
            _ => from.read_exact(&mut len[1..])?,
        }
        let encoded_len = u32::from_le_bytes(len);
        if encoded_len > LONGEST {
            return Err(invalid(format!("an item of {encoded_len} bytes")));
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(&len);
        self.bytes.resize(PREFIX_LEN + encoded_len as usize, 0);
        from.read_exact(&mut self.bytes[PREFIX_LEN..])?;
        self.path = path_of(&self.bytes).ok_or_else(|| invalid("an item without a path".into()))?;
        Ok(true)
    }

    /// The path that it is about, below the root of the copy.
    pub fn path(&self) -> &[u8] {
        &self.bytes[self.path.clone()]
    }

    /// Whether it is an entry, and not a range of a file.
    pub fn is_entry(&self) -> bool {
        self.bytes.get(PREFIX_LEN) == Some(&0)
    }

    /// As it was read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of the item with an empty path, for a receiver that knows the path: it may be longer than the rest.
    pub fn without_path(&self) -> Vec<u8> {
        let (variant, rest) = (self.bytes[PREFIX_LEN], &self.bytes[self.path.end..]);
        let len = u32::try_from(2 + rest.len()).expect("shorter than it was");
        [&len.to_le_bytes(), [variant, 0].as_slice(), rest].concat()
    }

    /// The item itself.
    ///
    /// # Errors
    /// `InvalidData` where the bytes are no item.
    pub fn decode(&self) -> io::Result<Item> {
        // An item that was never read has no bytes.
        let item = self.bytes.get(PREFIX_LEN..).unwrap_or_default();
        match postcard::take_from_bytes(item) {
            Ok((item, [])) => Ok(item),
            Ok(_) => Err(invalid("bytes behind an item".into())),
            Err(err) => Err(io::Error::new(io::ErrorKind::InvalidData, err)),
        }
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Where in an encoded item its path is: behind the length, the variant in one byte, and the path's length as a varint.
pub(super) fn path_of(item: &[u8]) -> Option<Range<usize>> {
    let (len, rest) = postcard::take_from_bytes::<u64>(item.get(PREFIX_LEN + 1..)?).ok()?;
    let start = item.len() - rest.len();
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    (end <= item.len()).then_some(start..end)
}

/// Appends the item as journals and messages hold it.
pub fn encode_item(item: &Item, into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(&[0; PREFIX_LEN]);
    let mut grown = postcard::to_extend(item, std::mem::take(into)).expect("an item always encodes into memory");
    let len = u32::try_from(grown.len() - start - PREFIX_LEN).expect("a path is far below 4 GiB");
    grown[start..start + PREFIX_LEN].copy_from_slice(&len.to_le_bytes());
    *into = grown;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Failure, Kind, Outcome, Record, RelPath};

    fn item() -> Vec<u8> {
        let record =
            Record { path: RelPath::root().join(b"f"), kind: Kind::File, outcome: Outcome::Failed(Failure::CHANGED) };
        Encoded::of(&Item::Entry(record)).bytes().to_vec()
    }

    fn decoded(mut bytes: &[u8]) -> io::Result<Item> {
        let mut encoded = Encoded::default();
        encoded.read(&mut bytes)?;
        encoded.decode()
    }

    #[test]
    fn what_is_no_item_is_an_error() {
        assert!(decoded(&item()).is_ok());
        let longer = |more: u32| [&more.to_le_bytes(), &item()[PREFIX_LEN..], &[0]].concat();
        let own = u32::try_from(item().len() - PREFIX_LEN).expect("short");
        for bad in [Vec::new(), vec![0; PREFIX_LEN], item()[..7].to_vec(), longer(own + 1), longer(u32::MAX)] {
            assert!(decoded(&bad).is_err(), "{bad:?}");
        }
    }
}
