//! The global gradient norm, and clipping by it.

use crate::Result;
use crate::ops::in_pool;
use candle_core::{CpuStorage, Storage, Tensor};
use rayon::prelude::*;

/// Elements summed in one piece. Pieces are added in order, so the sum does not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// The Euclidean norm of all gradients taken as one vector, summed in f64 (torch's `get_total_norm`).
///
/// # Errors
/// Returns an error if a gradient cannot be read.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let gradients: Vec<&Tensor> = gradients.into_iter().collect();
    let Some(first) = gradients.first() else { return Ok(0.0) };
    in_pool(first.device(), || norm_of(&gradients))
}

fn norm_of(gradients: &[&Tensor]) -> Result<f64> {
    let (mut sum, mut elsewhere) = (0f64, Vec::new());
    for gradient in gradients {
        let flat = gradient.flatten_all()?.contiguous()?;
        let (storage, layout) = flat.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => sum += square_sum(&values[start..end]),
            _ => {
                drop(storage);
                elsewhere.push(flat.to_dtype(candle_core::DType::F32)?.sqr()?.sum_all()?);
            }
        }
    }
    if !elsewhere.is_empty() {
        // One reading for all.
        sum += Tensor::stack(&elsewhere, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok(sum.sqrt())
}

fn square_sum(values: &[f32]) -> f64 {
    /// Number of independent running sums, so that no addition waits for the previous one.
    const LANES: usize = 16;
    let piece = |piece: &[f32]| {
        let (blocks, rest) = piece.as_chunks::<LANES>();
        let mut sums = [0f64; LANES];
        for block in blocks {
            for (sum, &x) in sums.iter_mut().zip(block) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    };
    let pieces: Vec<f64> = values.par_chunks(PIECE).map(piece).collect();
    pieces.iter().sum()
}

/// The factor that scales gradients of norm `norm` down to at most `limit` (`torch.nn.utils.clip_grad_norm_`, with its
/// 1e-6); 1 without a limit.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_norm_is_over_all_gradients_together() {
        let a = Tensor::new(&[3f32, 0.0], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[0f32, 4.0], [0.0, 12.0]], &Device::Cpu).unwrap();
        assert_eq!(global_norm([&a, &b]).unwrap(), 13.0);
        assert_eq!(global_norm([&b.t().unwrap()]).unwrap(), 160f64.sqrt());
        let long = Tensor::ones(3 * PIECE + 7, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(global_norm([&long]).unwrap(), ((3 * PIECE + 7) as f64).sqrt());
    }

    #[test]
    fn clips_only_gradients_above_the_limit() {
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, None), 1.0);
    }
}
