//! Photos to regions: a Faster R-CNN on Candle, the choice of an image's regions, and the generated
//! scenes that ship as the default data set.

pub mod choice;
pub mod detector;
pub mod error;
pub mod extraction;
pub mod failures;
pub mod finder;
pub mod images;
pub mod import;
pub mod inputs;
pub mod inspect;
pub mod parts;
pub mod pipeline;
pub mod regions;
pub mod scenes;
pub mod weights;

pub use error::{Error, Result};
