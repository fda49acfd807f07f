//! A linear layer for inference whose weights are packed once.

use super::epilogue::{Epilogue, FusedActivation};
use super::feature_map::FeatureMap;
use super::matrix::{Matrix, Threads};
use super::microkernel::{Base, Kernel};
use super::precision::Precision;
use super::product::{self, Prepacked, Right};
use super::with_f32;
use candle_core::{Result, Tensor, bail};

/// `x Wᵀ + b`, then ReLU if there is one, with the weights packed for this machine's vector instructions.
#[derive(Debug)]
pub struct PrepackedLinear {
    weights: Prepacked,
    bias: Vec<f32>,
    relu: bool,
}

impl PrepackedLinear {
    /// `weight`: `[out, in]`, f32 on the CPU; `bias`: `[out]`. Weights and inputs are rounded to `precision`, bias and sums
    /// are not.
    ///
    /// # Errors
    /// When the tensors are of another kind or do not fit each other.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, relu: bool, precision: Precision) -> Result<Self> {
        let (out, inner) = weight.dims2()?;
        let bias = match bias {
            Some(bias) => with_f32(bias, <[f32]>::to_vec)?,
            None => vec![0.0; out],
        };
        if bias.len() != out || weight.elem_count() == 0 {
            bail!("linear weights {:?} with {} biases", weight.dims(), bias.len());
        }
        let weights = with_f32(weight, |w| Prepacked::new(Matrix::new(w, out, inner).t(), Kernel::new(precision)))?;
        Ok(Self { weights, bias, relu })
    }

    /// `x`: `[rows, …]` with as many values a row as the weights have, in the order of the map's memory (channels fastest).
    /// Gives `[rows, 1, 1, out]`, in `x`'s pool.
    ///
    /// # Errors
    /// When the rows do not fit the weights.
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let [rows, height, width, channels] = x.shape();
        let (inner, columns) = self.weights.shape();
        if height * width * channels != inner {
            bail!("rows of {height} × {width} × {channels} values do not fit a linear layer of {inner}");
        }
        let mut out = FeatureMap::unwritten([rows, 1, 1, columns], x.pool());
        if rows > 0 {
            let epilogue = match self.relu {
                true => Epilogue::Activate { activation: FusedActivation::Relu, dropout: None, derivative: None },
                false => Epilogue::Nothing,
            };
            let (a, b) = (Matrix::new(x.values(), rows, inner), Right::Prepacked(&self.weights));
            let bias = Base::Bias(&self.bias);
            product::multiply_right(out.values_mut(), columns, bias, 1.0, a, b, epilogue, Threads::Pool);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::BufferPool;
    use candle_core::Device;

    #[test]
    fn it_is_the_linear_layer() -> Result<()> {
        for (rows, inner, out) in [(1, 5, 3), (40, 1100, 70), (100, 64, 32), (0, 6, 2)] {
            let random = |name: &str, shape: &[usize]| {
                let values = crate::procedural::values(name, shape.iter().product(), -1.0, 1.0, 1);
                Tensor::from_vec(values, shape, &Device::Cpu)
            };
            let (x, w, b) = (random("x", &[rows, inner, 1, 1])?, random("w", &[out, inner])?, random("b", &[out])?);
            let map = FeatureMap::from_tensor(&x, &BufferPool::new())?;
            let expected = x.reshape((rows, inner))?.matmul(&w.t()?)?.broadcast_add(&b)?.relu()?;
            let largest = |t: Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
            for (precision, bound) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.4)] {
                let y = PrepackedLinear::new(&w, Some(&b), true, precision)?.forward(&map)?;
                assert_eq!(y.shape(), [rows, 1, 1, out]);
                if rows > 0 {
                    let y = y.into_tensor()?.reshape((rows, out))?;
                    let error = largest((&y - &expected)?)?;
                    assert!(error < bound, "{precision:?} {rows} {inner} {out}: {error}");
                }
            }
            let wrong = FeatureMap::from_tensor(&random("x", &[1, inner + 1, 1, 1])?, &BufferPool::new())?;
            assert!(PrepackedLinear::new(&w, None, false, Precision::F32)?.forward(&wrong).is_err());
        }
        Ok(())
    }
}
