//! What the larger subcommands take and run.

pub mod relevancy;
