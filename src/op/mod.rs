//! The operations, each its phases in order.

mod checkpoint;
mod choices;
mod collect;
pub mod copy;
mod incomplete;
mod lead;
mod limit;
mod outputs;
mod own_places;
mod prepare;
mod recall;
mod refusal;
mod resolve;
mod spill;
mod summary;
mod watchdog;

pub use copy::copy;
