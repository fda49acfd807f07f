//! Multi-head scaled dot-product attention (Vaswani et al. 2017, §3.2) in one pass over batch × heads, with its gradient.

use super::dropout::{DropoutRng, Mask, dropout};
use super::heads::{self, Pair, PairDropout};
use super::packing::Packing;
use super::{contiguous_f32, cpu_tensor, hold, use_fast};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// What is added to the score of a masked key; the finite stand-in for −∞ of the original code
/// (airsplay/lxmert), so that a row whose keys are all masked stays a distribution.
const MASKED: f32 = -10_000.0;

/// Which keys may be attended to, shared by every layer of a forward pass.
#[derive(Debug, Clone)]
pub struct KeyMask {
    /// `[batch, keys]`, 0 for real keys and −10,000 for padding.
    additive: Tensor,
    values: Option<Arc<Vec<f32>>>,
    packing: Option<Packing>,
}

impl KeyMask {
    /// From `mask`: `[batch, keys]`, 1 for real keys and 0 for padding, any type.
    ///
    /// # Errors
    /// When the mask is not of rank 2.
    pub fn new(mask: &Tensor) -> Result<Self> {
        let (batch, keys) = mask.dims2()?;
        let mask = mask.to_dtype(candle_core::DType::F32)?;
        let additive = ((&mask - 1.0)? * f64::from(-MASKED))?;
        if !mask.device().is_cpu() {
            return Ok(Self { additive, values: None, packing: None });
        }
        let packing = Packing::of_mask(&mask.flatten_all()?.to_vec1::<f32>()?, batch, keys);
        let values = Some(Arc::new(additive.flatten_all()?.to_vec1()?));
        Ok(Self { additive, values, packing })
    }

    /// Where the real keys lie, if every one is either real or not.
    pub fn packing(&self) -> Option<&Packing> {
        self.packing.as_ref()
    }
}

/// What one attention needs besides its tensors.
#[derive(Debug, Clone, Copy)]
pub struct AttentionOptions<'a> {
    /// Number of heads; divides the width.
    pub heads: usize,
    /// Padding of the keys.
    pub mask: Option<&'a KeyMask>,
    /// Dropout of the probabilities.
    pub dropout_probability: f32,
    /// Draws the dropout masks; none in evaluation.
    pub rng: Option<&'a DropoutRng>,
}

/// `softmax(Q Kᵀ / √d) V` per head, heads merged. `q`: `[batch, queries, width]`; `k`, `v`:
/// `[batch, keys, width]`; gives `[batch, queries, width]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    if !use_fast(&[q, k, v]) || k.dim(1)? == 0 {
        let probabilities = probabilities(q, k, options)?;
        return weigh(&probabilities, v, options);
    }
    let (batch, _, width) = q.dims3()?;
    if k.dims() != v.dims() || k.dim(0)? != batch || k.dim(2)? != width || !width.is_multiple_of(options.heads) {
        candle_core::bail!(
            "attention of {:?} over {:?} and {:?}, {} heads",
            q.dims(),
            k.dims(),
            v.dims(),
            options.heads
        );
    }
    let mask = options.mask.and_then(|m| m.values.clone());
    if let Some(mask) = &mask
        && mask.len() != batch * k.dim(1)?
    {
        candle_core::bail!("a mask of {} keys for {:?}", mask.len(), k.dims());
    }
    let dropout = options.rng.filter(|_| options.dropout_probability > 0.0);
    let layout = HeadsLayout {
        heads: options.heads,
        width,
        queries: Packing::dense(batch, q.dim(1)?),
        keys: Packing::dense(batch, k.dim(1)?),
        dropout: dropout.map(|rng| Mask::new(options.dropout_probability, rng.next_key())),
    };
    let op = Attention { layout, mask };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// The attention probabilities before dropout, `[batch, heads, queries, keys]`, from candle's own
/// operations: for attention maps and their gradients.
///
/// # Errors
/// When the shapes do not fit.
pub fn probabilities(q: &Tensor, k: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let head_width = q.dim(D::Minus1)? / options.heads;
    let q = split(q, options.heads)?;
    let k = split(k, options.heads)?;
    // [batch, heads, queries, keys]
    let scores = (q.matmul(&k.t()?)? / (head_width as f64).sqrt())?;
    let scores = match options.mask {
        Some(mask) => {
            let (batch, keys) = mask.additive.dims2()?;
            scores.broadcast_add(&mask.additive.reshape((batch, 1, 1, keys))?.to_dtype(scores.dtype())?)?
        }
        None => scores,
    };
    // Candle takes no maximum of nothing.
    if scores.elem_count() == 0 { Ok(scores) } else { candle_nn::ops::softmax(&scores, D::Minus1) }
}

