//! A tree that is described, not stored: what is where follows from its numbers; and the scan of it.

use pcopy::journal::{Item, encode_item};
use pcopy::plan;
use pcopy::proto::{DirBefore, Known, KnownEntry, MAX_BATCH_KNOWN, MAX_BATCH_NAMES, Names};
use pcopy::scan::ScanEvent;
use pcopy::types::{DirPath, Facts, Fate as Made, Identity, Kind, Outcome, Record, RelPath, Timestamp, Unkept};

use super::Nanos;
use super::storage::hash;

/// Directory `d` (0 is the root) has the directories from `d * fanout + 1` on, and the entries from
/// `d * files_per_dir` on.
#[derive(Clone, Debug)]
pub struct Tree {
    pub dirs: u64,
    pub fanout: u64,
    pub files_per_dir: u64,
    /// Bytes of each file.
    pub size: u64,
    /// One entry of another size.
    pub huge: Option<(u64, u64)>,
    pub range_len: u64,
    /// What goes wrong, in entries of a million.
    pub faults: Faults,
    /// Every entry was recorded by an earlier run.
    pub known: bool,
}

/// Entries of a million that are not simply copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// They cannot be opened.
    pub fail: u64,
    /// Names of one file, four each.
    pub linked: u64,
    /// Of the links: the destination cannot make them.
    pub unlinkable: u64,
    /// They are longer than a range: ten ranges.
    pub large: u64,
    /// Of the large files: they change, or are lost, once or always; or a range cannot be read.
    pub trouble: u64,
}

/// What becomes of an entry when a rank tries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Small,
    Fails,
    /// One of the names of this file.
    Linked(u64),
    Large(u64, Trouble),
}

/// What goes wrong with a large file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Nothing,
    /// It changes while its first range is read, in so many attempts.
    Changes(u8),
    /// What was written is lost, in so many attempts.
    Lost(u8),
    /// It changes before its end, in so many attempts.
    ChangesLate(u8),
    /// Its second range cannot be read.
    RangeFails,
}

/// Names of a file with several.
pub const NAMES_OF_LINKED: u64 = 4;

const MILLION: u64 = 1_000_000;

impl Tree {
    /// Directories of 1,000 files each, 100 of them in each directory.
    pub fn of(files: u64, size: u64) -> Self {
        let files_per_dir = files.min(1000);
        Self {
            dirs: files.div_ceil(files_per_dir),
            fanout: 100,
            files_per_dir,
            size,
            huge: None,
            range_len: 16 << 20,
            faults: Faults::default(),
            known: false,
        }
    }

    pub fn files(&self) -> u64 {
        self.dirs * self.files_per_dir
    }

    pub fn entries(&self) -> u64 {
        self.files() + self.dirs
    }

    pub fn size_of(&self, entry: u64) -> u64 {
        match self.huge {
            Some((huge, size)) if huge == entry => size,
            _ => self.size,
        }
    }

    pub fn subdirs(&self, dir: u64) -> std::ops::Range<u64> {
        let first = dir * self.fanout + 1;
        first.min(self.dirs)..(first + self.fanout).min(self.dirs)
    }

    pub fn parent(&self, dir: u64) -> Option<u64> {
        dir.checked_sub(1).map(|below| below / self.fanout)
    }

    pub fn fate(&self, entry: u64) -> Fate {
        let size = self.size_of(entry);
        if size > self.range_len {
            return Fate::Large(size, self.trouble(entry));
        }
        let Faults { fail, linked, large, .. } = self.faults;
        if fail + linked + large == 0 {
            return Fate::Small;
        }
        // whole groups of names, so that every name of a file is there
        let group = entry / NAMES_OF_LINKED;
        if hash(group ^ 0x11) % MILLION < linked {
            return Fate::Linked(group);
        }
        match hash(entry) % MILLION {
            luck if luck < fail => Fate::Fails,
            luck if luck < fail + large => Fate::Large(10 * self.range_len, self.trouble(entry)),
            _ => Fate::Small,
        }
    }

    fn trouble(&self, entry: u64) -> Trouble {
        let luck = hash(entry ^ 0x22);
        if luck % MILLION >= self.faults.trouble {
            return Trouble::Nothing;
        }
        let times = 1 + u8::from(luck & 1 == 1) * 2;
        match (luck >> 32) % 4 {
            0 => Trouble::Changes(times),
            1 => Trouble::Lost(times),
            2 => Trouble::ChangesLate(times),
            _ => Trouble::RangeFails,
        }
    }

    pub fn is_unlinkable(&self, entry: u64) -> bool {
        hash(entry ^ 0x33) % MILLION < self.faults.unlinkable
    }

    /// Whether the entry fails for good.
    pub fn fails(&self, entry: u64) -> bool {
        match self.fate(entry) {
            Fate::Small | Fate::Linked(_) => false,
            Fate::Fails => true,
            Fate::Large(_, trouble) => match trouble {
                Trouble::Nothing => false,
                Trouble::Changes(times) | Trouble::Lost(times) | Trouble::ChangesLate(times) => {
                    times >= pcopy::transfer::MAX_ATTEMPTS
                }
                Trouble::RangeFails => true,
            },
        }
    }

    /// The ranges of a large file.
    pub fn range_len_of(&self, size: u64) -> u64 {
        plan::range_len_of(size, false, self.range_len)
    }
}

