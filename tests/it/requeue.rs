//! Under Slurm a job that is stopped goes back into the queue until the copy is complete (issue 4, item 7):
//! hostfiles/slurm-requeue.sbatch as it is, on a real Slurm.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::fuse::{Faults, FuseMount};
use crate::support::interrupted::{Task, leftovers};
use crate::support::launch::{Job, Mpi, mpi, program};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::{Missing, need};
use crate::support::slurm::Slurm;
use crate::support::tree::{self, temp};

const WITHIN: Duration = Duration::from_secs(120);

/// A copy in Slurm that takes ten seconds and more, until it is let go.
struct Scene {
    slurm: Slurm,
    fuse: FuseMount,
    task: Task,
    dir: TempDir,
}

impl Scene {
    fn new(configuration: &str) -> Result<Scene, Missing> {
        let (slurm, fuse) = (Slurm::start_with(configuration)?, FuseMount::new(Faults::default())?);
        let dir = temp();
        let src = tree::small_files(&fuse.backing().join("src"), 4, 60);
        // Only its places are of use: the job script starts it.
        let nobody = Job::ranks(2);
        let task = Task::new(nobody, &fuse.path().join("src"), &dir.path().join("dst")).really_from(&src);
        fuse.control().delay(100);
        Ok(Scene { slurm, fuse, task, dir })
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Puts the script into the queue, for one rank on each of the two nodes.
    fn submit(&self, options: &str, max_runs: &str) -> String {
        self.submit_as(program(), options, max_runs)
    }

    /// With this program for pcopy.
    fn submit_as(&self, pcopy: &Path, options: &str, max_runs: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hostfiles/slurm-requeue.sbatch");
        let log = self.log_file();
        let fixed = ["--time=60", "-N", "2", "--ntasks-per-node=1", "--cpus-per-task=1", "-o"].map(OsStr::new);
        let places = [&log, &script, &self.task.src, &self.task.dst].map(|path| path.as_os_str());
        let words: Vec<_> = fixed.into_iter().chain(places).collect();
        let plugin = match mpi() {
            Mpi::OpenMpi => "pmix",
            Mpi::Mpich => "pmi2",
        };
        let options = format!("--threads 1 {options}");
        let variables = [
            ("PCOPY", pcopy.as_os_str()),
            ("PCOPY_MPI", plugin.as_ref()),
            ("PCOPY_OPTIONS", options.as_ref()),
            ("PCOPY_MAX_RUNS", max_runs.as_ref()),
            // The script waits a minute without it.
            ("SLURM_WAIT", "2".as_ref()),
            // Both nodes are one machine, which OpenMPI's shared memory would take them for.
            ("OMPI_MCA_btl", "self,tcp".as_ref()),
        ];
        self.slurm.submit(&words, &variables)
    }

    /// Waits until it is so.
    #[track_caller]
    fn wait(&self, job: &str, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !is_so() {
            let state = self.slurm.state(job);
            let told = || format!("{state}, log:\n{}\n{}", self.log(), self.slurm.logs());
            assert!(Instant::now() < deadline, "job {job} does not come to this: {what}: {}", told());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// In the queue, running, copying.
    fn wait_for_the_middle(&self, job: &str) {
        let before = self.fuse.control().reads();
        self.wait(job, "it copies", || self.fuse.control().reads() >= before + 20);
    }

    fn restarts(&self, job: &str) -> u64 {
        self.slurm.told(job, "Restarts").parse().unwrap()
    }

    /// It goes back into the queue, and lets the copy go then.
    #[track_caller]
    fn wait_for_requeue(&self, job: &str) {
        self.wait(job, "a requeue", || self.restarts(job) > 0);
        self.fuse.control().lift();
    }

    /// The job ends as one that succeeded, and everything is where it belongs.
    #[track_caller]
    fn assert_completes(&self, job: &str) {
        self.wait(job, "the end", || !["PENDING", "RUNNING", "COMPLETING"].contains(&&*self.slurm.state(job)));
        let log = self.log();
        assert_eq!(self.slurm.state(job), "COMPLETED", "{log}\n{}", self.slurm.logs());
        oracle::assert_none(&oracle::differences(&self.task.real_src, &self.task.dst, Aspects::ALL), &log);
        oracle::assert_none(&leftovers(&self.task.dst, &self.task.state()), &log);
        assert!(log.contains("going on with the job that began"), "{log}");
    }
}

/// What the log tells of who put the job back into the queue.
const BY_ITSELF: &str = "run 1 stopped; the job requeues itself";
const BY_SLURM: &str = "run 1 stopped; Slurm requeues the job";

#[test]
fn a_job_that_comes_to_its_time_limit_requeues_itself_until_the_copy_is_complete() {
    let scene = need!(Scene::new(""));
    let job = scene.submit("--time-limit 5s --grace 3s", "100");
    scene.wait_for_requeue(&job);
    scene.assert_completes(&job);
    assert!(scene.log().contains(BY_ITSELF), "{}", scene.log());
}

#[test]
fn a_job_that_is_signalled_requeues_itself_and_completes() {
    let scene = need!(Scene::new(""));
    let job = scene.submit("", "100");
    scene.wait_for_the_middle(&job);
    scene.slurm.ask("scancel", ["--signal=USR1", &job]);
    scene.wait_for_requeue(&job);
    assert!(scene.log().contains("stopped by SIGUSR1"), "{}", scene.log());
    scene.assert_completes(&job);
    assert!(scene.log().contains(BY_ITSELF), "{}", scene.log());
}

#[test]
fn where_slurm_requeues_by_the_exit_code_the_script_leaves_that_to_it() {
    let scene = need!(Scene::new("RequeueExit=75\n"));
    let job = scene.submit("", "100");
    scene.wait_for_the_middle(&job);
    scene.slurm.ask("scancel", ["--signal=USR1", &job]);
    scene.wait_for_requeue(&job);
    scene.assert_completes(&job);
    assert!(scene.log().contains(BY_SLURM), "{}", scene.log());
    assert_eq!(scene.restarts(&job), 1, "{}", scene.slurm.logs());
}

#[test]
fn a_job_that_used_up_its_runs_fails_and_is_not_requeued() {
    let scene = need!(Scene::new("RequeueExit=75\n"));
    let job = scene.submit("", "1");
    scene.wait_for_the_middle(&job);
    scene.slurm.ask("scancel", ["--signal=USR1", &job]);
    scene.wait(&job, "its failure", || scene.slurm.state(&job) == "FAILED");
    assert_eq!((scene.slurm.told(&job, "ExitCode").as_str(), scene.restarts(&job)), ("70:0", 0), "{}", scene.log());
    assert!(scene.log().contains("not complete after 1 runs"), "{}", scene.log());
    scene.fuse.control().lift();
    let again = scene.submit("", "1");
    scene.assert_completes(&again);
}

#[test]
fn a_job_that_is_cancelled_stays_so_and_a_new_one_of_the_same_command_completes_the_copy() {
    let scene = need!(Scene::new(""));
    let job = scene.submit("", "100");
    scene.wait_for_the_middle(&job);
    scene.slurm.ask("scancel", [&job]);
    scene.wait(&job, "its end", || scene.slurm.state(&job) == "CANCELLED");
    assert!(!scene.task.state().join("manifest.jsonl").exists(), "{}", scene.log());
    scene.fuse.control().lift();
    let again = scene.submit("", "100");
    scene.assert_completes(&again);
    assert_eq!((scene.slurm.state(&job).as_str(), scene.restarts(&job)), ("CANCELLED", 0), "{}", scene.slurm.logs());
}

#[test]
fn a_job_whose_rank_dies_before_the_others_have_met_it_is_requeued_and_completes() {
    let scene = need!(Scene::new(""));
    scene.fuse.control().lift();
    let [wrapper, died] = ["wrapper", "died"].map(|name| scene.dir.path().join(name));
    let [once, pcopy] = [&died, program()].map(|path| path.display());
    let lines = format!(
        "#!/bin/sh\nif [ \"$SLURM_PROCID\" = 1 ] && mkdir '{once}' 2>/dev/null; then kill -SEGV $$; fi\n\
         exec '{pcopy}' \"$@\"\n"
    );
    fs::write(&wrapper, lines).unwrap();
    tree::chmod(&wrapper, 0o755);
    let job = scene.submit_as(&wrapper, "", "100");
    scene.wait_for_requeue(&job);
    assert!(died.exists());
    scene.wait(&job, "the end", || scene.slurm.state(&job) == "COMPLETED");
    assert!(scene.task.dst.exists(), "{}\n{}", scene.log(), scene.slurm.logs());
    oracle::assert_none(&oracle::differences(&scene.task.real_src, &scene.task.dst, Aspects::ALL), &scene.log());
}

#[test]
fn a_job_whose_rank_is_killed_while_it_copies_is_requeued_and_completes() {
    let scene = need!(Scene::new(""));
    let job = scene.submit("", "100");
    scene.wait_for_the_middle(&job);
    scene.slurm.kill_ranks_on("n2");
    scene.wait_for_requeue(&job);
    scene.assert_completes(&job);
}

#[test]
fn a_job_that_loses_a_node_is_requeued_and_completes_when_the_node_is_back() {
    let mut scene = need!(Scene::new(""));
    let job = scene.submit("", "100");
    scene.wait_for_the_middle(&job);
    scene.slurm.lose_second_node();
    scene.wait_for_requeue(&job);
    scene.slurm.bring_back_second_node();
    scene.assert_completes(&job);
    assert!(scene.log().contains("NODE FAILURE"), "{}", scene.log());
}
