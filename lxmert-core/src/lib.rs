//! The core of the LXMERT workspace: the model of Tan & Bansal (2019), the numeric kernels under it, checkpoints, the
//! feature store, and text. Nothing here depends on the other crates of the workspace.
//!
//! Two features are off by default: `cli`, the command-line code that the workspace's programs share, and `hub`,
//! downloads from the hub.
//!
//! A third, `cuda`, adds kernels for the transformer's sub-layers and the optimiser ([`ops::cuda`]). They have been compiled and
//! tested on the CPU; nothing has run on a GPU yet.

pub mod answering;
pub mod answers;
pub mod batch;
pub mod boxes;
pub mod captions;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod error;
pub mod features;
pub mod files;
pub mod image_names;
pub mod interrupt;
pub mod launcher;
pub mod losses;
pub mod model;
pub mod nearby;
pub mod ops;
pub mod optim;
pub mod pretrained;
pub mod procedural;
pub mod text;
pub mod workspace;

pub use error::{Error, Result};
