//! The job file: which copy a state directory belongs to, so that the same command line goes on with it, whatever is at the
//! destination by then.
//!
//! One JSON object in `job.json`, format version 1:
//!
//! | field | is |
//! |---|---|
//! | `pcopy_job`, `oldest_reader` | version of the format; oldest version whose readers understand it |
//! | `id` | number of the job, 16 hexadecimal digits: part of temporary names, and of its journals' headers |
//! | `secret` | 32 hexadecimal digits: temporary names are made of it. Not in what earlier versions wrote, which made names that anybody can make: their temporary files are not used |
//! | `started` | of the first run, UTC, RFC 3339 |
//! | `began` | the same by the destination's clock: `sec` and `nsec` since 1970 |
//! | `sources` | as they were given: `path` (absolute, without symbolic links, control bytes and what is not UTF-8 escaped), `given` (the user's words), `contents`: it was to go into the destination without its name; `is_dir` |
//! | `root` | absolute path of the copy's root |
//! | `options` | every choice that decides what the copy is |
//! | `runs` | how many runs there were; the last one's generation |
//! | `complete` | the last run came to its end, with failed entries or without |
//! | `abandoned` | numbers of earlier jobs whose temporary files may be left in the copy |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Need, Obstacle, obstacle};
use crate::sys::{Errno, Reading, close, create_new, open_read, remove_file, rename, sync_dir};
use crate::types::{Secret, Timestamp};

const FORMAT_VERSION: u32 = 1;
const OLDEST_READER: u32 = 1;
/// Its name in the state directory.
pub const JOB_NAME: &str = "job.json";
/// Under which it is written.
pub(super) const NEW_NAME: &[u8] = b"job.json.new";
/// Bytes that are read of one, at most: more than the longest command line makes.
const MAX_LEN: u64 = 1 << 30;

/// What is known of the job that a state directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFile {
    pcopy_job: u32,
    oldest_reader: u32,
    #[serde(with = "hex")]
    pub id: u64,
    #[serde(default, with = "hex_secret", skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    pub started: String,
    pub began: Timestamp,
    pub sources: Vec<SourceName>,
    pub root: String,
    pub options: BTreeMap<String, Value>,
    pub runs: u32,
    pub complete: bool,
    /// Entries that failed in the run that came to the end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors: u64,
    #[serde(default, with = "hex_list")]
    pub abandoned: Vec<u64>,
    /// What a newer version has written beside.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A source as the user gave it. Two are equal when they lead to the same place, by whatever words.
#[derive(Clone, Debug, Eq, Serialize, Deserialize)]
pub struct SourceName {
    /// Without symbolic links.
    pub path: String,
    /// In the user's words, made absolute.
    pub given: String,
    /// Its copy was to have the destination's name, not its own.
    pub contents: bool,
    #[serde(default)]
    pub is_dir: bool,
}

impl PartialEq for SourceName {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, self.contents) == (&other.path, other.contents)
    }
}

