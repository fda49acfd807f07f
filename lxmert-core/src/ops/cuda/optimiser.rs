//! The optimiser's step over all parameters on a device: one upload of addresses, three launches.

use super::device::{address, address_or_null, run, use_kernels};
use super::launches::{Optimiser, StepConstants};
use candle_core::{DType, Result, Tensor};

/// One parameter: weights and both moments, f32, which the step changes in place; its gradient; what decay leaves of it.
pub(crate) struct Parameter<'a> {
    pub weight: &'a Tensor,
    pub first: &'a Tensor,
    pub second: &'a Tensor,
    pub gradient: Option<Tensor>,
    pub keep: f32,
}

fn launched(gradients: &[Option<&Tensor>], rest: [&[u64]; 4], keep: &[f32], norm: [f32; 2]) -> Result<Launched> {
    let device = gradients.iter().flatten().next().map(|g| g.device().clone());
    let Some(device) = device else { candle_core::bail!("a step without gradients") };
    let sizes: Vec<usize> = gradients.iter().map(|g| g.map_or(0, Tensor::elem_count)).collect();
    let mut table = gradients.iter().map(|g| address_or_null(*g)).collect::<Result<Vec<u64>>>()?;
    rest.iter().for_each(|part| table.extend(*part));
    table.extend(sizes.iter().map(|size| *size as u64));
    let pieces = Optimiser::pieces(&sizes);
    let upload = |values: Vec<u64>| {
        let count = values.len();
        Tensor::from_vec(values.into_iter().map(|v| v as i64).collect::<Vec<i64>>(), count, &device)
    };
    let piece_count = pieces.len() / 2;
    let parts = [
        upload(table)?,
        upload(pieces)?,
        Tensor::zeros(piece_count, DType::F64, &device)?,
        Tensor::from_slice(&norm, 2, &device)?,
        Tensor::from_slice(keep, keep.len(), &device)?,
    ];
    let [table, pieces, squares, norm, keep] = [0, 1, 2, 3, 4].map(|i| address(&parts[i]));
    let optimiser = Optimiser {
        table: table?,
        pieces: pieces?,
        squares: squares?,
        norm: norm?,
        keep: keep?,
        parameters: gradients.len() as u32,
        piece_count: piece_count as u32,
    };
    Ok(Launched { parts, optimiser })
}

/// A launch's tables, which live as long as it does.
struct Launched {
    parts: [Tensor; 5],
    optimiser: Optimiser,
}

/// The global norm, read back in one copy; none where the kernels do not apply.
pub(crate) fn global_norm(gradients: &[&Tensor]) -> Result<Option<f64>> {
    let applies = gradients.iter().all(|g| g.dtype() == DType::F32 && g.is_contiguous()) && use_kernels(gradients);
    if gradients.is_empty() || !applies {
        return Ok(None);
    }
    let given: Vec<Option<&Tensor>> = gradients.iter().map(|g| Some(*g)).collect();
    let nothing = vec![0u64; given.len()];
    let launched = launched(&given, [&nothing, &nothing, &nothing, &nothing], &[0.0], [0.0; 2])?;
    run(gradients[0].device().as_cuda_device()?, &launched.optimiser.clip(0.0))?;
    Ok(Some(f64::from(launched.parts[3].to_vec1::<f32>()?[0])))
}

/// AdamW with the gradients times `scale`; false where the kernel does not apply. A parameter without a gradient stays as it is.
pub(crate) fn step(parameters: &[Parameter], constants: &StepConstants, scale: f32) -> Result<bool> {
    let applies = |p: &Parameter| {
        let own = [p.weight, p.first, p.second].into_iter().chain(&p.gradient);
        let own: Vec<&Tensor> = own.collect();
        use_kernels(&own) && own.iter().all(|t| t.dtype() == DType::F32 && t.is_contiguous())
    };
    if parameters.iter().all(|p| p.gradient.is_none()) || !parameters.iter().all(applies) {
        return Ok(false);
    }
    let gradients: Vec<Option<&Tensor>> = parameters.iter().map(|p| p.gradient.as_ref()).collect();
    let addresses = |of: fn(&Parameter) -> Result<u64>| parameters.iter().map(of).collect::<Result<Vec<u64>>>();
    let weights = addresses(|p| address(p.weight))?;
    let firsts = addresses(|p| address(p.first))?;
    let seconds = addresses(|p| address(p.second))?;
    let copies = vec![0u64; parameters.len()];
    let keep: Vec<f32> = parameters.iter().map(|p| p.keep).collect();
    let launched = launched(&gradients, [&weights, &firsts, &seconds, &copies], &keep, [0.0, scale])?;
    run(parameters[0].weight.device().as_cuda_device()?, &[launched.optimiser.step(constants)])?;
    Ok(true)
}
