//! Name collisions: two names of the source that the destination takes for one.
//!
//! File systems ignore case (exFAT, NTFS, ext4 with casefold), normalise Unicode (APFS, ZFS), leave out dots and spaces at a
//! name's end (SMB), or have short aliases of names (FAT). Then the second name finds the first one's entry. It is known by
//! what the destination lists: an entry that is reached by a name and not listed under it has another name. Where names are
//! listed in lower case (lowntfs-3g with `ignore_case`) nothing tells whose entry it is: there both names are errors then.
//!
//! Asked only where something stands under the name already, which in a first run is nowhere else. There a directory costs
//! one more lookup, and a listing where names can collide.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

use crate::sys::{Errno, Meta, Reading, close, create_new, list, open_dir_at, random_bytes, remove_file};

/// The error for a name that the destination takes for that of another entry. No file system returns this errno.
pub const COLLISION: Errno = Errno::ENOTUNIQ;

/// Names that a thread remembers of one directory, at most.
const MAX_REMEMBERED: usize = 1 << 20;

/// Bytes. Some file systems cut longer names.
const MAX_PLAIN_LEN: usize = 128;

/// What a thread knows of the destination's directory that it looked at last.
#[derive(Default)]
pub struct Collisions {
    /// A directory that tells upper case from lower case.
    cased: Option<Arc<OwnedFd>>,
    /// A directory that was listed, and the hashes of its names.
    listed: Option<(Arc<OwnedFd>, HashSet<u64>)>,
    /// A directory, and whether it lists upper case.
    upper_case: Option<(Arc<OwnedFd>, bool)>,
    hasher: RandomState,
}

impl Collisions {
    /// Whether the entry that `name` leads to, in a directory of the destination, is that of another name of the source.
    /// `others` lists the names of the source that are copied to this directory; `None`: they cannot be listed together.
    ///
    /// # Errors
    /// Those of fstatat(2), open(2) and getdents64(2); those of `others`.
    pub fn has_other(
        &mut self,
        dir: &Arc<OwnedFd>,
        name: &[u8],
        others: impl FnOnce() -> Result<Option<Vec<Vec<u8>>>, Errno>,
    ) -> Result<bool, Errno> {
        if !self.may_collide(dir, name)? {
            return Ok(false);
        }
        let is_listed = self.is_listed(dir, name)?;
        if is_listed && (!is_plain(name) || !is_lower_case(name)) {
            return Ok(false);
        }
        let Some(others) = others()? else { return Ok(!is_listed || !self.lists_upper_case(dir)?) };
        let folded = fold(name);
        let there = Meta::at(dir.as_fd(), name)?;
        let may_be_of = |other: &Vec<u8>| {
            let is_same = || Meta::at(dir.as_fd(), other).is_ok_and(|other| other.is_same(&there));
            fold(other) == folded || (!is_plain(name) && is_same())
        };
        if !others.iter().any(|other| other != name && may_be_of(other)) {
            return Ok(false);
        }
        Ok(!is_listed || !self.lists_upper_case(dir)?)
    }

    /// Whether the directory lists names in upper case as such: tried once a directory, with a file.
    fn lists_upper_case(&mut self, dir: &Arc<OwnedFd>) -> Result<bool, Errno> {
        if let Some((_, lists)) = self.upper_case.as_ref().filter(|(of, _)| Arc::ptr_eq(of, dir)) {
            return Ok(*lists);
        }
        let name = format!(".PCOPY-{:032X}", u128::from_ne_bytes(random_bytes()?)).into_bytes();
        let file = create_new(dir.as_fd(), &name, 0o600)?;
        let lists = self.is_listed(dir, &name);
        remove_file(dir.as_fd(), &name)?;
        close(file)?;
        let lists = lists?;
        self.upper_case = Some((Arc::clone(dir), lists));
        Ok(lists)
    }