/// A job file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JobFileError {
    #[error("is not a job file: {0}")]
    Garbage(serde_json::Error),
    #[error("was written by a newer pcopy (format version {0})")]
    Newer(u32),
    #[error("{0}")]
    Obstacle(Obstacle),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl JobFile {
    /// Of a job that has not begun.
    pub fn new(
        (id, secret): (u64, Secret),
        started: String,
        sources: Vec<SourceName>,
        root: String,
        options: BTreeMap<String, Value>,
    ) -> Self {
        Self {
            pcopy_job: FORMAT_VERSION,
            oldest_reader: OLDEST_READER,
            id,
            secret: Some(secret),
            started,
            began: Timestamp::default(),
            sources,
            root,
            options,
            runs: 0,
            complete: false,
            errors: 0,
            abandoned: Vec::new(),
            rest: BTreeMap::new(),
        }
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, or is none that this version understands.
    pub fn read(dir: &OwnedFd) -> Result<Option<Self>, JobFileError> {
        Self::read_up_to(dir, MAX_LEN)
    }

    /// Reads one that may be anybody's: of a longer one the end is missing, which makes it garbage.
    ///
    /// # Errors
    /// As [`JobFile::read`].
    pub(super) fn read_up_to(dir: &OwnedFd, len: u64) -> Result<Option<Self>, JobFileError> {
        // looked at before it is opened: a device would hear of that
        match obstacle(dir.as_fd(), JOB_NAME.as_bytes(), Need::Read) {
            Ok(None) => {}
            Ok(Some(obstacle)) => return Err(JobFileError::Obstacle(obstacle)),
            Err(err) => return Err(JobFileError::Io(err.into())),
        }
        let file = match open_read(dir.as_fd(), JOB_NAME.as_bytes(), Reading::default()) {
            Err(Errno::ENOENT) => return Ok(None),
            file => file.map_err(io::Error::from)?,
        };
        let mut text = Vec::new();
        File::from(file).take(len).read_to_end(&mut text)?;
        #[derive(Deserialize)]
        struct Versions {
            pcopy_job: u32,
            oldest_reader: u32,
        }
        let versions: Versions = serde_json::from_slice(&text).map_err(JobFileError::Garbage)?;
        if versions.oldest_reader > FORMAT_VERSION {
            return Err(JobFileError::Newer(versions.pcopy_job));
        }
        serde_json::from_slice(&text).map(Some).map_err(JobFileError::Garbage)
    }

    /// Writes it: when this returns it is durable under its name.
    ///
    /// # Errors
    /// It cannot be written, made durable or renamed.
    pub fn write(&self, dir: &OwnedFd) -> io::Result<()> {
        match remove_file(dir.as_fd(), NEW_NAME) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(err) => return Err(err.into()),
        }
        let mut file = File::from(create_new(dir.as_fd(), NEW_NAME, 0o600)?);
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        close(file.into())?;
        rename(dir.as_fd(), NEW_NAME, JOB_NAME.as_bytes())?;
        Ok(sync_dir(dir.as_fd())?)
    }

    /// Whether it copies these, each to the same place below its root: there a lone directory is the root itself, with
    /// a slash behind its name and without.
    pub fn copies(&self, sources: &[SourceName]) -> bool {
        match (self.sources.as_slice(), sources) {
            ([old], [new]) if old.is_dir && new.is_dir => old.path == new.path,
            (old, new) => old == new,
        }
    }

    /// The names of the options that differ.
    pub fn changed_options(&self, options: &BTreeMap<String, Value>) -> Vec<String> {
        let names = self.options.keys().chain(options.keys().filter(|name| !self.options.contains_key(*name)));
        names.filter(|name| self.options.get(*name) != options.get(*name)).cloned().collect()
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{id:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        u64::from_str_radix(&String::deserialize(from)?, 16).map_err(D::Error::custom)
    }
}

mod hex_secret {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::types::Secret;

    pub(super) fn serialize<S: Serializer>(secret: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
        let secret = secret.expect("none is left out").bytes();
        to.serialize_str(&format!("{:032x}", u128::from_be_bytes(secret)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
        let bytes = u128::from_str_radix(&String::deserialize(from)?, 16).map_err(D::Error::custom)?;
        Ok(Some(Secret::new(bytes.to_be_bytes())))
    }
}

mod hex_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(ids: &[u64], to: S) -> Result<S::Ok, S::Error> {
        ids.iter().map(|id| format!("{id:016x}")).collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| u64::from_str_radix(text, 16).map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::open_root;

    fn source(contents: bool, is_dir: bool) -> SourceName {
        SourceName { path: "/a\\n".into(), given: "/b".into(), contents, is_dir }
    }

    fn job() -> JobFile {
        let sources = vec![source(true, true)];
        let options = BTreeMap::from([("digest".to_string(), Value::Bool(true)), ("x".to_string(), Value::Null)]);
        JobFile {
            abandoned: vec![7],
            ..JobFile::new((0xabc, Secret::new([3; 16])), "2026-11-21T00:00:00Z".into(), sources, "/b".into(), options)
        }
    }

    #[test]
    fn a_job_file_is_read_as_it_was_written_and_keeps_what_is_not_known() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = open_root(home.path()).expect("opens");
        assert!(matches!(JobFile::read(&dir), Ok(None)));
        job().write(&dir).expect("written");
        assert_eq!(JobFile::read(&dir).expect("read"), Some(job()));
        let text = std::fs::read_to_string(home.path().join(JOB_NAME)).expect("text");
        assert!(text.contains(r#""id": "0000000000000abc""#), "{text}");
        assert!(text.contains(r#""secret": "03030303030303030303030303030303""#), "{text}");
        let newer = text.replacen('{', r#"{"later": [1], "#, 1).replace(r#""pcopy_job": 1"#, r#""pcopy_job": 2"#);
        std::fs::write(home.path().join(JOB_NAME), newer).expect("written");
        let read = JobFile::read(&dir).expect("read").expect("there");
        assert_eq!((read.pcopy_job, read.rest.len()), (2, 1));
        read.write(&dir).expect("written again");
        assert_eq!(JobFile::read(&dir).expect("read"), Some(read));
    }

    #[test]
    fn a_job_file_of_a_version_without_secrets_is_read() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = open_root(home.path()).expect("opens");
        job().write(&dir).expect("written");
        let text = std::fs::read_to_string(home.path().join(JOB_NAME)).expect("text");
        let older: String = text.split_inclusive('\n').filter(|line| !line.contains("\"secret\"")).collect();
        assert_ne!(older, text);
        std::fs::write(home.path().join(JOB_NAME), older).expect("written");
        assert_eq!(JobFile::read(&dir).expect("read"), Some(JobFile { secret: None, ..job() }));
    }

    #[test]
    fn what_is_no_job_file_is_told_apart() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = open_root(home.path()).expect("opens");
        for garbage in ["", "{", "[]", r#"{"pcopy_job": 1, "oldest_reader": 1}"#] {
            std::fs::write(home.path().join(JOB_NAME), garbage).expect("written");
            assert!(matches!(JobFile::read(&dir), Err(JobFileError::Garbage(_))), "{garbage}");
        }
        std::fs::write(home.path().join(JOB_NAME), r#"{"pcopy_job": 9, "oldest_reader": 2}"#).expect("written");
        assert!(matches!(JobFile::read(&dir), Err(JobFileError::Newer(9))));
    }

    #[test]
    fn a_lone_directory_is_the_same_source_with_a_slash_and_without() {
        assert!(job().copies(&[source(true, true)]) && job().copies(&[source(false, true)]));
        // what was a file is in the copy under its name
        assert!(!job().copies(&[source(false, false)]));
        let file = JobFile { sources: vec![source(false, false)], ..job() };
        assert!(file.copies(&[source(false, false)]) && !file.copies(&[source(true, true)]));
        let several = JobFile { sources: vec![source(true, true), source(true, true)], ..job() };
        assert!(!several.copies(&[source(true, true), source(false, true)]) && !several.copies(&[source(true, true)]));
        let elsewhere = SourceName { path: "/c".into(), ..source(true, true) };
        assert!(!job().copies(&[elsewhere]) && !job().copies(&[]));
    }

    #[test]
    fn changed_options_are_named() {
        let mut options = job().options;
        assert!(job().changed_options(&options).is_empty());
        options.insert("digest".into(), Value::Bool(false));
        options.remove("x");
        options.insert("y".into(), Value::Null);
        assert_eq!(job().changed_options(&options), ["digest", "x", "y"]);
    }
}
