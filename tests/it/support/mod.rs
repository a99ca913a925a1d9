//! What the tests stand on: launching the program, looking at trees, real file systems.
//! Nothing here shares code with the product.

pub mod attacker;
pub mod chance;
pub mod copy;
pub mod crash;
pub mod daos;
pub mod extents;
pub mod faulty;
pub mod fuse;
pub mod hard_tree;
pub mod harm;
pub mod hosts;
pub mod interrupted;
pub mod journal;
pub mod launch;
pub mod listing;
pub mod losses;
pub mod manifest;
pub mod memory;
pub mod mounts;
pub mod oracle;
pub mod parallel;
pub mod preload;
pub mod resumed;
pub mod rsync;
pub mod served;
pub mod skip;
pub mod slurm;
pub mod strace;
pub mod sys;
pub mod told;
pub mod tree;
pub mod whole;
