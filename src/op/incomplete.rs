//! Refuses sources that are incomplete copies, or parts of one, unless the user gives `--incomplete-source`.
//!
//! Any user can put a `.pcopy` into a directory of his. A state directory therefore stops a job only if root or the user who
//! runs pcopy wrote it, and it is in the source itself or in a directory above it. Any other one leads to a note. A state
//! directory below a source never stops a job: it is copied, and the copy can be recognised by it as the source can.
//!
//! A copy whose state is elsewhere (`--state-dir`) shows that it is incomplete only by the mode of its root, where pcopy has
//! made that.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::refusal::{Refusal, refuse, shown};
use crate::policy::Leftovers;
use crate::state::{self, JobFile, SourceName, Standing, Unfinished, is_owner, standing};
use crate::sys::{Errno, Meta, UNFINISHED_DIR_MODE, mode_before, reach_root};
use crate::types::Kind;

/// Characters of a text that are shown of a job file.
const MAX_SHOWN: usize = 256;
/// Sources of a job that are named.
const MAX_SOURCES: usize = 3;
const AS_IT_IS: &str = "--incomplete-source copies what is there";

/// A source, as the user gave it and as it is.
pub(super) struct Given<'a> {
    pub(super) given: &'a Path,
    /// Canonical: of a directory its own path, of a single entry its directory's.
    pub(super) dir: &'a Path,
    pub(super) single: Option<&'a [u8]>,
    pub(super) meta: &'a Meta,
}

/// The result for all sources.
#[derive(Default)]
pub(super) struct Judged {
    /// One item for each source.
    pub(super) leftovers: Vec<Leftovers>,
    /// To be said before the copy.
    pub(super) notes: Vec<String>,
}

/// Judges all sources; `wanted`: incomplete ones are to be copied.
///
/// # Errors
/// The first one that is incomplete and not wanted as it is.
pub(super) fn judge<'a>(sources: impl Iterator<Item = Given<'a>>, wanted: bool) -> Result<Judged, Refusal> {
    let (mut judged, mut seen) = (Judged::default(), HashMap::new());
    for source in sources {
        let mut leftovers = Leftovers::default();
        let (mut dir, mut below) = (source.dir, source.single);
        loop {
            let found = seen.entry(dir.to_path_buf()).or_insert_with(|| look(dir));
            if let Some(found) = found.as_ref().filter(|found| found.has(below)) {
                let copy = Copy { source: &source, root: dir, found };
                judged.notes.extend(copy.note().filter(|note| !judged.notes.contains(note)));
                if wanted {
                    copy.leave_out(&mut leftovers);
                } else if let Some(why) = copy.objection() {
                    return refuse(source.given, why);
                }
            }
            let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else { break };
            (dir, below) = (above, Some(name.as_bytes()));
        }
        // The state may be elsewhere (--state-dir): then only the root's mode tells.
        if source.single.is_none() && leftovers == Leftovers::Copied && is_unfinished(&source, &seen) {
            if !wanted {
                let mode = UNFINISHED_DIR_MODE;
                let why =
                    format!("has the mode {mode:04o}, which pcopy gives to the root of a copy until it is complete");
                return refuse(source.given, format_args!("{why}: run its command again to finish it; {AS_IT_IS}"));
            }
            leftovers = Leftovers::LeftOut;
        }
        judged.leftovers.push(leftovers);
    }
    Ok(judged)
}

/// Reads the state directory in a directory; `None` if the directory is not a copy.
fn look(dir: &Path) -> Option<Standing> {
    let standing = match reach_root(dir) {
        Ok(root) => standing(root.as_fd()),
        Err(Errno::ENOENT) => Standing::NoCopy,
        Err(err) => Standing::Unreadable(err),
    };
    Some(standing).filter(|standing| !matches!(standing, Standing::NoCopy))
}

/// Whether a source is the root of an unfinished copy whose state is elsewhere: by its mode and owner.
fn is_unfinished(source: &Given<'_>, seen: &HashMap<PathBuf, Option<Standing>>) -> bool {
    let has_state = seen.get(source.dir).is_some_and(Option::is_some);
    !has_state && source.meta.kind == Some(Kind::Dir) && is_owner(source.meta) && mode_before(source.meta).is_none()
}

