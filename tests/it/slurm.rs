//! Under Slurm: every rank takes part in one job, or none copies anything (issue 2, item 2).

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::copy::{assert_exact, copy};
use crate::support::launch::{Job, Mpi, mpi, program};
use crate::support::manifest::{self, Expect};
use crate::support::oracle::{self, Aspects};
use crate::support::skip::need;
use crate::support::slurm::{Slurm, wait_until};
use crate::support::tree::{self, KIB, chmod, temp};

/// Two ranks, one a node, started by srun.
fn two_by_srun(slurm: &Slurm, plugin: &str) -> Job {
    let srun = ["srun", plugin, "--time=2", "-N", "2", "-n", "2"];
    let job = Job::ranks(2).by_words(srun).rank_env("SLURM_CONF", slurm.conf());
    // Both nodes are one machine, which OpenMPI's shared memory would take them for.
    job.rank_env("OMPI_MCA_btl", "self,tcp").options(["-k", "64K", "-b", "16K"])
}

fn source(at: &Path) -> std::path::PathBuf {
    tree::odd_tree(at, 64 * KIB, 16 * KIB)
}

#[test]
fn srun_without_mpi_is_refused_with_one_line_and_nothing_is_copied() {
    let slurm = need!(Slurm::start());
    let dir = temp();
    let (src, dst) = (source(&dir.path().join("src")), dir.path().join("dst"));
    let outcome = two_by_srun(&slurm, "--mpi=none").run([&src, &dst]);
    assert!(!dst.exists(), "{}", outcome.told());
    match mpi() {
        // It ends the program in MPI_Init, with words and an exit code of its own.
        Mpi::OpenMpi => assert_ne!(outcome.code(), Some(0), "{}", outcome.told()),
        // It starts two jobs of one rank, which pcopy notices.
        Mpi::Mpich => {
            outcome.assert_code(2).assert_says("srun --mpi=pmi2");
            assert_eq!(outcome.lines_of_pcopy().len(), 1, "{}", outcome.told());
        }
    }
}

#[test]
fn srun_with_the_right_plugin_starts_the_ranks_of_one_job() {
    let slurm = need!(Slurm::start());
    let plugin = match mpi() {
        Mpi::OpenMpi => "--mpi=pmix",
        Mpi::Mpich => "--mpi=pmi2",
    };
    let dir = temp();
    let src = source(&dir.path().join("src"));
    let copied = copy(&two_by_srun(&slurm, plugin), &[&src], &dir.path().join("dst"));
    copied.outcome.assert_code(0);
    assert_exact(&copied, &src);
    assert_eq!(copied.manifest().header["ranks"], 2);
}

#[test]
fn without_srun_a_job_script_of_four_tasks_copies_with_one_rank() {
    let slurm = need!(Slurm::start());
    let dir = temp();
    let (src, dst) = (source(&dir.path().join("src")), dir.path().join("dst"));
    let [script, log, code] = ["script", "log", "code"].map(|name| dir.path().join(name));
    let [pcopy, from, to, log_to, end] = [program(), &src, &dst, &log, &code].map(|path| path.display());
    let lines = format!(
        "#!/bin/sh\nexport OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1\n\
         '{pcopy}' -k 64K -b 16K '{from}' '{to}' >'{log_to}' 2>&1\necho $? >'{end}.new'\nmv '{end}.new' '{end}'\n"
    );
    fs::write(&script, lines).unwrap();
    chmod(&script, 0o755);
    let options = ["--parsable", "--time=2", "-n", "4", "-o", "/dev/null"].map(Path::new);
    let id = slurm.ask("sbatch", options.into_iter().chain([script.as_path()]));
    assert!(!id.is_empty(), "sbatch: {}", slurm.logs());
    let ended = wait_until(Duration::from_secs(30), || code.exists());
    let said = fs::read_to_string(&log).unwrap_or_default();
    assert!(ended, "job {id} does not end: {said}\n{}", slurm.logs());
    assert_eq!(fs::read_to_string(&code).unwrap().trim(), "0", "{said}");
    let expect = Expect { root: &dst, ranks: 1, digests: true, strangers: false };
    manifest::checked(&dst.join(".pcopy/manifest.jsonl"), &expect);
    oracle::assert_same(&src, &dst, Aspects::ALL);
}
