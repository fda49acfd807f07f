//! What the larger subcommands take and run.

pub mod grounding;
pub mod perturbation;
pub mod relevancy;
