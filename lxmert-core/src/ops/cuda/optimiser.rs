//! The optimiser's step over all parameters on a device: one upload of addresses, one of rates, up to three launches.

use super::device::{address, address_or_null, run, use_kernels};
use super::launches::{Optimiser, StepConstants};
use crate::optim::Clip;
use candle_core::{DType, Result, Tensor};

/// One parameter: weights and both moments, f32, which the step changes in place; its gradient; what decay leaves of it, and its
/// step size.
pub(crate) struct Parameter<'a> {
    pub weight: &'a Tensor,
    pub first: &'a Tensor,
    pub second: &'a Tensor,
    pub gradient: Option<Tensor>,
    pub keep: f32,
    pub step_size: f32,
}

/// AdamW. A parameter without a gradient stays as it is. Returns the gradients' global norm, `[1]`, f32, which is 0 unless they are to
/// be clipped to a limit; none where the kernels do not apply.
pub(crate) fn step(parameters: &[Parameter], constants: &StepConstants, clip: Clip) -> Result<Option<Tensor>> {
    let applies = |p: &Parameter| {
        let own: Vec<&Tensor> = [p.weight, p.first, p.second].into_iter().chain(&p.gradient).collect();
        use_kernels(&own) && own.iter().all(|t| t.dtype() == DType::F32 && t.is_contiguous())
    };
    if parameters.iter().all(|p| p.gradient.is_none()) || !parameters.iter().all(applies) {
        return Ok(None);
    }
    let device = parameters[0].weight.device();
    let mut table = Vec::with_capacity(7 * parameters.len());
    for place in [
        |p: &Parameter| address_or_null(p.gradient.as_ref()),
        |p: &Parameter| address(p.weight),
        |p: &Parameter| address(p.first),
        |p: &Parameter| address(p.second),
        |_: &Parameter| Ok(0), // no bf16 copies
    ] {
        table.extend(parameters.iter().map(place).collect::<Result<Vec<u64>>>()?);
    }
    let sizes: Vec<usize> = parameters.iter().map(|p| p.gradient.as_ref().map_or(0, Tensor::elem_count)).collect();
    table.extend(Optimiser::sizes_and_pieces(&sizes));
    let piece_count = table.last().map_or(0, |pieces| *pieces as usize);
    let table: Vec<i64> = table.into_iter().map(|value| value as i64).collect();
    let rates = parameters.iter().map(|p| p.keep).chain(parameters.iter().map(|p| p.step_size)).collect();
    let scale = if let Clip::Scale(scale) = clip { scale as f32 } else { 0.0 };
    let table = Tensor::from_vec(table, 7 * parameters.len(), device)?;
    let rates = Tensor::from_vec(rates, 2 * parameters.len(), device)?;
    let squares = Tensor::zeros(piece_count, DType::F64, device)?;
    let norm = Tensor::new(&[0.0, scale], device)?;
    let optimiser = Optimiser {
        table: address(&table)?,
        squares: address(&squares)?,
        norm: address(&norm)?,
        rates: address(&rates)?,
        parameters: parameters.len() as u32,
        piece_count: piece_count as u32,
    };
    let clip = match clip {
        Clip::Scale(_) => Vec::new(),
        Clip::Limit(limit) => optimiser.clip(limit.unwrap_or(0.0) as f32).to_vec(),
    };
    run(device.as_cuda_device()?, &[clip, vec![optimiser.step(constants)]].concat())?;
    norm.narrow(0, 0, 1).map(Some)
}
