//! Integration tests: the real program under the real mpirun, on real file systems.
//! A module a behaviour; what they stand on is in `support`, and has proofs of its own.
#![allow(clippy::unwrap_used)]

mod acls;
mod command_line;
mod dereference;
mod destinations;
mod dry_run;
mod errors;
mod existing;
mod faults;
mod faults_proof;
mod fidelity;
mod file_system_proof;
mod filters;
mod hosts;
mod interception;
mod journals;
mod judges_proof;
mod launch_proof;
mod limits;
mod lists;
mod manifest_marks_proof;
mod manifest_proof;
mod metadata;
mod names;
mod oracle_proof;
mod owners;
mod panics;
mod preserve;
mod races;
mod real_trees;
mod refusals;
mod requeue;
mod signals;
mod sizes;
mod slurm;
mod sparse;
mod support;
mod swaps;
mod unkept;
mod unpreserved;
