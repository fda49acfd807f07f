//! The optimiser: AdamW, its learning-rate schedule and gradient clipping.

pub mod adamw;
pub mod clip;
pub mod schedule;

#[cfg(feature = "cuda")]
pub(crate) use adamw::Clip;
pub use adamw::{AdamW, AdamWConfig, Norm};
pub use schedule::{Decay, Schedule};
