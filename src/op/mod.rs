//! The operations, each its phases in order.

mod collect;
pub mod copy;
mod lead;
mod resolve;

pub use copy::copy;
