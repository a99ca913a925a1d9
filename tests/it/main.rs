//! Integration tests: the real program under the real mpirun, on real file systems.
//! A module a behaviour; what they stand on is in `support`, and has proofs of its own.
#![allow(clippy::unwrap_used)]

mod acls;
mod command_line;
mod destinations;
mod errors;
mod file_system_proof;
mod hosts;
mod interception;
mod launch_proof;
mod limits;
mod manifest_proof;
mod metadata;
mod names;
mod oracle_proof;
mod panics;
mod races;
mod real_trees;
mod refusals;
mod sizes;
mod slurm;
mod sparse;
mod support;
mod swaps;
