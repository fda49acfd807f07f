//! Multi-head scaled dot-product attention (Vaswani et al. 2017, §3.2) in one pass over
//! batch × heads, with its gradient: scores, softmax, dropout and the weighted sum never leave the
//! cache, heads are read in place, and the backward recomputes the probabilities.

use super::dropout::{DropoutRng, Mask, dropout};
use super::math::{add_scaled, dot, exp, sum};
use super::simd::vectorised;
use super::{contiguous_f32, cpu_tensor, hold, use_fast};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
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
}

impl KeyMask {
    /// From `mask`: `[batch, keys]`, 1 for real keys and 0 for padding, any type.
    ///
    /// # Errors
    /// When the mask is not of rank 2.
    pub fn new(mask: &Tensor) -> Result<Self> {
        mask.dims2()?;
        let additive = ((mask.to_dtype(candle_core::DType::F32)? - 1.0)? * f64::from(-MASKED))?;
        let values = if additive.device().is_cpu() { Some(Arc::new(additive.flatten_all()?.to_vec1()?)) } else { None };
        Ok(Self { additive, values })
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
    let op = Attention {
        heads: options.heads,
        mask,
        dropout: dropout.map(|rng| Mask::new(options.dropout_probability, rng.next_key())),
    };
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
    candle_nn::ops::softmax(&scores, D::Minus1)
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

struct Attention {
    heads: usize,
    mask: Option<Arc<Vec<f32>>>,
    dropout: Option<Mask>,
}

/// The sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    queries: usize,
    keys: usize,
    width: usize,
    heads: usize,
}

/// One head's keys or values laid out anew: `[keys, d]` from rows `width` apart.
fn gather(values: &[f32], sizes: Sizes, head: usize, out: &mut [f32]) {
    let d = sizes.width / sizes.heads;
    for (out, row) in out.chunks_exact_mut(d).zip(values.chunks_exact(sizes.width)) {
        out.copy_from_slice(&row[head * d..(head + 1) * d]);
    }
}

/// One head's keys transposed: `[d, keys]`.
fn gather_transposed(values: &[f32], sizes: Sizes, head: usize, out: &mut [f32]) {
    let d = sizes.width / sizes.heads;
    for (j, row) in values.chunks_exact(sizes.width).enumerate() {
        for (i, v) in row[head * d..(head + 1) * d].iter().enumerate() {
            out[i * sizes.keys + j] = *v;
        }
    }
}

/// Softmax of `q · keys` into `scores`.
#[inline(always)]
fn softmax_row(q: &[f32], keys_t: &[f32], mask: Option<&[f32]>, scores: &mut [f32]) {
    let keys = scores.len();
    let scale = 1.0 / (q.len() as f32).sqrt();
    match mask {
        Some(mask) => scores.copy_from_slice(mask),
        None => scores.fill(0.0),
    }
    for (q, keys_t) in q.iter().zip(keys_t.chunks_exact(keys)) {
        add_scaled(scores, q * scale, keys_t);
    }
    let top = scores.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    for s in scores.iter_mut() {
        *s = exp(*s - top);
    }
    let inverse = 1.0 / sum(scores);
    for s in scores.iter_mut() {
        *s *= inverse;
    }
}

/// What the kernels of one image-sentence pair share.
#[derive(Clone, Copy)]
struct Pair<'a> {
    sizes: Sizes,
    /// Additive mask of the pair's keys.
    mask: Option<&'a [f32]>,
    dropout: Option<Mask>,
    /// Position of the pair in the batch, from which the dropout masks count.
    index: usize,
}

impl Pair<'_> {
    /// Index of the first probability of (head, query) in `[batch, heads, queries, keys]`.
    #[inline(always)]
    fn first_index(&self, head: usize, query: usize) -> u32 {
        let Sizes { heads, queries, keys, .. } = self.sizes;
        (((self.index * heads + head) * queries + query) * keys) as u32
    }
}

vectorised! {
    /// `q`: `[queries, width]`; `k`, `v`: `[keys, width]`; adds to `out`: `[queries, width]`.
    fn forward(out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], pair: Pair) {
        let Sizes { queries, keys, width, heads } = pair.sizes;
        let d = width / heads;
        let mut keys_t = vec![0.0f32; keys * d];
        let mut row = vec![0.0f32; keys];
        for head in 0..heads {
            gather_transposed(k, pair.sizes, head, &mut keys_t);
            let columns = head * d..(head + 1) * d;
            for t in 0..queries {
                softmax_row(&q[t * width..][columns.clone()], &keys_t, pair.mask, &mut row);
                if let Some(mask) = &pair.dropout {
                    let first = pair.first_index(head, t);
                    for (j, p) in row.iter_mut().enumerate() {
                        *p *= mask.factor(first.wrapping_add(j as u32));
                    }
                }
                let out = &mut out[t * width..][columns.clone()];
                for (p, v) in row.iter().zip(v.chunks_exact(width)) {
                    add_scaled(out, *p, &v[columns.clone()]);
                }
            }
        }
    }
}