impl Standing {
    /// Whether the entry `below` in the copy's root (`None`: the root itself) is a part of the copy.
    fn has(&self, below: Option<&[u8]>) -> bool {
        let Some(name) = below else { return true };
        if name == state::DIR_NAME {
            return false;
        }
        let Self::Incomplete(unfinished) = self else { return true };
        let Some(job) = &unfinished.job else { return true };
        // the name of a source's copy, where it has one
        let own_name = |source: &SourceName| match (source.contents, job.sources.len(), source.is_dir) {
            (true, ..) | (false, 1, true) => None,
            _ => Some(source.given.rsplit('/').next().unwrap_or_default().to_string()),
        };
        let name = shown(Path::new(OsStr::from_bytes(name)));
        job.sources.iter().any(|source| own_name(source).is_none_or(|own| own == name))
    }
}

/// A copy that a source is, or is in.
struct Copy<'a> {
    source: &'a Given<'a>,
    /// The copy's root.
    root: &'a Path,
    found: &'a Standing,
}

impl Copy<'_> {
    fn is_source(&self) -> bool {
        self.source.single.is_none() && self.source.dir == self.root
    }

    /// The note for the user if the source is copied.
    fn note(&self) -> Option<String> {
        let root = shown(self.root);
        match self.found {
            Standing::Unreadable(err) => {
                let why = format!("its .pcopy cannot be read ({})", err.desc());
                Some(format!("{root}: {why}: whether this copy is complete is not known"))
            }
            Standing::Complete { failed } if *failed > 0 && self.is_source() => {
                Some(format!("{root}: {failed} entries are missing in this copy or not whole: its manifest names them"))
            }
            Standing::Incomplete(unfinished) if !unfinished.is_trusted => {
                let uid = unfinished.uid;
                Some(format!(
                    "{root}: an incomplete copy, by a .pcopy that belongs to user {uid}; it is copied as it is"
                ))
            }
            _ => None,
        }
    }

    /// Why it is refused as a source.
    fn objection(&self) -> Option<String> {
        let Standing::Incomplete(unfinished) = self.found else { return None };
        if !unfinished.is_trusted {
            return None;
        }
        let Unfinished { job, holder, .. } = &**unfinished;
        let root = shown(self.root);
        let this = if self.is_source() { "is".to_string() } else { format!("is in {root},") };
        let of = job.as_ref().map_or_else(|| "an unknown source".into(), sources_of);
        if let Some(holder) = holder {
            let (host, pid) = (bounded(&holder.host), holder.pid);
            let who = format!("pcopy works on it (host {host}, process {pid})");
            return Some(format!("{this} an incomplete copy of {of}: {who}: wait for its end; {AS_IT_IS}"));
        }
        let command = job.as_ref().and_then(|job| command(job, &root));
        let way = command.map_or_else(
            || "run its command again to finish it".into(),
            |command| format!("run its command again to finish it ({command}, with the same options)"),
        );
        Some(format!("{this} an incomplete copy of {of}: {way}; {AS_IT_IS}"))
    }

    /// Adds the temporary files of the copy's job to what is left out.
    fn leave_out(&self, leftovers: &mut Leftovers) {
        let Standing::Incomplete(unfinished) = self.found else { return };
        let Some(job) = &unfinished.job else {
            *leftovers = Leftovers::LeftOut;
            return;
        };
        let ids = job.abandoned.iter().copied().chain([job.id]);
        match leftovers {
            Leftovers::LeftOut => {}
            Leftovers::OfJobs(others) => others.extend(ids),
            Leftovers::Copied => *leftovers = Leftovers::OfJobs(ids.collect()),
        }
    }
}

/// A job's sources, for a reader.
fn sources_of(job: &JobFile) -> String {
    let mut named: Vec<_> = job.sources.iter().take(MAX_SOURCES).map(|source| bounded(&source.given)).collect();
    if job.sources.len() > MAX_SOURCES {
        named.push(format!("{} more", job.sources.len() - MAX_SOURCES));
    }
    named.join(", ")
}

