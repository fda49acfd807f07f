//! From a caption file and a feature store to batches.

pub mod captions;
pub mod pairs;
pub mod splits;
