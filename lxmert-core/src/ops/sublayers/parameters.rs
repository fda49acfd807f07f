//! Passes any number of weights as one argument of an operation; candle's custom operations take only three.

use super::super::gradients::deliver;
use super::super::linear::Factor;
use super::super::prepacked_weights::PrepackedWeights;
use super::super::{Held, hold};
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, TensorId};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// An operation's weights. In the graph a [`node`](Self::node) without data represents them: the operation leaves their
/// gradients here, and the node's own backward pass, which runs later, passes them on.
#[derive(Debug, Clone)]
pub(super) struct Parameters {
    tensors: Vec<Tensor>,
    /// Ids of the original tensors, because a contiguous copy is a new tensor each time.
    ids: Vec<TensorId>,
    prepacked: Option<PrepackedWeights>,
    gradients: Arc<Mutex<Vec<Option<Tensor>>>>,
}

impl Parameters {
    /// `prepacked`: where the prepacked weights may be.
    pub fn new(tensors: &[&Tensor], prepacked: Option<&PrepackedWeights>) -> Result<Self> {
        let ids = tensors.iter().map(|t| t.id()).collect();
        let tensors: Vec<Tensor> = tensors.iter().map(|t| t.contiguous()).collect::<Result<_>>()?;
        let gradients = Arc::new(Mutex::new(vec![None; tensors.len()]));
        Ok(Self { gradients, tensors, ids, prepacked: prepacked.cloned() })
    }

    /// The node that represents them in the graph.
    pub fn node(&self) -> Result<Tensor> {
        let mut node = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?;
        for (index, pair) in self.tensors.chunks(2).enumerate() {
            if pair.iter().any(Tensor::track_op) {
                let op = Link { gradients: self.gradients.clone(), first: 2 * index };
                node = node.apply_op3(&pair[0], pair.last().unwrap_or(&pair[0]), op)?;
            }
        }
        Ok(node)
    }

    /// Weight `index`, for reading.
    pub fn hold(&self, index: usize) -> Held<'_, impl Deref<Target = Storage>> {
        hold(&self.tensors[index])
    }

    /// Weight matrix `index`, with these values, as a factor.
    pub fn factor<'a>(&'a self, index: usize, values: &'a [f32]) -> Factor<'a> {
        Factor { values, id: self.ids[index], prepacked: self.prepacked.as_ref() }
    }

    /// Whether the gradient of weight `index`, or of the next one, is wanted.
    pub fn is_learned(&self, index: usize) -> bool {
        self.tensors[index..].iter().take(2).any(Tensor::track_op)
    }

    /// A vector for the gradient of weight `index`; empty if it is not wanted.
    pub fn zeros(&self, index: usize) -> Vec<f32> {
        let tensor = &self.tensors[index];
        vec![0.0; if tensor.track_op() { tensor.elem_count() } else { 0 }]
    }

    /// Stores the gradient of weight `index`, if wanted.
    pub fn set(&self, index: usize, gradient: Vec<f32>) -> Result<()> {
        let gradient = deliver(&self.tensors[index], gradient)?;
        self.gradients.lock().unwrap_or_else(PoisonError::into_inner)[index] = gradient;
        Ok(())
    }
}

/// Two weights (or one, twice) and the node of those before them.
struct Link {
    gradients: Arc<Mutex<Vec<Option<Tensor>>>>,
    first: usize,
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), 1.into()))
    }

    fn bwd(
        &self,
        before: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let mut take = |index: usize| gradients.get_mut(index).and_then(Option::take);
        let (first, second) = (take(self.first), take(self.first + 1));
        Ok((before.track_op().then(|| grad.clone()), first, second))
    }
}