/// The command that goes on with a job, but for its options; `None` where it cannot be told in a line.
fn command(job: &JobFile, root: &str) -> Option<String> {
    let mut words = vec!["pcopy".to_string()];
    for source in &job.sources {
        let slash = if source.contents && !source.given.ends_with('/') { "/" } else { "" };
        words.push(word(&format!("{}{slash}", source.given))?);
    }
    // The copy of a single file is not the root of its state.
    let of_dirs = job.sources.len() > 1 || job.sources.iter().all(|source| source.is_dir);
    words.push(word(root).filter(|_| of_dirs && job.sources.len() <= MAX_SOURCES)?);
    Some(words.join(" "))
}

/// A path as a word of a shell's command line; `None` where it is too long, or is shown with an escape.
fn word(path: &str) -> Option<String> {
    if path.chars().count() > MAX_SHOWN || path.contains('\\') || path.chars().any(is_unsafe) {
        return None;
    }
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    let quoted = || format!("'{}'", path.replace('\'', r"'\''"));
    Some(if path.chars().all(is_plain) { path.to_string() } else { quoted() })
}

/// A text of a job file as it may be shown on a terminal.
fn bounded(text: &str) -> String {
    let cut = if text.chars().count() > MAX_SHOWN { "..." } else { "" };
    let plain = text.chars().take(MAX_SHOWN).map(|c| if is_unsafe(c) { '?' } else { c });
    plain.chain(cut.chars()).collect()
}

/// Control characters, and those that turn the direction of a line.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::Secret;

    fn job(sources: &[(&str, bool, bool)]) -> JobFile {
        let name = |&(given, contents, is_dir): &(&str, bool, bool)| SourceName {
            path: given.into(),
            given: given.into(),
            contents,
            is_dir,
        };
        JobFile::new(
            (7, Secret::new([0; 16])),
            "2026-11-21T00:00:00Z".into(),
            sources.iter().map(name).collect(),
            "/r".into(),
            BTreeMap::new(),
        )
    }

    fn incomplete(job: JobFile) -> Standing {
        Standing::Incomplete(Box::new(Unfinished { job: Some(job), holder: None, is_trusted: true, uid: 0 }))
    }

    #[test]
    fn the_command_that_finishes_a_copy_can_be_run_by_a_shell_or_is_not_told() {
        let of = |sources: &[(&str, bool, bool)]| command(&job(sources), "/backup/a b");
        assert_eq!(of(&[("/s/it's", false, true)]).as_deref(), Some(r"pcopy '/s/it'\''s' '/backup/a b'"));
        assert_eq!(of(&[("/s", true, true), ("/f", false, false)]).as_deref(), Some("pcopy /s/ /f '/backup/a b'"));
        let long = format!("/{}", "x".repeat(MAX_SHOWN));
        for unclear in [r"/a\n", "/a\u{1b}[2J", "/\u{202e}a", &long] {
            assert_eq!(of(&[(unclear, false, true)]), None, "{unclear}");
        }
        assert_eq!(of(&[("/f", false, false)]), None);
    }

    #[test]
    fn what_a_job_file_says_is_shown_without_control_characters_and_not_at_any_length() {
        assert_eq!(bounded("/a\u{1b}[2J\n\u{202e}b"), "/a?[2J??b");
        assert_eq!(bounded(&"x".repeat(100_000)).len(), MAX_SHOWN + 3);
        let many = vec![("/s", false, true); 1000];
        assert_eq!(sources_of(&job(&many)), "/s, /s, /s, 997 more");
    }

    #[test]
    fn only_what_a_job_has_copied_to_is_a_part_of_its_copy() {
        let lone = incomplete(job(&[("/s/home", false, true)]));
        assert!(lone.has(None) && lone.has(Some(b"anything")) && !lone.has(Some(b".pcopy")));
        let several = incomplete(job(&[("/s/home", false, true), ("/s/f", false, false)]));
        assert!(several.has(None) && several.has(Some(b"home")) && several.has(Some(b"f")));
        assert!(!several.has(Some(b"other")));
        assert!(incomplete(job(&[("/s", true, true), ("/t", false, true)])).has(Some(b"other")));
    }
}
