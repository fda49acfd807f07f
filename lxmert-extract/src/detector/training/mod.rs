//! Training a detector: the losses of Faster R-CNN over matched anchors and proposals, as
//! torchvision trains it, with attribute heads beside the class head.
//!
//! [`targets`]: what each box should predict · [`trainer`]: one step, its losses from [`lxmert_core::losses`] ·
//! [`initial`]: seeded weights · [`evaluate`]: average precision · [`scenes`]: the detector that
//! ships, trained on generated scenes · [`cli`]

pub mod cli;
pub mod evaluate;
pub mod initial;
pub mod scenes;
pub mod targets;
pub mod trainer;

pub use trainer::{Example, StepLosses, Trainer, TrainingConfig};
