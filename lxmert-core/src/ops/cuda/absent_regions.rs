//! `regions` of a build without CUDA: no kernel applies.

pub use super::launches::regions::REGION;
use super::launches::regions::{Pooling, Proposing};
use candle_core::{Result, Tensor};

/// None.
///
/// # Errors
/// Never.
pub fn pool(_: &Pooling, _: &[Tensor], _: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}

/// None.
///
/// # Errors
/// Never.
pub fn propose(_: &Proposing, _: &[[&Tensor; 2]]) -> Result<Option<Tensor>> {
    Ok(None)
}
