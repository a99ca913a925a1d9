//! From the command line to a plan: what becomes of which source, and everything that is refused before
//! anything is written.
//!
//! The rules are dcp's, which are cp's where they overlap; `--help` has them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::choices::{self, Choice};
use super::incomplete::{self, Given};
use super::own_places;
use super::refusal::{Refusal, refuse, shown};
use crate::cli::Config;
use crate::policy::{Leftovers, Policy};
use crate::proto::{Source, StatePlace};
use crate::state::{self, JOB_NAME, SourceName};
use crate::sys::{Meta, Mounts, Place, list, mode_before, open_root};
use crate::types::{Kind, RelPath};
use crate::watch;

/// What the job will do.
#[derive(Debug)]
pub struct Plan {
    pub sources: Vec<Source>,
    /// Sources that are one entry, and its type.
    pub singles: Vec<(u16, Kind)>,
    /// Absolute; the directory that the copy's paths are relative to.
    pub root: PathBuf,
    pub root_exists: bool,
    /// Where the state of the job is; a copy of single entries has none, unless the user names a place for it.
    pub state: Option<StatePlace>,
    /// The sources as they were given.
    pub source_names: Vec<SourceName>,
    /// Where the user wants the manifest; absolute.
    pub manifest: Option<PathBuf>,
    pub policy: Policy,
    pub(super) choice: Choice,
    /// To be said before the copy.
    pub notes: Vec<String>,
}

impl Plan {
    /// The path of the state directory, if there is one.
    pub fn state_dir(&self) -> Option<PathBuf> {
        Some(match self.state.as_ref()? {
            StatePlace::InCopy => self.root.join(state::os_name(state::DIR_NAME)),
            StatePlace::At(path) => PathBuf::from(name_of(path)),
        })
    }

    pub(super) fn has_state_in_copy(&self) -> bool {
        self.state == Some(StatePlace::InCopy)
    }

    /// Where the manifest is, if there is one.
    pub fn manifest_path(&self) -> Option<PathBuf> {
        let in_state = || self.state_dir().map(|dir| dir.join(state::os_name(state::MANIFEST_NAME)));
        self.manifest.clone().or_else(in_state)
    }
}

/// A source as the user named it.
struct Named {
    given: PathBuf,
    /// Canonical: of a directory its own path, of a single entry its directory's and its name.
    dir: PathBuf,
    single: Option<Vec<u8>>,
    meta: Meta,
    /// The name of its copy in an existing directory; `None` when its contents go there.
    name: Option<Vec<u8>>,
}

impl Named {
    fn as_given(&self) -> Given<'_> {
        Given { given: &self.given, dir: &self.dir, single: self.single.as_deref(), meta: &self.meta }
    }
}

/// Decides what goes where.
///
/// # Errors
/// Everything that is refused.
pub fn resolve(config: &Config, policy: Policy) -> Result<Plan, Refusal> {
    if config.sources.len() > usize::from(u16::MAX) {
        return Err(Refusal(format!("{} sources; at most {} at once", config.sources.len(), u16::MAX)));
    }
    let filter = choices::filter(config)?;
    let follow = choices::follows_arguments(config);
    let named = config.sources.iter().map(|path| examine(path, follow)).collect::<Result<Vec<_>, _>>()?;
    watch::begin(config.destination.as_os_str().as_bytes(), b"");
    let lone_dir = match named.as_slice() {
        [Named { single: None, dir, .. }] => Some(dir.as_path()),
        _ => None,
    };
    let choice = choices::choice(config, filter, lone_dir)?;
    let notes = named.iter().filter_map(link_note).collect();
    let source_names: Vec<_> = named.iter().map(source_name).collect();
    let state_dir = config.state_dir.as_deref().map(absolute).transpose()?;
    let again = match named.as_slice() {
        [Named { single: None, name: Some(_), .. }] if !config.into => {
            place_again(&config.destination, state_dir.as_deref(), &source_names[0])?
        }
        _ => None,
    };
    let (root, root_exists, targets) = match again {
        Some(root) => (root, true, vec![RelPath::root()]),
        None => place(&config.destination, &named)?,
    };
    let in_copy = named.len() > 1 || named[0].single.is_none();
    let plan = Plan {
        sources: named.iter().zip(&targets).map(|(named, target)| source(named, target)).collect(),
        singles: (0u16..)
            .zip(&named)
            .filter(|(_, n)| n.single.is_some())
            .filter_map(|(i, n)| Some((i, n.meta.kind?)))
            .collect(),
        state: state_dir
            .map(|dir| StatePlace::At(dir.into_os_string().into_encoded_bytes()))
            .or(in_copy.then_some(StatePlace::InCopy)),
        source_names,
        manifest: None,
        policy,
        choice,
        root,
        root_exists,
        notes,
    };
    check_targets(&named, &targets, &plan)?;
    check_overlap(&named, &targets, &plan)?;
    own_places::check(&plan, config)?;
    let manifest = own_places::manifest_path(config, &plan)?;
    let mut plan = Plan { manifest, ..plan };
    let judged = incomplete::judge(named.iter().map(Named::as_given), config.incomplete_source)?;
    for (source, leftovers) in plan.sources.iter_mut().zip(judged.leftovers) {
        source.leftovers = leftovers;
    }
    plan.notes.extend(judged.notes);
    Ok(plan)
}