    /// Whether the directory may have the entry under another name: a variant of the name leads to an entry too.
    fn may_collide(&mut self, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<bool, Errno> {
        if !is_plain(name) {
            return Ok(true);
        }
        let is_cased = self.cased.as_ref().is_some_and(|cased| Arc::ptr_eq(cased, dir));
        if is_cased && name.is_ascii() {
            return Ok(false);
        }
        for variant in variants(name) {
            match Meta::at(dir.as_fd(), &variant) {
                Ok(_) => return Ok(true),
                // what the file system does not take for a name stands for no entry
                Err(Errno::ENOENT | Errno::ENAMETOOLONG | Errno::EINVAL | Errno::EILSEQ) => {}
                Err(err) => return Err(err),
            }
        }
        if name.iter().any(u8::is_ascii_alphabetic) {
            self.cased = Some(Arc::clone(dir));
        }
        Ok(false)
    }

    /// Whether the directory lists exactly this name.
    fn is_listed(&mut self, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<bool, Errno> {
        let hash = self.hasher.hash_one(name);
        let remembered = self.listed.as_ref().filter(|(of, _)| Arc::ptr_eq(of, dir));
        if remembered.is_some_and(|(_, names)| names.contains(&hash)) {
            return Ok(true);
        }
        // other names may have come since it was listed
        let (mut names, mut found) = (HashSet::new(), false);
        list(open_dir_at(dir.as_fd(), b".", Reading::default())?, |entry| {
            found |= entry.name == name;
            if names.len() < MAX_REMEMBERED {
                names.insert(self.hasher.hash_one(entry.name));
            }
            if found && names.len() == MAX_REMEMBERED { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.listed = Some((Arc::clone(dir), names));
        Ok(found)
    }
}

/// Whether no file system is known to give a name another form, but for case and Unicode normalisation: no alias of a long
/// name (`~`), no character or end that SMB or NTFS replaces or leaves out, not so long that it may be cut.
fn is_plain(name: &[u8]) -> bool {
    let has_form = |c: char| c.is_control() || "\"*/:<>?\\|~".contains(c) || ('\u{e000}'..='\u{f8ff}').contains(&c);
    match std::str::from_utf8(name) {
        Ok(name) => name.len() <= MAX_PLAIN_LEN && !name.contains(has_form) && !name.ends_with(['.', ' ']),
        Err(_) => false,
    }
}

/// Whether a name is what a file system would list that lists all names in lower case.
fn is_lower_case(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    name.chars().flat_map(char::to_lowercase).eq(name.chars())
}

/// The names that lead to the same entry where case is ignored, or Unicode normalised.
fn variants(name: &[u8]) -> Vec<Vec<u8>> {
    let Ok(name) = std::str::from_utf8(name) else { return Vec::new() };
    let swapped = |c: char| if c.is_lowercase() { c.to_uppercase().to_string() } else { c.to_lowercase().to_string() };
    let mut variants: Vec<String> = vec![name.chars().map(swapped).collect()];
    if !name.is_ascii() {
        variants.extend([name.nfc().collect(), name.nfd().collect()]);
    }
    variants.retain(|variant| variant != name);
    variants.into_iter().map(String::into_bytes).collect()
}

/// The form in which names are the same that some file system takes for one.
fn fold(name: &[u8]) -> String {
    let folded: String = String::from_utf8_lossy(name).nfkc().flat_map(char::to_lowercase).collect();
    folded.nfkc().collect::<String>().trim_end_matches(['.', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys::open_root;

    #[test]
    fn names_that_some_file_system_takes_for_one_fold_to_the_same() {
        for (one, other) in [("README", "Readme"), ("É", "e\u{301}"), ("STRASSE.", "strasse"), ("ﬁ", "FI")] {
            assert_eq!(fold(one.as_bytes()), fold(other.as_bytes()), "{one} {other}");
        }
        assert_ne!(fold(b"a"), fold(b"b"));
    }

    #[test]
    fn variants_differ_in_case_or_form_and_names_without_any_have_none() {
        assert_eq!(variants(b"Readme"), [b"rEADME".to_vec()]);
        assert!(variants(b"2026-11-28").is_empty());
        assert_eq!(variants("\u{e9}".as_bytes()), ["\u{c9}".as_bytes(), "e\u{301}".as_bytes()]);
        for name in [b"PROGRA~1".as_slice(), b"dot.", b"a:b", b"\xff", &[b'x'; 129]] {
            assert!(!is_plain(name), "{}", name.escape_ascii());
        }
        assert!(is_plain("Grüße an alle (2).txt".as_bytes()));
        assert!(is_lower_case(b"readme-1") && !is_lower_case(b"Readme"));
    }

    #[test]
    fn where_case_is_told_apart_nothing_collides_and_one_lookup_a_directory_shows_it() {
        let home = tempfile::tempdir().expect("a directory");
        // its other form has 384 bytes
        let long = "\u{390}".repeat(64);
        for name in ["Readme", "README", "other", &long] {
            fs::write(home.path().join(name), "").expect("written");
        }
        let dir = Arc::new(open_root(home.path()).expect("opens"));
        let mut collisions = Collisions::default();
        let mut has_other = |name: &[u8]| {
            collisions.has_other(&dir, name, || panic!("the source is asked only where a name is not listed"))
        };
        assert_eq!(has_other(b"README"), Ok(false));
        assert_eq!(has_other(b"other"), Ok(false));
        assert_eq!(has_other(long.as_bytes()), Ok(false));
        assert!(collisions.cased.is_some());
    }
}
