//! A copy of which one side is a file system with faults.

use std::path::Path;

use tempfile::TempDir;

use super::fuse::{Control, Faults, FuseMount};
use super::interrupted::Task;
use super::launch::Job;
use super::skip::Missing;
use super::tree::{self, temp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// A copy from or to a file system with faults.
pub struct Scene {
    pub task: Task,
    pub fuse: FuseMount,
    _dir: TempDir,
}

impl Scene {
    pub fn new(side: Side, job: Job, fill: impl Fn(&Path)) -> Result<Scene, Missing> {
        Scene::with(Faults::default(), side, job, fill)
    }

    pub fn with(faults: Faults, side: Side, job: Job, fill: impl Fn(&Path)) -> Result<Scene, Missing> {
        let (fuse, dir) = (FuseMount::new(faults)?, temp());
        let [seen, real] = [fuse.path(), fuse.backing()];
        let src = if side == Side::Source { real.join("src") } else { dir.path().join("src") };
        fill(&src);
        tree::age(&src);
        let task = match side {
            Side::Source => Task::new(job, &seen.join("src"), &dir.path().join("dst")).really_from(&src),
            Side::Destination => Task::new(job, &src, &seen.join("dst")).really_to(&real.join("dst")),
        };
        Ok(Scene { task, fuse, _dir: dir })
    }

    pub fn control(&self) -> &Control {
        self.fuse.control()
    }

    /// Lifted, and the same command completes.
    #[track_caller]
    pub fn assert_completes_without_faults(&self) {
        self.control().lift();
        self.task.assert_completes();
    }
}
