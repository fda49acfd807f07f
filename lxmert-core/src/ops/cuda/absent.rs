//! `fused` of a build without CUDA: no kernel applies.

use crate::ops::attention::HeadsLayout;
use crate::ops::dropout_mask::Mask;
use crate::ops::ragged::Ragged;
use candle_core::{Result, Tensor};

pub fn norm(
    _: &Tensor,
    _: Option<&Tensor>,
    _: Option<&Tensor>,
    _: (&Tensor, &Tensor, f64),
    _: Option<(Mask, &Ragged)>,
) -> Result<Option<Tensor>> {
    Ok(None)
}

pub fn activate(_: &Tensor, _: Option<&Tensor>, _: u32, _: Option<(Mask, Option<&Ragged>)>) -> Result<Option<Tensor>> {
    Ok(None)
}

pub fn attention(_: &Tensor, _: &Tensor, _: &HeadsLayout) -> Result<Option<Tensor>> {
    Ok(None)
}

pub fn embedding(_: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
    Ok(None)
}
