//! Training and evaluation of LXMERT: from caption files and files of examples to batches, steps, checkpoints and
//! reports.
//!
//! Each module uses only those above it:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`measures`], [`metrics`] | named numbers, and the measures of matching and ranking |
//! | [`data`] | readers, splits by image, matched and mismatched pairs, batches read ahead |
//! | [`recipe`], [`task_weights`], [`trainable`] | every setting of a run, and the recipes that tasks start from |
//! | [`run_folder`], [`job`] | what a run writes, where, and with which settings |
//! | [`origin`] | where a model comes from: configuration, vocabulary, initial checkpoint |
//! | [`sums`], [`readings`], [`average`], [`log`], [`resume`] | running sums; what is still on a device; the weights' average; JSONL, TensorBoard, curves, model card; the saved state |
//! | [`answering`], [`evaluate`], [`recalls`] | an answer head from another head; scoring pairs; ranking images and captions |
//! | [`tasks`] | the tasks: data, model, losses and measures |
//! | [`start`], [`rounds`] | what a run starts from; how a step's batches are shared out among ranks |
//! | [`trainer`] | the training loop |
//! | [`tasks::registry`] | the list of tasks |
//! | [`compare`] | runs side by side |
//! | [`arguments`], [`ask`], [`check_published`] | from the command line to jobs |
//!
//! # A run from a program
//!
//! ```no_run
//! use candle_core::Device;
//! use lxmert_core::workspace::Workspace;
//! use lxmert_train::data::paths::{Data, DataPaths};
//! use lxmert_train::job::{Job, Start};
//! use lxmert_train::recipe::Recipe;
//! use lxmert_train::tasks::registry;
//! use lxmert_train::trainer::Outcome;
//! use std::time::Duration;
//!
//! fn main() -> lxmert_train::Result<()> {
//!     let workspace = Workspace::locate();
//!     let job = Job {
//!         // The scenes' recipe, for three epochs, with frozen embeddings.
//!         recipe: Recipe { epochs: 3, freeze: vec!["lxmert.embeddings.*".into()], ..Recipe::scenes() },
//!         data: Data::Captions(DataPaths::scenes(&workspace)?),
//!         output: workspace.run("frozen"),
//!         name: None,
//!         device: Device::Cpu,
//!         start: Start::Auto,
//!         allow_missing_images: false,
//!         save_every_steps: 500,
//!         save_every: Duration::from_secs(300),
//!         stop_after: None,
//!         show_progress: true,
//!         command: "my program".into(),
//!     };
//!     if let Outcome::Finished(report) = registry::train(&job)? {
//!         println!("{} after {} steps: {}", report.name, report.steps, report.test.test.line());
//!     }
//!     Ok(())
//! }
//! ```

pub mod answering;
pub mod arguments;
pub mod ask;
pub mod average;
pub mod check_published;
pub mod compare;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod job;
pub mod log;
pub mod measures;
pub mod metrics;
pub mod origin;
pub mod ranks;
pub mod readings;
pub mod recalls;
pub mod recipe;
pub mod resume;
pub mod rounds;
pub mod run_folder;
pub mod start;
pub mod sums;
pub mod task_weights;
pub mod tasks;
pub mod trainable;
pub mod trainer;

pub use error::{Error, Result};
