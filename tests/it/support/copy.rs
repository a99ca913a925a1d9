//! One copy, judged: where it must have landed, its manifest checked whatever the exit code.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::launch::{Job, Outcome};
use super::manifest::{self, Expect, How, Manifest};
use super::oracle::{self, Aspects};

/// A copy that came to its end.
pub struct Copied {
    pub outcome: Outcome,
    /// The directory that holds the copy, or the copied file.
    pub root: PathBuf,
    /// The manifest, checked, where one was written.
    pub manifest: Option<Manifest>,
}

impl Copied {
    #[track_caller]
    pub fn manifest(&self) -> &Manifest {
        let manifest = self.manifest.as_ref();
        manifest.unwrap_or_else(|| panic!("no manifest from {}", self.outcome.told()))
    }
}

/// Where the rules say that the copy lands. To be asked before the copy is made.
pub fn landing(sources: &[&Path], dst: &Path) -> PathBuf {
    let contents = sources[0].as_os_str().as_bytes().ends_with(b"/");
    if sources.len() > 1 || contents || !dst.is_dir() {
        return dst.to_path_buf();
    }
    dst.join(sources[0].file_name().unwrap())
}

/// Copies, and checks the manifest that is there afterwards. The exit code is the caller's to judge.
pub fn copy(job: &Job, sources: &[&Path], dst: &Path) -> Copied {
    let root = landing(sources, dst);
    // What stood there before is in no manifest.
    let strangers = root.exists();
    let operands = sources.iter().copied().chain([dst]).map(Path::as_os_str);
    let outcome = job.run(operands.collect::<Vec<&OsStr>>());
    let beside = job.option_value("--manifest").map(PathBuf::from);
    let file = beside.unwrap_or_else(|| root.join(".pcopy/manifest.jsonl"));
    // The paths of a manifest are relative to a directory, also where one file was copied.
    let (holder, is_dir) = (root.parent().unwrap(), root.is_dir());
    let expect = Expect {
        root: if is_dir { &root } else { holder },
        ranks: job.rank_count(),
        digests: !job.has_option("--no-digest"),
        strangers: strangers || !is_dir,
    };
    let unpreserved = unpreserved(job);
    let how = How { dry_run: false, unpreserved: &unpreserved };
    let manifest = file.exists().then(|| match manifest::check_as(&file, &expect, how) {
        Ok(manifest) => manifest,
        Err(found) => panic!("{}\nmanifest:\n  {}", outcome.told(), found.join("\n  ")),
    });
    Copied { outcome, root, manifest }
}

/// What `--preserve` and `--no-preserve` leave out, of what a manifest tells.
fn unpreserved(job: &Job) -> Vec<&'static str> {
    let words = |option: &str| job.values_given(option).flat_map(|list| list.split(',')).collect::<Vec<_>>();
    let (wanted, unwanted) = (words("--preserve"), words("--no-preserve"));
    let all = wanted.is_empty() || job.has_option("-p") || job.has_option("--preserve") || wanted.contains(&"all");
    let holds = |word: &str| (all || wanted.contains(&word)) && !unwanted.contains(&word) && !unwanted.contains(&"all");
    ["mode", "ownership", "timestamps"].into_iter().filter(|word| !holds(word)).collect()
}

/// Copies one tree to a new place and demands that everything is there.
#[track_caller]
pub fn copy_exactly(job: &Job, src: &Path, dst: &Path) -> Copied {
    let copied = copy(job, &[src], dst);
    copied.outcome.assert_code(0);
    assert_exact(&copied, src);
    copied
}

/// A copy that left nothing out: the oracle finds no difference and the manifest lists every entry.
#[track_caller]
pub fn assert_exact(copied: &Copied, src: &Path) {
    let found = oracle::differences(src, &copied.root, Aspects::ALL);
    oracle::assert_none(&found, &copied.outcome.told());
    let manifest = copied.manifest();
    let listed: Vec<_> = manifest.entries.keys().collect();
    let walked = oracle::walk(src);
    assert_eq!(listed, walked.keys().collect::<Vec<_>>(), "entries of the manifest");
}
