//! Training and evaluation of LXMERT: from caption files and files of examples to batches, steps, checkpoints and
//! reports.
//!
//! Each module uses only those above it:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`measures`], [`metrics`] | named numbers, and the measures of matching and ranking |
//! | [`data`] | readers, splits by image, matched and mismatched pairs, batches read ahead |
//! | [`recipe`], [`task_weights`] | every setting of a run, and the recipes that tasks start from |
//! | [`run_folder`], [`job`] | what a run writes, where, and with which settings |
//! | [`origin`] | where a model comes from: configuration, vocabulary, initial checkpoint |
//! | [`sums`], [`log`], [`resume`] | running sums; JSONL, TensorBoard, curves, model card; the saved state |
//! | [`answering`], [`evaluate`], [`recalls`] | an answer head from another head; scoring pairs; ranking images and captions |
//! | [`tasks`] | the tasks: data, model, losses and measures |
//! | [`trainer`] | the training loop |
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