/// A path that may not be there yet; its parent must be.
fn absolute(path: &Path) -> Result<PathBuf, Refusal> {
    match fs::canonicalize(path) {
        Ok(path) => return Ok(path),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return refuse(path, format_args!("cannot be resolved: {err}")),
    }
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return refuse(path, "does not exist");
    };
    Ok(canonical(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.join(name))
}

fn source_name(named: &Named) -> SourceName {
    let path = match &named.single {
        Some(name) => named.dir.join(name_of(name)),
        None => named.dir.clone(),
    };
    let given = std::path::absolute(&named.given).unwrap_or_else(|_| named.given.clone());
    let is_dir = named.single.is_none();
    SourceName { path: shown(&path), given: shown(&given), contents: named.name.is_none(), is_dir }
}

/// The destination itself as the copy's root, if an earlier run of the same command made it that: by cp's rule alone a run
/// that is started again would copy into its own copy.
fn place_again(destination: &Path, state: Option<&Path>, source: &SourceName) -> Result<Option<PathBuf>, Refusal> {
    let Ok(root) = fs::canonicalize(destination) else { return Ok(None) };
    if was_begun(&root) {
        return Ok(Some(root));
    }
    let dir = state.map_or_else(|| root.join(state::os_name(state::DIR_NAME)), Path::to_path_buf);
    let Some(job) = own_places::job_there(&root, &dir, state.is_some(), source)? else { return Ok(None) };
    // a state directory in the copy may have moved with it
    let same_root = state.is_none() || job.root == shown(&root);
    // by the same words too: a link on the way to the source may lead elsewhere by now
    let same_source = matches!(job.sources.as_slice(), [old] if !old.contents && (old.path == source.path || old.given == source.given));
    Ok((same_root && same_source).then_some(root))
}

