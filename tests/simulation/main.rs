//! The real coordinator with up to 10,000 simulated ranks, in virtual time: what is given out ends once, all ranks end
//! together, and rank 0's memory does not grow with the tree.

mod driver;
mod ends;
mod fuzz;
mod hostile;
mod scale;

#[global_allocator]
static ALLOCATOR: driver::memory::Counting = driver::memory::Counting;
