//! The operations, each its phases in order.

mod choices;
mod collect;
pub mod copy;
mod lead;
mod prepare;
mod resolve;
mod summary;

pub use copy::copy;