/// Whether a directory was made to be a copy's root by a run that was killed before it could write its job down.
fn was_begun(root: &Path) -> bool {
    let unfinished = Meta::of_path(root, false).is_ok_and(|meta| mode_before(&meta).is_none());
    let holds_only_own = || {
        let mut is_own = true;
        let listed = open_root(root).and_then(|dir| {
            list(dir, |entry| {
                is_own &= entry.name.starts_with(state::DIR_NAME);
                if is_own { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
        });
        listed.is_ok() && is_own
    };
    unfinished && !root.join(state::os_name(state::DIR_NAME)).join(JOB_NAME).exists() && holds_only_own()
}

pub(super) fn name_of(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn source(named: &Named, target: &RelPath) -> Source {
    Source {
        dir: named.dir.as_os_str().as_bytes().to_vec(),
        single: named.single.clone(),
        target: target.clone(),
        file_system: named.meta.dev,
        leftovers: Leftovers::default(),
    }
}

/// `follow`: a symbolic link stands for what it leads to, under its own name.
fn examine(given: &Path, follow: bool) -> Result<Named, Refusal> {
    let bytes = given.as_os_str().as_bytes();
    watch::begin(bytes, b"");
    let own_name = match given.components().next_back() {
        Some(Component::Normal(name)) => Some(name.as_bytes().to_vec()),
        _ => None,
    };
    let contents = bytes.ends_with(b"/") || bytes.ends_with(b"/.") || own_name.is_none();
    let meta = match Meta::of_path(given, contents || follow) {
        Ok(meta) => meta,
        Err(err) => {
            return refuse(given, format_args!("cannot use it as a source: {}", err.desc()));
        }
    };
    let Some(kind) = meta.kind else {
        return refuse(given, "is of a type that pcopy does not know");
    };
    if kind == Kind::Dir {
        let dir = canonical(given)?;
        if let Err(err) = open_root(&dir).map_err(io::Error::from) {
            return refuse(given, format_args!("cannot read the source: {err}"));
        }
        let name = if contents { None } else { own_name };
        return Ok(Named { given: given.into(), dir, single: None, meta, name });
    }
    if contents {
        return refuse(given, "ends in a slash, but is not a directory");
    }
    let name = own_name.expect("only `contents` has no name");
    if kind == Kind::File
        && let Err(err) = fs::File::open(given)
    {
        return refuse(given, format_args!("cannot read the source: {err}"));
    }
    if follow {
        // the entry itself, so that no link is left to follow
        let entry = canonical(given)?;
        let (Some(dir), Some(single)) = (entry.parent(), entry.file_name()) else {
            return refuse(given, "has no directory");
        };
        let single = Some(single.as_bytes().to_vec());
        return Ok(Named { given: given.into(), dir: dir.into(), single, meta, name: Some(name) });
    }
    let parent = given.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Named { given: given.into(), dir: canonical(parent)?, single: Some(name.clone()), meta, name: Some(name) })
}

pub(super) fn canonical(path: &Path) -> Result<PathBuf, Refusal> {
    fs::canonicalize(path).or_else(|err| refuse(path, format_args!("cannot be resolved: {err}")))
}

/// Who names a link to a directory may have meant the directory: say what happens.
fn link_note(named: &Named) -> Option<String> {
    let is_link = named.meta.kind == Some(Kind::Symlink) && fs::metadata(&named.given).is_ok_and(|meta| meta.is_dir());
    is_link.then(|| {
        let path = shown(&named.given);
        format!("{path} is a symbolic link and is copied as one; to copy the directory that it leads to, write {path}/")
    })
}

/// The copy's root, whether it is there, and each source's place below it.
fn place(destination: &Path, named: &[Named]) -> Result<(PathBuf, bool, Vec<RelPath>), Refusal> {
    let target = |name: &[u8]| RelPath::root().join(name);
    match fs::metadata(destination) {
        Ok(meta) if meta.is_dir() => {
            let dir = canonical(destination)?;
            if let [Named { single: None, name, .. }] = named {
                // the copy of one directory is its own root
                let root = name.as_ref().map_or(dir.clone(), |name| dir.join(name_of(name)));
                let exists = match fs::symlink_metadata(&root) {
                    Ok(meta) if meta.is_dir() => true,
                    Ok(_) => {
                        return refuse(&root, "is not a directory; it is in the way of the copy");
                    }
                    Err(err) if err.kind() == io::ErrorKind::NotFound => false,
                    Err(err) => return refuse(&root, err),
                };
                return Ok((root, exists, vec![RelPath::root()]));
            }
            let targets = named.iter().map(|n| n.name.as_deref().map_or_else(RelPath::root, target)).collect();
            Ok((dir, true, targets))
        }
        Ok(meta) => place_over_file(destination, &meta, named),
        Err(err) if err.kind() == io::ErrorKind::NotFound => place_new(destination, named),
        Err(err) => refuse(destination, format_args!("cannot use it as the destination: {err}")),
    }
}

fn place_over_file(
    destination: &Path,
    meta: &fs::Metadata,
    named: &[Named],
) -> Result<(PathBuf, bool, Vec<RelPath>), Refusal> {
    if named.len() > 1 {
        return refuse(destination, "is not a directory; several sources need one");
    }
    if named[0].single.is_none() {
        return refuse(destination, "is not a directory; a directory cannot be copied onto it");
    }
    if !meta.is_file() {
        return refuse(destination, "is neither a file nor a directory");
    }
    let file = canonical(destination)?;
    let (Some(parent), Some(name)) = (file.parent(), file.file_name()) else {
        return refuse(destination, "has no directory");
    };
    Ok((parent.to_path_buf(), true, vec![RelPath::root().join(name.as_bytes())]))
}

fn place_new(destination: &Path, named: &[Named]) -> Result<(PathBuf, bool, Vec<RelPath>), Refusal> {
    if fs::symlink_metadata(destination).is_ok() {
        return refuse(destination, "is a symbolic link that leads nowhere");
    }
    if named.len() > 1 {
        return refuse(destination, "does not exist; several sources need an existing directory");
    }
    let Some(Component::Normal(name)) = destination.components().next_back() else {
        return refuse(destination, "does not exist");
    };
    let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(parent) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return refuse(parent, "is not a directory; the destination's parent must be one");
        }
        Err(err) => {
            return refuse(parent, format_args!("the destination's parent must exist: {err}"));
        }
    }
    let parent = canonical(parent)?;
    if named[0].single.is_none() {
        return Ok((parent.join(name), false, vec![RelPath::root()]));
    }
    if destination.as_os_str().as_bytes().ends_with(b"/") {
        return refuse(destination, "does not exist; make the directory, or leave out the slash");
    }
    Ok((parent, true, vec![RelPath::root().join(name.as_bytes())]))
}

/// Two sources must not be one entry of the copy. (Contents of several may meet; that is seen while copying.)
fn check_targets(named: &[Named], targets: &[RelPath], plan: &Plan) -> Result<(), Refusal> {
    let mut taken: HashMap<&RelPath, &Path> = HashMap::new();
    for (named, target) in named.iter().zip(targets).filter(|(_, target)| !target.is_root()) {
        if let Some(other) = taken.insert(target, &named.given) {
            return refuse(&named.given, format_args!("would be copied to the same place as {}", shown(other)));
        }
        if plan.has_state_in_copy() && target.as_bytes() == state::DIR_NAME {
            return refuse(&named.given, "has the name of pcopy's own state, which the copy will have there");
        }
    }
    Ok(())
}

/// The copy of one source.
pub(super) fn copy_of(plan: &Plan, target: &RelPath) -> PathBuf {
    if target.is_root() { plan.root.clone() } else { plan.root.join(name_of(target.as_bytes())) }
}

/// A directory is not copied into itself, a file not onto itself, by whatever names.
fn check_overlap(named: &[Named], targets: &[RelPath], plan: &Plan) -> Result<(), Refusal> {
    let mounts = Mounts::current();
    for (named, target) in named.iter().zip(targets) {
        let copy = copy_of(plan, target);
        if named.single.is_some() {
            check_single(named, &copy)?;
        } else {
            check_dir(named, &copy, &mounts, &plan.choice)?;
        }
    }
    check_overwritten(named, targets, plan)
}

/// Refuses a source that lies in the copy of another source, at a name which that one has too: it would be overwritten.
fn check_overwritten(named: &[Named], targets: &[RelPath], plan: &Plan) -> Result<(), Refusal> {
    let mut copied: HashMap<PathBuf, Vec<&Named>> = HashMap::new();
    for (source, target) in named.iter().zip(targets).filter(|(named, _)| named.single.is_none()) {
        copied.entry(copy_of(plan, target)).or_default().push(source);
    }
    // Pairs of a copy and a name in it. Thousands of sources may lie in one directory, which needs one look.
    let mut looked_at: HashSet<(&Path, &OsStr)> = HashSet::new();
    for other in named {
        let mut below = other.dir.as_path();
        while let (Some(copy), Some(first)) = (below.parent(), below.file_name()) {
            below = copy;
            let Some(sources) = copied.get(copy).filter(|_| looked_at.insert((copy, first))) else { continue };
            if let Some(source) = sources.iter().find(|source| fs::symlink_metadata(source.dir.join(first)).is_ok()) {
                let (source, copy) = (shown(&source.given), shown(copy));
                return refuse(
                    &other.given,
                    format_args!("would be overwritten by what is copied from {source} to {copy}"),
                );
            }
        }
    }
    Ok(())
}

fn check_single(named: &Named, copy: &Path) -> Result<(), Refusal> {
    match Meta::of_path(copy, false) {
        Ok(there) if is_same(&there, &named.meta) => {
            refuse(&named.given, format_args!("and {} are the same file", shown(copy)))
        }
        Ok(there) if there.kind == Some(Kind::Dir) => refuse(copy, "is a directory; a file cannot be copied onto it"),
        _ => Ok(()),
    }
}

fn check_dir(named: &Named, copy: &Path, mounts: &Mounts, choice: &Choice) -> Result<(), Refusal> {
    if copy == named.dir || Meta::of_path(copy, true).is_ok_and(|there| is_same(&there, &named.meta)) {
        return refuse(&named.given, format_args!("and {} are the same directory", shown(copy)));
    }
    let below_source = |dir: &Path| Meta::of_path(dir, true).is_ok_and(|meta| is_same(&meta, &named.meta));
    let meets_source = |place: Place| {
        let meeting = mounts.place(copy).and_then(|copy| copy.meeting_point(&place));
        meeting.is_some_and(|(a, b)| match (Meta::of_path(&a, true), Meta::of_path(&b, true)) {
            (Ok(a), Ok(b)) => is_same(&a, &b),
            _ => false,
        })
    };
    let within = copy.starts_with(&named.dir)
        || copy.ancestors().any(below_source)
        || mounts.place(&named.dir).into_iter().chain(mounts.below(&named.dir)).any(meets_source);
    if within && !is_left_out(named, copy, choice) {
        return refuse(copy, format_args!("the destination is inside its source {}", shown(&named.given)));
    }
    Ok(())
}

/// Whether the copy lies where the scan of its source does not go: on another file system, or in what is excluded.
fn is_left_out(named: &Named, copy: &Path, choice: &Choice) -> bool {
    let there = copy.ancestors().find_map(|dir| Meta::of_path(dir, true).ok());
    if choice.one_file_system && there.is_some_and(|there| there.dev != named.meta.dev) {
        return true;
    }
    let Ok(below) = copy.strip_prefix(&named.dir) else { return false };
    let ancestors = below.ancestors().filter(|dir| !dir.as_os_str().is_empty());
    ancestors.map(|dir| [b"/", dir.as_os_str().as_bytes()].concat()).any(|dir| choice.filter.excludes(&dir, true))
}

fn is_same(a: &Meta, b: &Meta) -> bool {
    (a.dev, a.ino) == (b.dev, b.ino)
}