vectorised! {
    /// Adds to `dq`, `dk`, `dv` what the pair's `grad`: `[queries, width]` gives.
    fn backward(
        dq: &mut [f32], dk: &mut [f32], dv: &mut [f32], grad: &[f32], q: &[f32], k: &[f32], v: &[f32], pair: Pair,
    ) {
        let Sizes { queries, keys, width, heads } = pair.sizes;
        let d = width / heads;
        let scale = 1.0 / (d as f32).sqrt();
        let (mut keys_t, mut values_t, mut rows) =
            (vec![0.0f32; keys * d], vec![0.0f32; keys * d], vec![0.0f32; keys * d]);
        let (mut row, mut factors, mut dp) = (vec![0.0f32; keys], vec![1.0f32; keys], vec![0.0f32; keys]);
        for head in 0..heads {
            gather_transposed(k, pair.sizes, head, &mut keys_t);
            gather_transposed(v, pair.sizes, head, &mut values_t);
            gather(k, pair.sizes, head, &mut rows);
            let columns = head * d..(head + 1) * d;
            for t in 0..queries {
                let q = &q[t * width..][columns.clone()];
                let g = &grad[t * width..][columns.clone()];
                softmax_row(q, &keys_t, pair.mask, &mut row);
                if let Some(mask) = &pair.dropout {
                    let first = pair.first_index(head, t);
                    for (j, f) in factors.iter_mut().enumerate() {
                        *f = mask.factor(first.wrapping_add(j as u32));
                    }
                }
                // The gradient by the dropped probabilities, then through dropout.
                dp.fill(0.0);
                for (g, values_t) in g.iter().zip(values_t.chunks_exact(keys)) {
                    add_scaled(&mut dp, *g, values_t);
                }
                for (dp, f) in dp.iter_mut().zip(&factors) {
                    *dp *= f;
                }
                for ((p, f), dv) in row.iter().zip(&factors).zip(dv.chunks_exact_mut(width)) {
                    add_scaled(&mut dv[columns.clone()], p * f, g);
                }
                // Through the softmax: ds = p (dp − Σ p dp), and the scale.
                let mean = dot(&row, &dp);
                for (dp, p) in dp.iter_mut().zip(&row) {
                    *dp = p * (*dp - mean) * scale;
                }
                let dq = &mut dq[t * width..][columns.clone()];
                for ((ds, key), dk) in dp.iter().zip(rows.chunks_exact(d)).zip(dk.chunks_exact_mut(width)) {
                    add_scaled(dq, *ds, key);
                    add_scaled(&mut dk[columns.clone()], *ds, q);
                }
            }
        }
    }
}

impl Attention {
    fn sizes(&self, q: &Shape, k: &Shape) -> Result<Sizes> {
        let (_, queries, width) = q.dims3()?;
        let (_, keys, _) = k.dims3()?;
        Ok(Sizes { queries, keys, width, heads: self.heads })
    }

    fn pair(&self, index: usize, sizes: Sizes) -> Pair<'_> {
        let mask = self.mask.as_ref().map(|m| &m[index * sizes.keys..(index + 1) * sizes.keys]);
        Pair { sizes, mask, dropout: self.dropout, index }
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
        let sizes = self.sizes(q_layout.shape(), k_layout.shape())?;
        let (q, k, v) = (contiguous_f32(q, q_layout)?, contiguous_f32(k, k_layout)?, contiguous_f32(v, v_layout)?);
        let (rows, columns) = (sizes.queries * sizes.width, sizes.keys * sizes.width);
        let mut out = vec![0.0f32; q.len()];
        if rows > 0 {
            out.par_chunks_mut(rows).enumerate().for_each(|(b, out)| {
                let keys = b * columns..(b + 1) * columns;
                forward(out, &q[b * rows..(b + 1) * rows], &k[keys.clone()], &v[keys], self.pair(b, sizes));
            });
        }
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
        let sizes = self.sizes(q.shape(), k.shape())?;
        let (q_held, k_held, v_held, grad_held) = (hold(q), hold(k), hold(v), hold(&grad));
        let (qs, ks, vs, grads) = (q_held.values()?, k_held.values()?, v_held.values()?, grad_held.values()?);
        let (rows, columns) = (sizes.queries * sizes.width, sizes.keys * sizes.width);
        let (mut dq, mut dk, mut dv) = (vec![0.0f32; qs.len()], vec![0.0f32; ks.len()], vec![0.0f32; vs.len()]);
        if rows > 0 {
            let outputs = dq.par_chunks_mut(rows).zip(dk.par_chunks_mut(columns).zip(dv.par_chunks_mut(columns)));
            outputs.enumerate().for_each(|(b, (dq, (dk, dv)))| {
                let (queries, keys) = (b * rows..(b + 1) * rows, b * columns..(b + 1) * columns);
                let (q, k, v) = (&qs[queries.clone()], &ks[keys.clone()], &vs[keys]);
                backward(dq, dk, dv, &grads[queries], q, k, v, self.pair(b, sizes));
            });
        }
        Ok((Some(cpu_tensor(dq, q.shape())?), Some(cpu_tensor(dk, k.shape())?), Some(cpu_tensor(dv, v.shape())?)))
    }
}
