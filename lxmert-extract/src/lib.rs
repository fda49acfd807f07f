//! Photos to regions: a Faster R-CNN on Candle, the choice of an image's regions, and the generated
//! scenes that ship as the default data set.

pub mod detector;
pub mod regions;
pub mod scenes;
