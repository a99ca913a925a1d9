//! What a destination could not hold of an entry.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

/// A kind of metadata that a destination could not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss(u16);

impl Loss {
    pub const OWNER: Self = Self(1);
    pub const XATTR: Self = Self(2);
    pub const LINK: Self = Self(4);
    pub const MODE: Self = Self(8);
    pub const ACL: Self = Self(16);
    /// The destination cannot make an entry of this type: it is not there.
    pub const SPECIAL: Self = Self(32);
    pub const TIMES: Self = Self(64);
    /// Inode flags, those of chattr(1), and the project id.
    pub const FLAGS: Self = Self(128);
    /// Each kind, by the name that `--preserve` and the manifest know it by.
    pub const KINDS: [(Self, &'static str); 8] = [
        (Self::OWNER, "ownership"),
        (Self::MODE, "mode"),
        (Self::XATTR, "xattr"),
        (Self::ACL, "acl"),
        (Self::LINK, "links"),
        (Self::SPECIAL, "special"),
        (Self::TIMES, "timestamps"),
        (Self::FLAGS, "flags"),
    ];
}

/// Metadata that the destination could not hold, one bit a kind; and which extended attributes, as far as they are known.
///
/// In journals and messages: the bits as a varint, bit 15 if names follow. Format version 1 of the journal knew the first
/// seven bits, in one byte, which reads the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unkept {
    kinds: u16,
    /// The names of the extended attributes and ACLs that are missing.
    names: Vec<ByteBuf>,
}

/// In the encoding: names follow.
const NAMED: u16 = 1 << 15;

impl From<Loss> for Unkept {
    fn from(Loss(kinds): Loss) -> Self {
        Self { kinds, names: Vec::new() }
    }
}

impl Unkept {
    /// Names of attributes that are kept of one entry, at most: a hostile tree may have any number of them.
    pub const MAX_NAMES: usize = 16;

    /// Adds a kind.
    pub fn add(&mut self, Loss(kind): Loss) {
        self.kinds |= kind;
    }

    /// Adds a kind of attributes, and the name of one of them.
    pub fn add_named(&mut self, kind: Loss, name: &[u8]) {
        self.add(kind);
        self.add_name(name);
    }

    fn add_name(&mut self, name: &[u8]) {
        if self.names.len() < Self::MAX_NAMES && !self.names.iter().any(|there| there == name) {
            self.names.push(ByteBuf::from(name));
        }
    }

    /// Adds all that another entry of the same path lacks.
    pub fn join(&mut self, other: &Self) {
        self.kinds |= other.kinds;
        other.names().for_each(|name| self.add_name(name));
    }

    /// Takes out a kind.
    pub fn remove(&mut self, Loss(kind): Loss) {
        self.kinds &= !kind;
    }

    /// Whether it holds a kind.
    pub fn has(&self, Loss(kind): Loss) -> bool {
        self.kinds & kind != 0
    }

    /// Whether anything was not kept.
    pub fn any(&self) -> bool {
        self.kinds != 0
    }

    /// The kinds by their names.
    pub fn kinds(&self) -> Vec<&'static str> {
        Loss::KINDS.into_iter().filter(|(kind, _)| self.has(*kind)).map(|(_, name)| name).collect()
    }

    /// The attributes that were not kept, as far as they are known: [`Unkept::MAX_NAMES`] at most.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.names.iter().map(|name| name.as_slice())
    }
}

impl Serialize for Unkept {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.names.is_empty() {
            return self.kinds.serialize(to);
        }
        let mut both = to.serialize_tuple(2)?;
        both.serialize_element(&(self.kinds | NAMED))?;
        both.serialize_element(&self.names)?;
        both.end()
    }
}

impl<'de> Deserialize<'de> for Unkept {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_tuple(2, Both)
    }
}

struct Both;

impl<'de> Visitor<'de> for Both {
    type Value = Unkept;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bits, and names if they say so")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut both: A) -> Result<Unkept, A::Error> {
        let kinds: u16 = both.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        if kinds & NAMED == 0 {
            return Ok(Unkept { kinds, names: Vec::new() });
        }
        let Names(names) = both.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
        Ok(Unkept { kinds: kinds & !NAMED, names })
    }
}

/// Names, which are as many and as long at most as they can be, when they are decoded.
struct Names(Vec<ByteBuf>);

/// Bytes of an attribute's name, at most: `XATTR_NAME_MAX` of linux/limits.h.
const MAX_NAME_LEN: usize = 255;

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "1 to {} names of attributes", Unkept::MAX_NAMES)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element::<ByteBuf>()? {
                    if names.len() == Unkept::MAX_NAMES || !(1..=MAX_NAME_LEN).contains(&name.len()) {
                        return Err(A::Error::invalid_length(names.len() + 1, &self));
                    }
                    names.push(name);
                }
                if names.is_empty() { Err(A::Error::invalid_length(0, &self)) } else { Ok(Names(names)) }
            }
        }
        from.deserialize_seq(Each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_as_format_1_had_them_and_names_follow() {
        let mut unkept = Unkept::from(Loss::OWNER);
        unkept.add(Loss::TIMES);
        assert_eq!(postcard::to_allocvec(&unkept), Ok(vec![65]));
        unkept.add(Loss::FLAGS);
        assert_eq!(postcard::to_allocvec(&unkept), Ok(vec![0xc1, 1]));
        (0..2).for_each(|_| unkept.add_named(Loss::XATTR, b"user.a"));
        let bytes = postcard::to_allocvec(&unkept).expect("encodes");
        assert_eq!(bytes, [[0xc3, 0x81, 2, 1, 6].as_slice(), b"user.a"].concat());
        assert_eq!(postcard::from_bytes(&bytes), Ok(unkept.clone()));
        assert_eq!((unkept.kinds(), unkept.names().len()), (vec!["ownership", "xattr", "timestamps", "flags"], 1));
        assert!(postcard::from_bytes::<Unkept>(&bytes[..bytes.len() - 1]).is_err());
        let many = |count: u8, len: u8| {
            [[0x83, 0x81, 2, count].as_slice(), &[vec![len], vec![b'x'; len.into()]].concat().repeat(count.into())]
                .concat()
        };
        assert!(postcard::from_bytes::<Unkept>(&many(16, 9)).is_ok());
        for bad in [many(17, 9), many(0, 9), many(1, 0)] {
            assert!(postcard::from_bytes::<Unkept>(&bad).is_err());
        }
    }

    #[test]
    fn no_entry_keeps_more_names_than_its_share() {
        let mut unkept = Unkept::default();
        (0..100).for_each(|n| unkept.add_named(Loss::XATTR, format!("user.{n}").as_bytes()));
        assert_eq!(unkept.names().len(), Unkept::MAX_NAMES);
    }
}
