//! Training a detector: the losses of Faster R-CNN over matched anchors and proposals, as in torchvision, with
//! attribute heads beside the class head.
//!
//! [`targets`]: what each box should predict · [`trainer`]: one step, with losses from [`lxmert_core::losses`] ·
//! [`initial`]: seeded weights · [`evaluate`]: average precision · [`scenes`]: the shipped detector, trained on
//! generated scenes · [`cli`]

pub mod cli;
pub mod evaluate;
pub mod initial;
pub mod scenes;
pub mod targets;
pub mod trainer;

pub use trainer::{Example, StepLosses, Trainer, TrainingConfig};
