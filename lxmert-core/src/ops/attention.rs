//! Multi-head scaled dot-product attention (Vaswani et al. 2017, §3.2): as a composition that forms the map, and in one pass over
//! the pairs of a batch of ragged rows, with its gradient.

use super::dropout::Mask;
use super::heads::{self, Pair, PairDropout};
use super::ragged::Ragged;
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// The attention probabilities before dropout, `[batch, heads, queries, keys]`, from candle's own operations: for attention
/// maps and their gradients. `q`: `[batch, queries, width]`; `k`: `[batch, keys, width]`, whose real rows `keys` tells.
///
/// # Errors
/// When the shapes do not fit.
pub fn attention_probabilities(q: &Tensor, k: &Tensor, heads: usize, keys: &Ragged) -> Result<Tensor> {
    let head_width = q.dim(D::Minus1)? / heads;
    let scores = (split(q, heads)?.matmul(&split(k, heads)?.t()?)? / (head_width as f64).sqrt())?;
    let scores = match keys.key_bias(scores.dtype(), scores.device())? {
        Some(bias) => scores.broadcast_add(&bias)?,
        None => scores,
    };
    // Candle fails to take the maximum of an empty dimension.
    if scores.elem_count() == 0 { Ok(scores) } else { candle_nn::ops::softmax(&scores, D::Minus1) }
}

/// `probabilities` times the values `v`, `[batch, keys, width]`, heads merged: `[batch, queries, width]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn attention_weigh(probabilities: &Tensor, v: &Tensor) -> Result<Tensor> {
    let heads = probabilities.dim(1)?;
    probabilities.matmul(&split(v, heads)?)?.transpose(1, 2)?.contiguous()?.flatten_from(2)
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
    pub queries: Ragged,
    pub keys: Ragged,
    pub dropout: Option<Mask>,
}

/// Splits rows of `width` by item.
fn by_item<'a>(ragged: &Ragged, width: usize, mut values: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let split = |pair: &[usize]| {
        let (item, rest) = std::mem::take(&mut values).split_at_mut((pair[1] - pair[0]) * width);
        values = rest;
        item
    };
    ragged.starts().windows(2).map(split).collect()
}

impl HeadsLayout {
    fn pair<'a>(&'a self, index: usize) -> Pair<'a> {
        let (queries, keys) = (self.query_rows(index), self.key_rows(index));
        let dropout = self.dropout.map(|mask| PairDropout {
            mask,
            index,
            queries: self.queries.length(),
            keys: self.keys.length(),
            query_rows: &self.queries.rows()[queries.clone()],
            key_rows: &self.keys.rows()[keys.clone()],
        });
        Pair { queries: queries.len(), keys: keys.len(), width: self.width, heads: self.heads, dropout }
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

    /// `q`, `k` and `v` are ragged rows of the width. Pairs without keys leave `out` as it is.
    pub fn forward(&self, out: &mut [f32], q: &[f32], k: &[f32], v: &[f32]) {
        by_item(&self.queries, self.width, out).into_par_iter().enumerate().for_each(|(i, out)| {
            let (queries, keys) = (self.values(self.query_rows(i)), self.values(self.key_rows(i)));
            if !queries.is_empty() && !keys.is_empty() {
                heads::forward(out, &q[queries], &k[keys.clone()], &v[keys], self.pair(i));
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
    ) {
        let (dk, dv) = (by_item(&self.keys, self.width, dk), by_item(&self.keys, self.width, dv));
        let outputs = by_item(&self.queries, self.width, dq).into_par_iter().zip(dk).zip(dv);
        outputs.enumerate().for_each(|(i, ((dq, dk), dv))| {
            let (queries, keys) = (self.values(self.query_rows(i)), self.values(self.key_rows(i)));
            if !queries.is_empty() && !keys.is_empty() {
                let (grad, q) = (&grad[queries.clone()], &q[queries]);
                heads::backward(dq, dk, dv, grad, q, &k[keys.clone()], &v[keys], self.pair(i));
            }
        });
    }
}
