//! DAOS containers on dfuse mounts, with the library that intercepts reads and writes: the stand-ins (`fuse/dfuse.rs`,
//! `libioil.c`), or the real ones, where `PCOPY_TEST_DFUSE` names them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use super::fuse::{Control, Dfuse, Faults, FuseMount, set_container};
use super::launch::Job;
use super::oracle::{Kind, Tree};
use super::preload;
use super::skip::Missing;
use super::tree::{chmod, temp, write};

/// One container, mounted twice, as on two nodes. What is made in it is below a directory of the test's own.
pub struct Container {
    /// The two mount points.
    pub mounts: [PathBuf; 2],
    stand_in: Option<StandIn>,
    own: String,
}

struct StandIn {
    name: String,
    store: TempDir,
    mounts: Vec<FuseMount>,
}

impl Container {
    /// A new one, on two mounts of the stand-in.
    pub fn stand_in(caching: bool, multi_user: bool) -> Result<Container, Missing> {
        Container::of_stand_ins(Dfuse { container: String::new(), caching, multi_user, write_back: false })
    }

    /// The same with dfuse's write-back cache.
    pub fn writing_back() -> Result<Container, Missing> {
        Container::of_stand_ins(Dfuse { container: String::new(), caching: true, multi_user: true, write_back: true })
    }

    fn of_stand_ins(options: Dfuse) -> Result<Container, Missing> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let store = temp();
        set_container(&name, Some(store.path()));
        let mut mounts = Vec::new();
        for _ in 0..2 {
            let dfuse = Dfuse { container: name.clone(), ..options.clone() };
            mounts.push(FuseMount::over(Some(store.path()), Faults { dfuse: Some(dfuse), ..Faults::default() })?);
        }
        let points = [0, 1].map(|mount: usize| mounts[mount].path().to_path_buf());
        Ok(Container { mounts: points, stand_in: Some(StandIn { name, store, mounts }), own: "own".to_owned() })
    }

    fn real(mounts: [&str; 2]) -> Container {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let own = format!("pcopy-it.{}.{number}", std::process::id());
        Container { mounts: mounts.map(PathBuf::from), stand_in: None, own }
    }

    /// The test's own directory, through the first mount.
    pub fn dir(&self) -> PathBuf {
        let dir = self.mounts[0].join(&self.own);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The same path through the second mount.
    pub fn through_the_other(&self, path: &Path) -> PathBuf {
        self.mounts[1].join(path.strip_prefix(&self.mounts[0]).unwrap())
    }

    /// The switches of the first mount of a stand-in.
    pub fn control(&self) -> &Control {
        self.stand_in.as_ref().expect("a stand-in").mounts[0].control()
    }

    /// The requests of both mounts since this was last asked, by kind.
    pub fn take_requests(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for mount in self.stand_in.iter().flat_map(|stand_in| &stand_in.mounts) {
            for (request, count) in mount.control().take_requests() {
                *all.entry(request).or_default() += count;
            }
        }
        all
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        match &mut self.stand_in {
            Some(StandIn { name, store, mounts }) => {
                mounts.clear();
                set_container(name, None);
                assert!(store.path().exists());
            }
            None => drop(fs::remove_dir_all(self.mounts[0].join(&self.own))),
        }
    }
}

/// Two containers, and the library.
pub struct Storage {
    pub one: Container,
    pub other: Container,
    library: PathBuf,
    home: TempDir,
}

impl Storage {
    pub fn stand_in() -> Result<Storage, Missing> {
        Storage::of_stand_ins(true)
    }

    pub fn of_stand_ins(caching: bool) -> Result<Storage, Missing> {
        let home = temp();
        let library = preload::compile("libioil.c", home.path());
        let container = || Container::stand_in(caching, true);
        Ok(Storage { one: container()?, other: container()?, library, home })
    }

    /// `PCOPY_TEST_DFUSE=ONE:ONE-AGAIN:OTHER:LIBRARY`: two mount points of one container, one of another, and the
    /// library's path.
    fn real() -> Option<Storage> {
        let named = std::env::var("PCOPY_TEST_DFUSE").ok()?;
        let [one, again, other, library] = named.split(':').collect::<Vec<_>>()[..] else {
            panic!("PCOPY_TEST_DFUSE is not ONE:ONE-AGAIN:OTHER:LIBRARY: {named}")
        };
        let (one, other) = (Container::real([one, again]), Container::real([other, other]));
        Some(Storage { one, other, library: library.into(), home: temp() })
    }

    /// The stand-ins, and the real ones where there are some.
    pub fn all() -> Result<Vec<Storage>, Missing> {
        let real = Storage::real();
        if real.is_none() {
            Missing::new("no dfuse (PCOPY_TEST_DFUSE)").say();
        }
        Ok([Storage::stand_in()?].into_iter().chain(real).collect())
    }

