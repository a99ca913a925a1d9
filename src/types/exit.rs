//! The exit code of the job, and what each one promises.

/// How the job ended. `mpirun` passes the number on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Every entry is there, its data was durable, and the manifest says so.
    Complete,
    /// Some entries failed; the manifest names each.
    EntriesFailed,
    /// Bad usage, or refused before anything was written.
    Refused,
    /// Stopped before its end, and resumable: the same command goes on.
    Stopped,
    /// The job could not be finished: the manifest could not be written, or a defect was found.
    Broken,
}

impl ExitCode {
    /// The number that the process exits with.
    pub fn number(self) -> i32 {
        match self {
            Self::Complete => 0,
            Self::EntriesFailed => 1,
            Self::Refused => 2,
            // EX_TEMPFAIL of sysexits.h: what Slurm's RequeueExit can be set to
            Self::Stopped => 75,
            // EX_SOFTWARE of sysexits.h
            Self::Broken => 70,
        }
    }
}