/// The number at the end of a name, before its suffix.
pub fn number_of(name: &[u8]) -> u64 {
    let digits = name.strip_suffix(b".dat").unwrap_or(name);
    let start = digits.iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |at| at + 1);
    digits[start..].iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// The directory of this path.
pub fn dir_of(path: &RelPath) -> u64 {
    path.as_bytes().rsplit(|&byte| byte == b'/').next().map_or(0, number_of)
}

pub fn identity(size: u64) -> Identity {
    let mtime = Timestamp { sec: 1_732_178_000, nsec: 123_456_789 };
    Identity { size, mtime, ctime: mtime }
}

pub fn facts(size: u64) -> Facts {
    let Identity { mtime, ctime, .. } = identity(size);
    Facts {
        size,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        mtime,
        ctime,
        mtime_there: None,
        target: None,
        digest: Some([7; 32]),
        rdev: None,
        hardlink: None,
        unkept: Unkept::default(),
        fate: Made::Made,
    }
}

/// The scan of a tree, depth first, at a rate.
pub struct Scanner {
    tree: Tree,
    stack: Vec<(u64, DirPath)>,
    current: Option<Current>,
    /// For a name.
    name_cost: Nanos,
    dir_cost: Nanos,
}

struct Current {
    dir: u64,
    path: DirPath,
    next: u64,
    announced: bool,
}

impl Scanner {
    pub fn new(tree: &Tree, rate: u64, dir_cost: Nanos) -> Self {
        let stack = vec![(0, RelPath::root().into())];
        Self { tree: tree.clone(), stack, current: None, name_cost: super::SECOND / rate, dir_cost }
    }

    /// The next thing that the scan finds, and how long that takes.
    pub fn next(&mut self) -> Option<(ScanEvent, Nanos)> {
        if self.current.is_none() {
            let (dir, path) = self.stack.pop()?;
            self.current = Some(Current { dir, path, next: 0, announced: false });
        }
        let current = self.current.as_mut().expect("set above");
        let dir = current.dir;
        if !current.announced {
            current.announced = true;
            let path = current.path.clone();
            return Some((ScanEvent::Dir { id: dir, parent: self.tree.parent(dir), source: 0, path }, self.dir_cost));
        }
        let left = self.tree.files_per_dir - current.next;
        if left == 0 {
            return Some((self.listed(), 0));
        }
        let most = if self.tree.known { MAX_BATCH_KNOWN } else { MAX_BATCH_NAMES } as u64;
        let (first, count) = (current.next, left.min(most));
        current.next += count;
        let event = if self.tree.known {
            ScanEvent::Known { dir, entries: (first..first + count).map(|index| self.known(dir, index)).collect() }
        } else {
            ScanEvent::Names { dir, names: names(first..first + count) }
        };
        Some((event, count * self.name_cost))
    }

    /// A directory that somebody else may list, if there are more than a few; and how many are left.
    pub fn lend(&mut self) -> Option<(u64, DirPath, usize)> {
        if self.stack.len() <= 8 {
            return None;
        }
        self.stack.pop().map(|(dir, path)| (dir, path, self.stack.len()))
    }

    /// Takes a directory that was found elsewhere.
    pub fn take_back(&mut self, path: DirPath) {
        self.stack.push((dir_of(&path.to_path()), path));
    }

    fn listed(&mut self) -> ScanEvent {
        let Current { dir, path, .. } = self.current.take().expect("a directory is being listed");
        let subdirs = self.tree.subdirs(dir);
        let count = subdirs.end - subdirs.start;
        self.stack.extend(subdirs.rev().map(|sub| (sub, path.join(&name_of_dir(sub)))));
        let time = identity(0).mtime;
        let before = DirBefore { atime: time, mtime: time, ctime: time, mode_there: None, lent: false, names: None };
        ScanEvent::Listed {
            dir,
            subdirs: count,
            excluded: 0,
            before: Some(before),
            recorded: None,
            failure: None,
            retries: 0,
        }
    }

    fn known(&self, dir: u64, index: u64) -> Known {
        let entry = dir * self.tree.files_per_dir + index;
        let mut name = *b"file-00000000.dat";
        write_number(&mut name, index);
        // ranks would compare it with what is there
        let path = RelPath::root();
        let outcome = Outcome::Done(facts(self.tree.size_of(entry)));
        let mut record = Vec::new();
        encode_item(&Item::Entry(Record { path, kind: Kind::File, outcome }), &mut record);
        let recorded = KnownEntry { number: entry, record };
        Known { name: name.to_vec(), kind: Kind::File, entry: Some(recorded), partial: None }
    }
}

/// The names of entries of any directory, by their numbers in it.
pub fn names(range: std::ops::Range<u64>) -> Names {
    let mut names = Names::default();
    let mut name = *b"file-00000000.dat";
    for index in range {
        write_number(&mut name, index);
        names.push(&name, Kind::File);
    }
    names
}

pub fn name_of_dir(dir: u64) -> Vec<u8> {
    format!("directory-{dir}").into_bytes()
}

/// Puts a number of up to eight digits into the name.
fn write_number(name: &mut [u8; 17], mut number: u64) {
    for digit in name[5..13].iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
    }
}
