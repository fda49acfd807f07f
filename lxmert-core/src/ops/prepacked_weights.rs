//! Weight matrices prepacked once for many passes.

use super::matrix::Matrix;
use super::microkernel::Kernel;
use super::precision::Precision;
use super::product::Prepacked;
use candle_core::TensorId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The weights of a model's layers in the layout that its products read, each prepacked at its first use; for
/// evaluation or a service, where many batches use the same weights. A pass without it packs them each time.
///
/// It holds as many values as the layers, in half as many bytes with [`Precision::Bf16`]. Clones share it. Weights are
/// identified by their tensors: if they change, as in a training step, which changes them in place, start with a new
/// one.
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

/// A tensor, and the precision of its values.
type Key = (TensorId, Precision);

impl PrepackedWeights {
    /// Creates an empty set.
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
        // Pack without the lock: a pool thread that waits for its parts may meanwhile run another pass that asks here
        // too. If two threads pack the same weights, the first result stays.
        let new = Arc::new(Prepacked::new(weights.t(), Kernel::new(precision)));
        matrices().entry(key).or_insert(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn a_tensor_is_prepacked_once_for_each_precision() -> candle_core::Result<()> {
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