    /// The same with the first container destroyed, and a new one in its place. Real ones are only emptied: making and
    /// mounting them is for whoever made them.
    pub fn made_anew(self) -> Storage {
        let Storage { one, other, library, home } = self;
        let stood_in = one.stand_in.is_some();
        let mounts = one.mounts.clone();
        drop(one);
        let one = if stood_in {
            Container::stand_in(true, true).expect("as before")
        } else {
            Container::real(mounts.each_ref().map(|mount| mount.to_str().unwrap()))
        };
        Storage { one, other, library, home }
    }

    /// A job whose ranks see the first container through one mount each, in turns, at the path of the first.
    pub fn job(&self, ranks: usize) -> Job {
        let job = Job::ranks(ranks);
        let wrapper = self.home.path().join("pcopy");
        let [first, second] = self.one.mounts.each_ref().map(|mount| mount.to_str().unwrap());
        let script = format!(
            "#!/bin/sh\n\
             if [ $((${{PMI_RANK:-${{OMPI_COMM_WORLD_RANK:-0}}}} % 2)) = 1 ]; then\n\
               exec unshare --mount sh -c 'mount --bind {second} {first} && LD_PRELOAD=$PRELOAD exec {program} \"$@\"' sh \"$@\"\n\
             fi\n\
             LD_PRELOAD=$PRELOAD exec {program} \"$@\"\n",
            program = super::launch::program().display()
        );
        write(&wrapper, script.as_bytes());
        chmod(&wrapper, 0o755);
        job.program(&wrapper)
    }

    /// The library in the ranks of this job, which is one of [`Storage::job`].
    pub fn preloaded(&self, job: Job) -> Job {
        self.preloaded_by(job, "PRELOAD")
    }

    /// The library in the ranks of any job, and in what starts them.
    pub fn preloaded_directly(&self, job: Job) -> Job {
        self.preloaded_by(job, "LD_PRELOAD")
    }

    fn preloaded_by(&self, job: Job, variable: &str) -> Job {
        // two dfuse processes in one job make the real one print a line an open
        let quiet = job.rank_env("D_LOG_MASK", "CRIT").rank_env("D_IL_REPORT", "0");
        quiet.rank_env(variable, &self.library).rank_env("PCOPY_IOIL_OUT", self.counters())
    }

    fn counters(&self) -> PathBuf {
        let out = self.home.path().join("counters");
        fs::create_dir_all(&out).unwrap();
        chmod(&out, 0o777);
        out
    }

    /// The library in another program.
    pub fn preloaded_into(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("PCOPY_IOIL_OUT", self.counters()).env("D_LOG_MASK", "CRIT");
    }

    /// What the stand-in of the library counted since this was last asked, and in how many processes; nothing of the real
    /// one.
    pub fn take_counted(&self) -> Option<(BTreeMap<String, u64>, usize)> {
        self.one.stand_in.as_ref()?;
        let out = self.counters();
        let counted = preload::counted(&out);
        fs::remove_dir_all(&out).unwrap();
        self.counters();
        Some(counted)
    }
}

/// Waits until no mount shows what it remembers and is not so any more; but for missing names.
pub fn settle() {
    sleep(Duration::from_millis(2100));
}

/// What a container can hold of a tree.
pub fn held(tree: &Tree) -> Tree {
    let mut held = tree.clone();
    held.retain(|_, node| matches!(node.kind, Kind::File | Kind::Dir | Kind::Symlink));
    for node in held.values_mut() {
        node.mode &= !0o1000;
        node.xattrs.retain(|name, _| !name.starts_with(b"system.") && !name.starts_with(b"security."));
    }
    held
}

/// The marks of a tree's copy in a container, by kind.
pub fn marks_of(tree: &Tree) -> BTreeMap<String, u64> {
    let mut marks = BTreeMap::new();
    let mut mark = |kind: &str, count: usize| {
        if count > 0 {
            marks.insert(kind.to_owned(), u64::try_from(count).unwrap());
        }
    };
    let is_held = |kind| matches!(kind, Kind::File | Kind::Dir | Kind::Symlink);
    let count = |is: &dyn Fn(&Vec<u8>, &super::oracle::Node) -> bool| {
        tree.iter().filter(|(path, node)| is_held(node.kind) && is(path, node)).count()
    };
    let has = |node: &super::oracle::Node, prefix: &[u8]| node.xattrs.keys().any(|name| name.starts_with(prefix));
    mark("special", tree.values().filter(|node| !is_held(node.kind)).count());
    mark("links", count(&|path, node| node.kind != Kind::Dir && node.first_name != *path));
    mark("acl", count(&|_, node| has(node, b"system.posix_acl")));
    mark("xattr", count(&|_, node| has(node, b"security.")));
    mark("mode", count(&|_, node| node.mode & 0o1000 != 0));
    marks
}
