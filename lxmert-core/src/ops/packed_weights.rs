//! Weight matrices packed once for many passes.

use super::bf16::Precision;
use super::finish::Finish;
use super::kernel::Kernel;
use super::matmul::Matrix;
use super::matmul::Threads;
use super::product::{self, Base, Packed};
use super::strassen::{self, PackedSums};
use candle_core::TensorId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The weights of a model's layers as its products read them, each packed at its first use: for an evaluation or a service, in which
/// many batches meet the same weights. A pass without it packs them anew.
///
/// In f32 it holds seven quarters of the layers' values, since large products are done by Strassen's algorithm, whose rounding errors
/// are some two times those of the plain product; with [`Precision::Bf16`] as many values as the layers, in half as many bytes. Clones
/// share it. Weights are known by their tensors: after they have changed, as a training step does in place, begin with a new one.
///
/// ```
/// # use lxmert_core::{config::LxmertConfig, model::{Forward, LxmertModel}, ops::PackedWeights};
/// let packed = PackedWeights::new();
/// let run = Forward::eval().with_packed(&packed);
/// # let _ = run;
/// ```
#[derive(Clone, Debug, Default)]
pub struct PackedWeights {
    packed: Arc<Mutex<HashMap<Key, Arc<PackedMatrix>>>>,
}

/// A tensor, which of its equal parts, and what its values are rounded to.
type Key = (TensorId, usize, Precision);

impl PackedWeights {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `weights` (`[out, in]`, part `part` of tensor `id`) as the right side of a product with their transpose.
    pub(super) fn get(
        &self,
        (id, part): (TensorId, usize),
        weights: Matrix,
        precision: Precision,
    ) -> Arc<PackedMatrix> {
        let key = (id, part, precision);
        let packed = || self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = packed().get(&key) {
            return there.clone();
        }
        // Packed without the lock: a thread of the pool that waits for its parts may run another pass meanwhile, which asks here too.
        // Where two packed the same, the first stays.
        let new = Arc::new(PackedMatrix::new(weights.t(), precision));
        packed().entry(key).or_insert(new).clone()
    }
}

/// A packed right side.
#[derive(Debug)]
pub(super) enum PackedMatrix {
    Panels(Packed),
    Sums(PackedSums),
}

impl PackedMatrix {
    fn new(b: Matrix, precision: Precision) -> Self {
        match precision == Precision::F32 && PackedSums::apply(&b) {
            true => Self::Sums(PackedSums::new(b)),
            false => Self::Panels(Packed::new(b, Kernel::new(precision))),
        }
    }

    /// `out = finish(base + a · self)`.
    pub fn multiply(&self, out: &mut [f32], leading: usize, base: Base, a: Matrix, finish: Finish) {
        match self {
            Self::Panels(b) => product::multiply_packed(out, leading, base, a, b, finish, Threads::Pool),
            Self::Sums(b) => strassen::multiply(out, leading, base, a, b, finish, Threads::Pool),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn a_part_of_a_tensor_is_packed_once_for_each_precision() -> candle_core::Result<()> {
        let values = [1.0; 6];
        let (weights, packed) = (Matrix::new(&values, 2, 3), PackedWeights::new());
        let ids = [Tensor::zeros(1, DType::F32, &Device::Cpu)?.id(), Tensor::zeros(1, DType::F32, &Device::Cpu)?.id()];
        let first = packed.get((ids[0], 0), weights, Precision::F32);
        // A clone shares it.
        assert!(Arc::ptr_eq(&first, &packed.clone().get((ids[0], 0), weights, Precision::F32)));
        for (key, precision) in
            [((ids[0], 1), Precision::F32), ((ids[1], 0), Precision::F32), ((ids[0], 0), Precision::Bf16)]
        {
            assert!(!Arc::ptr_eq(&first, &packed.get(key, weights, precision)), "{key:?} {precision}");
        }
        Ok(())
    }
}
