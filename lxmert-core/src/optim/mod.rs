//! The optimiser: AdamW, its learning-rate schedule and gradient clipping.

pub mod adamw;
pub mod clip;
pub mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use schedule::{Decay, Schedule};
