//! Who started this process, as the environment tells, before and beside MPI.

use std::env;

/// What the launcher says of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launcher {
    found: Option<Found>,
    /// A process manager that MPI can ask for the other ranks.
    has_process_manager: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: &'static str,
    /// The variable that holds the number of ranks.
    variable: &'static str,
    ranks: u64,
    rank: u64,
}

/// The launcher started several processes, and MPI took each for a job of its own.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{launcher} started {ranks} ranks ({variable}={ranks}), but MPI sees 1: each would copy everything. This pcopy is built for {library}: {advice}"
)]
pub struct Mismatch {
    launcher: &'static str,
    variable: &'static str,
    ranks: u64,
    library: &'static str,
    advice: &'static str,
}

/// Launchers by their variables: the number of ranks, and this one's. The first that is there counts.
const LAUNCHERS: [(&str, &str, &str); 3] = [
    ("OpenMPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MPICH's mpirun or srun --mpi=pmi2", "PMI_SIZE", "PMI_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
];

impl Launcher {
    /// As the environment of this process tells.
    pub fn from_env() -> Self {
        Self::new(|name| env::var(name).ok())
    }

    fn new(get: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| get(name).and_then(|text| text.parse::<u64>().ok());
        // the batch script itself is a step of one task; only steps that srun started count
        let in_srun = get("SLURM_STEP_ID").is_some_and(|id| id.parse::<u32>().is_ok_and(|id| id < 0xffff_fff0));
        let found = LAUNCHERS.iter().find_map(|&(name, variable, rank)| {
            if variable.starts_with("SLURM") && !in_srun {
                return None;
            }
            Some(Found { name, variable, ranks: number(variable)?, rank: number(rank).unwrap_or(0) })
        });
        let has_process_manager =
            ["PMIX_RANK", "PMI_RANK", "PMI_FD", "OMPI_COMM_WORLD_SIZE"].iter().any(|name| get(name).is_some());
        Self { found, has_process_manager }
    }

    /// Whether other ranks may have been started with this one.
    pub fn started_several(&self) -> bool {
        self.found.as_ref().is_some_and(|found| found.ranks > 1)
    }

    /// Whether this process is the one that speaks when MPI cannot be asked.
    pub fn is_first(&self) -> bool {
        self.found.as_ref().is_none_or(|found| found.rank == 0)
    }

    /// Before MPI is started: OpenMPI under `srun --mpi=none` would abort with a page of text.
    pub(super) fn check_environment(&self) -> Result<(), Mismatch> {
        if self.has_process_manager { Ok(()) } else { self.check(1) }
    }

    /// Compares with the number of ranks that MPI knows.
    pub(super) fn check(&self, mpi_size: usize) -> Result<(), Mismatch> {
        match &self.found {
            Some(found) if mpi_size == 1 && found.ranks > 1 => {
                let version = mpi::environment::library_version().unwrap_or_default();
                let (library, advice) = if version.contains("Open MPI") {
                    ("OpenMPI", "start it with OpenMPI's mpirun, or with srun --mpi=pmix")
                } else {
                    ("MPICH", "start it with MPICH's mpirun (mpiexec.hydra), or with srun --mpi=pmi2")
                };
                Err(Mismatch { launcher: found.name, variable: found.variable, ranks: found.ranks, library, advice })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launcher(vars: &[(&str, &str)]) -> Launcher {
        Launcher::new(|name| vars.iter().find(|(var, _)| *var == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn singletons_and_agreeing_launchers_pass() {
        assert_eq!(launcher(&[]).check(1), Ok(()));
        assert_eq!(launcher(&[("OMPI_COMM_WORLD_SIZE", "4")]).check(4), Ok(()));
        assert_eq!(launcher(&[("PMI_SIZE", "1")]).check(1), Ok(()));
        // in a batch script of 8 tasks, not started by srun
        let batch = [("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_ID", "4294967291")];
        assert_eq!(launcher(&batch).check(1), Ok(()));
        // mpirun inside of a step of srun counts its own ranks
        let inner = [("OMPI_COMM_WORLD_SIZE", "1"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_ID", "0")];
        assert_eq!(launcher(&inner).check(1), Ok(()));
    }

    #[test]
    fn many_singletons_are_noticed() {
        for vars in [
            vec![("PMI_SIZE", "2"), ("PMI_RANK", "1")],
            vec![("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "1")],
            vec![("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1")],
        ] {
            let launcher = launcher(&vars);
            assert!(launcher.started_several() && !launcher.is_first());
            let line = launcher.check(1).expect_err("a mismatch").to_string();
            assert!(line.contains("started 2 ranks") && !line.contains('\n'), "{line}");
        }
    }
}
