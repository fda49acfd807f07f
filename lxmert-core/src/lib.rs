//! The core of the LXMERT workspace: the model of Tan & Bansal (2019), the numeric kernels under it, checkpoints, the
//! feature store, and text. Nothing here depends on the other crates of the workspace.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`model`], [`config`] | the network, its heads and the student project's variant; `config.json` |
//! | [`ops`] | what a sub-layer computes: kernels for the CPU and for CUDA, each beside its plain composition |
//! | [`checkpoint`], [`pretrained`] | files of weights from anywhere, the hub; a checkpoint with its vocabulary and answers |
//! | [`text`], [`answers`], [`answering`] | WordPiece; tables of answers; questions about an image |
//! | [`features`], [`boxes`] | the store of each image's regions |
//! | [`captions`], [`image_names`] | caption files in any format; names with and without folders and extensions |
//! | [`batch`], [`losses`], [`optim`] | examples of different lengths in a batch; losses; AdamW, its schedules, clipping |
//! | [`files`], [`nearby`], [`workspace`], [`interrupt`], [`launcher`] | whole files, typing errors, folders, signals, ranks |
//!
//! Two features are off by default: `cli`, the command-line code that the workspace's programs share, and `hub`,
//! downloads from the hub.
//!
//! A third, `cuda`, adds kernels for the transformer's sub-layers and the optimiser ([`ops::cuda`]). They have been compiled and
//! tested on the CPU; nothing has run on a GPU yet.
//!
//! # A published checkpoint answers a question
//!
//! The regions come from a feature store, which `lxmert-extract --detector visual-genome --images DIR` makes of photos; a
//! program that finds them itself takes the crate `lxmert-extract`.
//!
//! ```no_run
//! use candle_core::Device;
//! use lxmert_core::answering::Answerer;
//! use lxmert_core::features::FeatureStore;
//! use lxmert_core::pretrained::Pretrained;
//!
//! fn main() -> lxmert_core::Result<()> {
//!     let device = Device::Cpu;
//!
//!     // A folder, a weights file beside its config.json, or, with the feature `hub`, a repository: fetched once, then
//!     // taken from the cache that Python's libraries use too.
//!     let pretrained = Pretrained::open("hf:unc-nlp/lxmert-vqa-uncased")?;
//!     let answerer = Answerer::new(pretrained, &device)?;
//!     println!("{} layers of words, {} answers", answerer.config.l_layers, answerer.answers.len());
//!
//!     // The regions of one image: boxes, labels, and 2048 numbers each.
//!     let store = FeatureStore::open("data/features/photos")?;
//!     let image = store.index_of("chelsea.png").unwrap_or(0);
//!     let regions = store.regions(image)?;
//!     for region in 0..3.min(regions.num_regions()) {
//!         println!("{} at {:?}", store.info().region_name(&regions, region), regions.boxes[region]);
//!     }
//!
//!     // The five best answers, and the regions without which the first would lose most.
//!     let question = "What is the cat looking at?";
//!     let answers = answerer.ask(&regions, question, 5, &device)?;
//!     for answer in &answers {
//!         println!("{:.3}  {}", answer.probability, answer.answer);
//!     }
//!     let falls = answerer.rests_on(&regions, question, &answers[0], &device)?;
//!     println!("without the first region its logit falls by {:.2}", falls[0]);
//!     Ok(())
//! }
//! ```

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
#[cfg(any(feature = "cli", feature = "hub"))]
pub mod progress;
pub mod text;
pub mod workspace;

pub use error::{Error, Result};
