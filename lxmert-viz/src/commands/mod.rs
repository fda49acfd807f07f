//! What the larger subcommands take and run.

pub mod perturbation;
pub mod relevancy;
