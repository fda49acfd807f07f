//! Training and evaluation of LXMERT: caption files to pairs, pairs to batches, batches to
//! steps, steps to checkpoints and reports.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`data`] | caption files, splits by image, matched and mismatched pairs, batches read ahead |
//! | [`tasks`] | what is trained: a task's data, model, losses and measures |
//! | [`optim`] | AdamW, the learning-rate schedule, gradient clipping |
//! | [`arguments`] | from arguments to settings: which data, which recipe, which folder |
//! | [`config`] | every knob of a run, with the recipes that a bare command uses |
//! | [`trainer`] | the training loop, read from top to bottom |
//! | [`resume`] | the state that lets a killed run go on equal to the bit |
//! | [`answering`], [`ask`] | checkpoints with an answer head, and asking one |
//! | [`evaluate`], [`retrieval`], [`metrics`], [`measures`] | what is measured, and how |
//! | [`log`] | JSONL, TensorBoard event files, the progress bar, curves as PNG |
//! | [`run_folder`] | what a run writes, and where |

pub mod answering;
pub mod arguments;
pub mod ask;
pub mod config;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod log;
pub mod measures;
pub mod metrics;
pub mod resume;
pub mod retrieval;
pub mod run_folder;
pub mod tasks;
pub mod trainer;

pub use error::{Error, Result};
pub use lxmert_core::optim;
