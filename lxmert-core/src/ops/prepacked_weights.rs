//! Weight matrices packed once for many passes.

use super::matrix::Matrix;
use super::microkernel::Kernel;
use super::precision::Precision;
use super::product::Prepacked;
use candle_core::TensorId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The weights of a model's layers as its products read them, each packed at its first use: for an evaluation or a service, in which
/// many batches meet the same weights. A pass without it packs them anew.
///
/// It holds as many values as the layers, in half as many bytes with [`Precision::Bf16`]. Clones share it. Weights are known by their
/// tensors: after they have changed, as a training step changes them in place, begin with a new one.
///
/// ```
/// # use lxmert_core::{model::Pass, ops::PrepackedWeights};
/// let prepacked = PrepackedWeights::new();
/// let pass = Pass::eval().with_prepacked(&prepacked);
/// # let _ = pass;
/// ```
#[derive(Clone, Debug, Default)]
pub struct PrepackedWeights {
    matrices: Arc<Mutex<HashMap<Key, Arc<Prepacked>>>>,
}

/// A tensor, and what its values are rounded to.
type Key = (TensorId, Precision);

impl PrepackedWeights {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `weights` (`[out, in]`, the values of tensor `id`) as the right side of a product with their transpose.
    pub(super) fn get(&self, id: TensorId, weights: Matrix, precision: Precision) -> Arc<Prepacked> {
        let key = (id, precision);
        let matrices = || self.matrices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = matrices().get(&key) {
            return there.clone();
        }
        // Packed without the lock: a thread of the pool that waits for its parts may run another pass meanwhile, which asks
        // here too. Where two packed the same, the first stays.
        let new = Arc::new(Prepacked::new(weights.t(), Kernel::new(precision)));
        matrices().entry(key).or_insert(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn a_tensor_is_packed_once_for_each_precision() -> candle_core::Result<()> {
        let values = [1.0; 6];
        let (weights, prepacked) = (Matrix::new(&values, 2, 3), PrepackedWeights::new());
        let ids = [Tensor::zeros(1, DType::F32, &Device::Cpu)?.id(), Tensor::zeros(1, DType::F32, &Device::Cpu)?.id()];
        let first = prepacked.get(ids[0], weights, Precision::F32);
        assert!(Arc::ptr_eq(&first, &prepacked.clone().get(ids[0], weights, Precision::F32)), "clones share");
        for (id, precision) in [(ids[1], Precision::F32), (ids[0], Precision::Bf16)] {
            assert!(!Arc::ptr_eq(&first, &prepacked.get(id, weights, precision)), "{id:?} {precision}");
        }
        Ok(())
    }
}