/// Dropout of `probabilities`, times the values, heads merged: `[batch, queries, width]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn weigh(probabilities: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let dropped = dropout(probabilities, options.dropout_probability, options.rng)?;
    let context = dropped.matmul(&split(v, options.heads)?)?;
    context.transpose(1, 2)?.contiguous()?.flatten_from(2)
}

/// `[batch, length, width]` to `[batch, heads, length, width / heads]`.
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, length, width) = x.dims3()?;
    x.reshape((batch, length, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// The pairs of a batch: rows of queries and keys of each, and what their heads share.
#[derive(Debug, Clone)]
pub(crate) struct HeadsLayout {
    pub heads: usize,
    pub width: usize,
    pub queries: Packing,
    pub keys: Packing,
    pub dropout: Option<Mask>,
}

/// Splits rows of `width` by item.
fn by_item<'a>(packing: &Packing, width: usize, mut values: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let split = |pair: &[usize]| {
        let (item, rest) = std::mem::take(&mut values).split_at_mut((pair[1] - pair[0]) * width);
        values = rest;
        item
    };
    packing.starts().windows(2).map(split).collect()
}

impl HeadsLayout {
    fn pair<'a>(&'a self, index: usize, mask: Option<&'a [f32]>) -> Pair<'a> {
        let (queries, keys) = (self.query_rows(index), self.key_rows(index));
        let dropout = self.dropout.map(|mask| PairDropout {
            mask,
            index,
            queries: self.queries.length(),
            keys: self.keys.length(),
            query_rows: &self.queries.rows()[queries.clone()],
            key_rows: &self.keys.rows()[keys.clone()],
        });
        let mask = mask.map(|mask| &mask[keys.clone()]);
        Pair { queries: queries.len(), keys: keys.len(), width: self.width, heads: self.heads, mask, dropout }
    }

    fn query_rows(&self, index: usize) -> Range<usize> {
        self.queries.starts()[index]..self.queries.starts()[index + 1]
    }

    fn key_rows(&self, index: usize) -> Range<usize> {
        self.keys.starts()[index]..self.keys.starts()[index + 1]
    }

    fn values(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.width..rows.end * self.width
    }

    /// Packed `q`, `k` and `v`, rows of the width; `mask`: what is added to the scores of each packed key. Pairs without keys
    /// leave `out` as it is.
    pub fn forward(&self, out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], mask: Option<&[f32]>) {
        by_item(&self.queries, self.width, out).into_par_iter().enumerate().for_each(|(i, out)| {
            let (queries, keys) = (self.values(self.query_rows(i)), self.values(self.key_rows(i)));
            if !queries.is_empty() && !keys.is_empty() {
                heads::forward(out, &q[queries], &k[keys.clone()], &v[keys], self.pair(i, mask));
            }
        });
    }

    /// Writes the gradients; those of pairs without queries or keys stay as they are.
    #[allow(clippy::too_many_arguments)] // four inputs and their gradients
    pub fn backward(
        &self,
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
        grad: &[f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        mask: Option<&[f32]>,
    ) {
        let (dk, dv) = (by_item(&self.keys, self.width, dk), by_item(&self.keys, self.width, dv));
        let outputs = by_item(&self.queries, self.width, dq).into_par_iter().zip(dk).zip(dv);
        outputs.enumerate().for_each(|(i, ((dq, dk), dv))| {
            let (queries, keys) = (self.values(self.query_rows(i)), self.values(self.key_rows(i)));
            if !queries.is_empty() && !keys.is_empty() {
                let (grad, q) = (&grad[queries.clone()], &q[queries]);
                heads::backward(dq, dk, dv, grad, q, &k[keys.clone()], &v[keys], self.pair(i, mask));
            }
        });
    }
}

struct Attention {
    layout: HeadsLayout,
    mask: Option<Arc<Vec<f32>>>,
}

impl Attention {
    fn mask(&self) -> Option<&[f32]> {
        self.mask.as_ref().map(|mask| mask.as_slice())
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (contiguous_f32(q, q_layout)?, contiguous_f32(k, k_layout)?, contiguous_f32(v, v_layout)?);
        let mut out = vec![0.0f32; q.len()];
        self.layout.forward(&mut out, q, k, v, self.mask());
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (q_held, k_held, v_held, grad_held) = (hold(q), hold(k), hold(v), hold(&grad));
        let (qs, ks, vs, grads) = (q_held.values()?, k_held.values()?, v_held.values()?, grad_held.values()?);
        let (mut dq, mut dk, mut dv) = (vec![0.0f32; qs.len()], vec![0.0f32; ks.len()], vec![0.0f32; vs.len()]);
        self.layout.backward(&mut dq, &mut dk, &mut dv, grads, qs, ks, vs, self.mask());
        Ok((Some(cpu_tensor(dq, q.shape())?), Some(cpu_tensor(dk, k.shape())?), Some(cpu_tensor(dv, v.shape())?)))
    }
}
