//! Training and evaluation of LXMERT: caption files and files of examples to batches, batches to steps, steps to
//! checkpoints and reports.
//!
//! A module uses only those above it:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`measures`], [`metrics`] | named numbers, and what is measured of matching and ranking |
//! | [`data`] | readers, splits by image, matched and mismatched pairs, batches read ahead |
//! | [`recipe`], [`task_weights`] | every setting of a run, and the recipes that tasks start from |
//! | [`run_folder`], [`job`] | what a run writes, where, and with which settings |
//! | [`origin`] | what a model is made of: configuration, vocabulary, the checkpoint it starts from |
//! | [`sums`], [`log`], [`resume`] | what batches add up to; JSONL, TensorBoard, curves, model card; the saved state |
//! | [`answering`], [`evaluate`], [`recalls`] | an answer head from another's; scoring pairs; ranking images and captions |
//! | [`tasks`] | what is trained: a task's data, model, losses and measures |
//! | [`trainer`] | the training loop, read from top to bottom |
//! | [`tasks::registry`] | the list of tasks |
//! | [`arguments`], [`ask`] | from the command line to jobs |

pub mod answering;
pub mod arguments;
pub mod ask;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod job;
pub mod log;
pub mod measures;
pub mod metrics;
pub mod origin;
pub mod ranks;
pub mod recalls;
pub mod recipe;
pub mod resume;
pub mod run_folder;
pub mod sums;
pub mod task_weights;
pub mod tasks;
pub mod trainer;

pub use error::{Error, Result};
