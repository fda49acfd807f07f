//! A detector's kernels on tensors of a CUDA device, for inference. Each gives none where it does not apply (another device, another
//! element type): the caller then computes the same on the CPU.

use super::device::{address, empty, run, use_kernels};
pub use super::launches::regions::REGION;
use super::launches::regions::{Pooling, Proposing, ProposingPlaces};
use candle_core::{DType, Device, Result, Tensor};

fn applies(tensors: &[&Tensor]) -> bool {
    !tensors.is_empty() && use_kernels(tensors) && tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

fn upload(table: Vec<u64>, device: &Device) -> Result<Tensor> {
    let count = table.len();
    Tensor::from_vec(table.into_iter().map(|value| value as i64).collect::<Vec<_>>(), count, device)
}

/// `regions`: `[count, REGION]`; `levels`: `[1, channels, rows, columns]` each. Returns `[count, channels, bins, bins]`.
///
/// # Errors
/// Returns an error if the device is out of memory.
pub fn pool(pooling: &Pooling, levels: &[Tensor], regions: &Tensor) -> Result<Option<Tensor>> {
    if regions.dim(0)? == 0 || !applies(&levels.iter().chain([regions]).collect::<Vec<_>>()) {
        return Ok(None);
    }
    let (device, regions) = (regions.device().as_cuda_device()?, regions.contiguous()?);
    let (count, channels, bins) = (regions.dim(0)?, pooling.channels as usize, pooling.bins as usize);
    let levels = levels.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    let addresses = levels.iter().map(address).collect::<Result<Vec<_>>>()?;
    let table = upload(pooling.table(&addresses), regions.device())?;
    let out = empty(device, (count, channels, bins, bins), DType::F32)?;
    run(device, &[pooling.launch([address(&table)?, address(&regions)?, address(&out)?], count as u32)])?;
    Ok(Some(out))
}

/// `predictions`: logits, `[1, shapes, rows, columns]`, and deltas, `[1, 4 · shapes, rows, columns]`, of each level. Returns
/// `[post_nms_top_n, REGION]`, best first.
///
/// # Errors
/// Returns an error if the device is out of memory.
pub fn propose(proposing: &Proposing, predictions: &[[&Tensor; 2]]) -> Result<Option<Tensor>> {
    if !proposing.fits() || !applies(predictions.as_flattened()) {
        return Ok(None);
    }
    let on = predictions[0][0].device();
    let device = on.as_cuda_device()?;
    let shapes: Vec<f32> = proposing.levels.iter().flat_map(|level| level.anchors.as_flattened()).copied().collect();
    let anchors = Tensor::from_slice(&shapes, shapes.len(), on)?;
    let mut at = address(&anchors)?;
    let (mut held, mut addresses) = (Vec::new(), Vec::new());
    for (level, [logits, deltas]) in proposing.levels.iter().zip(predictions) {
        let (logits, deltas) = (logits.contiguous()?, deltas.contiguous()?);
        addresses.push([address(&logits)?, address(&deltas)?, at]);
        at += (level.anchors.len() * 16) as u64;
        held.push((logits, deltas));
    }
    let table = upload(proposing.table(&addresses), on)?;
    let rooms = proposing.rooms().map(|count| empty(device, count, DType::U32));
    let rooms = rooms.into_iter().collect::<Result<Vec<_>>>()?;
    let out = empty(device, (proposing.post_nms_top_n as usize, REGION), DType::F32)?;
    let mut places = ProposingPlaces { table: address(&table)?, rooms: [0; 8], out: address(&out)? };
    for (place, room) in places.rooms.iter_mut().zip(&rooms) {
        *place = address(room)?;
    }
    run(device, &proposing.launches(&places))?;
    Ok(Some(out))
}
