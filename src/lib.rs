//! pcopy, the MPI-parallel copy for large backups. The tour is in ARCHITECTURE.md.
//!
//! Modules stand in the order of their layers: none imports one that comes later.

// what every layer speaks
pub mod types;

// pure: bytes and arithmetic
pub mod digest;
pub mod plan;
pub mod policy;
pub mod proto;

// effects: files, records, messages
pub mod watch;

pub mod sys;

pub mod retry;

pub mod state;

pub mod journal;

pub mod manifest;

pub mod comm;

pub mod guard;

pub mod collision;

pub mod scan;

pub mod transfer;

// roles: who decides, who works
pub mod signals;

pub mod coordinator;

pub mod worker;

// the program
pub mod cli;

pub mod progress;

pub mod op;
