//! What the tests stand on: launching the program, looking at trees, real file systems.
//! Nothing here shares code with the product.

pub mod copy;
pub mod fuse;
pub mod hosts;
pub mod launch;
pub mod manifest;
pub mod mounts;
pub mod oracle;
pub mod preload;
pub mod skip;
pub mod slurm;
pub mod sys;
pub mod tree;
