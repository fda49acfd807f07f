//! Photos to regions: a Faster R-CNN on Candle, and the choice of an image's regions.

pub mod detector;
