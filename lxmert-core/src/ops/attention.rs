//! Multi-head scaled dot-product attention (Vaswani et al. 2017, §3.2), in two forms. One is a composition that forms
//! the map. The other runs on the microkernel, pair by pair and head by head over a batch of ragged rows: scores,
//! softmax, dropout and the weighted sum never leave the cache, and the backward pass recomputes the probabilities.

use super::dropout_mask::Mask;
use super::math::{dot, exp, sum};
use super::matrix::Matrix;
use super::microkernel::{Base, Kernel, Left};
use super::precision::Precision;
use super::ragged::Ragged;
use super::scratch::with_scratch;
use super::simd::vectorised;
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// The attention probabilities before dropout, `[batch, heads, queries, keys]`, composed of candle's own operations;
/// for attention maps and their gradients. `q`: `[batch, queries, width]`; `k`: `[batch, keys, width]`; `keys` says
/// which of its rows are real.
///
/// # Errors
/// Returns an error if the shapes do not fit.
pub fn attention_probabilities(q: &Tensor, k: &Tensor, heads: usize, keys: &Ragged) -> Result<Tensor> {
    let head_width = q.dim(D::Minus1)? / heads;
    let scores = (split(q, heads)?.matmul(&split(k, heads)?.t()?)? / (head_width as f64).sqrt())?;
    let scores = match keys.key_bias(scores.dtype(), scores.device())? {
        Some(bias) => scores.broadcast_add(&bias)?,
        None => scores,
    };
    // Candle cannot take the maximum over an empty dimension.
    if scores.elem_count() == 0 { Ok(scores) } else { candle_nn::ops::softmax(&scores, D::Minus1) }
}

/// `probabilities` times the values `v`, `[batch, keys, width]`, heads merged: `[batch, queries, width]`.
///
/// # Errors
/// Returns an error if the shapes do not fit.
pub fn attention_weigh(probabilities: &Tensor, v: &Tensor) -> Result<Tensor> {
    let heads = probabilities.dim(1)?;
    probabilities.matmul(&split(v, heads)?)?.transpose(1, 2)?.contiguous()?.flatten_from(2)
}

/// `[batch, length, width]` to `[batch, heads, length, width / heads]`.
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, length, width) = x.dims3()?;
    x.reshape((batch, length, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// The pairs of a batch: the rows of queries and keys of each, and what their heads share.
#[derive(Debug, Clone)]
pub(crate) struct HeadsLayout {
    pub heads: usize,
    pub width: usize,
    pub queries: Ragged,
    pub keys: Ragged,
    /// Dropout of the probabilities; the masks are those of the padded `[batch, heads, queries, keys]` tensor.
    pub dropout: Option<Mask>,
}

/// Splits rows of length `width` by item.
fn by_item<'a>(ragged: &Ragged, width: usize, mut values: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let split = |pair: &[usize]| {
        let (item, rest) = std::mem::take(&mut values).split_at_mut((pair[1] - pair[0]) * width);
        values = rest;
        item
    };
    ragged.starts().windows(2).map(split).collect()
}

impl HeadsLayout {
    /// Pair `index`, and the ranges of its queries and keys in the values; `None` if it has no queries or no keys.
    fn pair(&self, index: usize) -> Option<(Pair<'_>, Range<usize>, Range<usize>)> {
        let rows = |ragged: &Ragged| ragged.starts()[index]..ragged.starts()[index + 1];
        let (queries, keys) = (rows(&self.queries), rows(&self.keys));
        let pair = Pair { layout: self, index, queries: queries.len(), keys: keys.len() };
        let values = |rows: Range<usize>| rows.start * self.width..rows.end * self.width;
        (pair.queries > 0 && pair.keys > 0).then(|| (pair, values(queries), values(keys)))
    }

    /// Attention of `q` over `k` and `v`, ragged rows of the full width. Pairs without keys leave `out` unchanged.
    pub fn forward(&self, out: &mut [f32], [q, k, v]: [&[f32]; 3]) {
        by_item(&self.queries, self.width, out).into_par_iter().enumerate().for_each(|(i, out)| {
            if let Some((pair, queries, keys)) = self.pair(i) {
                forward(out, [&q[queries], &k[keys.clone()], &v[keys]], pair);
            }
        });
    }

    /// Writes the gradients with respect to `q`, `k` and `v`; those of pairs without queries or keys stay unchanged.
    pub fn backward(&self, [dq, dk, dv]: [&mut [f32]; 3], grad: &[f32], [q, k, v]: [&[f32]; 3]) {
        let (dk, dv) = (by_item(&self.keys, self.width, dk), by_item(&self.keys, self.width, dv));
        let outputs = by_item(&self.queries, self.width, dq).into_par_iter().zip(dk).zip(dv);
        outputs.enumerate().for_each(|(i, ((dq, dk), dv))| {
            if let Some((pair, queries, keys)) = self.pair(i) {
                let grad = &grad[queries.clone()];
                backward([dq, dk, dv], grad, [&q[queries], &k[keys.clone()], &v[keys]], pair);
            }
        });
    }
}

/// One pair in a layout.
#[derive(Clone, Copy)]
struct Pair<'a> {
    layout: &'a HeadsLayout,
    index: usize,
    queries: usize,
    keys: usize,
}

impl Pair<'_> {
    /// The dropout factors of a query's probabilities.
    #[inline(always)]
    fn factors(&self, mask: Mask, head: usize, query: usize, factors: &mut [f32]) {
        let Pair { layout, index, .. } = *self;
        let (queries, keys) = (&layout.queries, &layout.keys);
        let query = queries.rows()[queries.starts()[index] + query] as usize - index * queries.length();
        let first = (((index * layout.heads + head) * queries.length() + query) * keys.length()) as u32;
        let first = first.wrapping_sub((index * keys.length()) as u32);
        for (factor, row) in factors.iter_mut().zip(&keys.rows()[keys.starts()[index]..]) {
            *factor = mask.factor(first.wrapping_add(*row));
        }
    }
}

/// Sizes of a head's matrices, rounded up to tiles and panels.
struct Tiles {
    kernel: Kernel,
    d: usize,
    query_rows: usize,
    key_rows: usize,
    /// Widths of a row of scores and of a row of values.
    scores: usize,
    values: usize,
}

impl Tiles {
    fn new(pair: &Pair) -> Self {
        let kernel = Kernel::new(Precision::F32);
        let d = pair.layout.width / pair.layout.heads;
        Self {
            d,
            query_rows: kernel.round_rows(pair.queries),
            key_rows: kernel.round_rows(pair.keys),
            scores: pair.keys.next_multiple_of(kernel.columns),
            values: d.next_multiple_of(kernel.columns),
            kernel,
        }
    }

    /// Packs `b` with `inner` rows into panels; its columns fill rows of length `width`.
    fn pack(&self, b: Matrix, panels: &mut [f32]) {
        let size = b.shape().0 * self.kernel.columns;
        for (index, panel) in panels.chunks_exact_mut(size.max(1)).enumerate() {
            b.copy_panel(0, index, self.kernel.columns, panel);
        }
    }

    /// `out` (`rows` × `width`) = `a` · packed `panels`.
    fn multiply(&self, rows: usize, inner: usize, a: Left, panels: &[f32], out: &mut [f32], width: usize) {
        for (index, panel) in panels.chunks_exact(inner * self.kernel.columns).enumerate() {
            let out = &mut out[index * self.kernel.columns..];
            self.kernel.multiply(rows, inner, a, panel, Base::Zero, out, width);
        }
    }
}

/// A head's columns of the pair's keys.
fn head_of<'a>(values: &'a [f32], pair: &Pair, head: usize) -> Matrix<'a> {
    let HeadsLayout { heads, width, .. } = *pair.layout;
    let d = width / heads;
    Matrix::strided(&values[head * d..], pair.keys, d, width)
}

fn copy_head(from: &[f32], pair: &Pair, head: usize, factor: f32, to: &mut [f32]) {
    let HeadsLayout { heads, width, .. } = *pair.layout;
    let d = width / heads;
    for (to, from) in to.chunks_exact_mut(d).zip(from.chunks_exact(width)) {
        for (to, from) in to.iter_mut().zip(&from[head * d..(head + 1) * d]) {
            *to = from * factor;
        }
    }
}

fn store_head(from: &[f32], stride: usize, factor: f32, pair: &Pair, head: usize, to: &mut [f32]) {
    let HeadsLayout { heads, width, .. } = *pair.layout;
    let d = width / heads;
    for (from, to) in from.chunks_exact(stride).zip(to.chunks_exact_mut(width)) {
        for (to, from) in to[head * d..(head + 1) * d].iter_mut().zip(from) {
            *to = from * factor;
        }
    }
}

vectorised! {
    /// Softmax of the first `keys` of every row of scores.
    fn softmax(scores: &mut [f32], stride: usize, pair: Pair) {
        for row in scores.chunks_exact_mut(stride).take(pair.queries) {
            let row = &mut row[..pair.keys];
            let mut tops = [f32::NEG_INFINITY; 16];
            let (chunks, rest) = row.as_chunks::<16>();
            for chunk in chunks {
                for (top, score) in tops.iter_mut().zip(chunk) {
                    *top = if *score > *top { *score } else { *top };
                }
            }
            let top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            for score in row.iter_mut() {
                *score = exp(*score - top);
            }
            let inverse = 1.0 / sum(row);
            for score in row.iter_mut() {
                *score *= inverse;
            }
        }
    }
}

vectorised! {
    fn drop_out(probabilities: &mut [f32], stride: usize, factors: &mut [f32], head: usize, pair: Pair) {
        let Some(mask) = pair.layout.dropout else { return };
        for (query, row) in probabilities.chunks_exact_mut(stride).take(pair.queries).enumerate() {
            pair.factors(mask, head, query, factors);
            for (p, f) in row.iter_mut().zip(factors.iter()) {
                *p *= f;
            }
        }
    }
}

vectorised! {
    /// Turns the gradient with respect to the dropped-out probabilities into that with respect to the scores, and
    /// applies dropout to the probabilities.
    fn back_through_softmax(
        probabilities: &mut [f32], grads: &mut [f32], stride: usize, factors: &mut [f32], head: usize, pair: Pair,
    ) {
        let rows = probabilities.chunks_exact_mut(stride).zip(grads.chunks_exact_mut(stride));
        for (query, (p, g)) in rows.take(pair.queries).enumerate() {
            let (p, g) = (&mut p[..pair.keys], &mut g[..pair.keys]);
            if let Some(mask) = pair.layout.dropout {
                pair.factors(mask, head, query, factors);
                for (g, f) in g.iter_mut().zip(factors.iter()) {
                    *g *= f;
                }
            }
            let mean = dot(p, g);
            for (g, p) in g.iter_mut().zip(p.iter()) {
                *g = p * (*g - mean);
            }
            if pair.layout.dropout.is_some() {
                for (p, f) in p.iter_mut().zip(factors.iter()) {
                    *p *= f;
                }
            }
        }
    }
}

/// `q`: `[queries, width]`; `k`, `v`: `[keys, width]`; writes `out`: `[queries, width]`. There is at least one key.
fn forward(out: &mut [f32], [q, k, v]: [&[f32]; 3], pair: Pair) {
    let t = Tiles::new(&pair);
    let scale = 1.0 / (t.d as f32).sqrt();
    let sizes = [
        t.query_rows * t.d,
        t.d * t.scores,
        pair.keys * t.values,
        t.query_rows * t.scores,
        t.query_rows * t.values,
        pair.keys,
    ];
    with_scratch(sizes, |[queries, keys, values, scores, sums, factors]| {
        for head in 0..pair.layout.heads {
            copy_head(q, &pair, head, scale, queries);
            t.pack(head_of(k, &pair, head).t(), keys);
            t.pack(head_of(v, &pair, head), values);
            t.multiply(t.query_rows, t.d, Left { values: queries, row: t.d, inner: 1 }, keys, scores, t.scores);
            softmax(scores, t.scores, pair);
            drop_out(scores, t.scores, factors, head, pair);
            let left = Left { values: scores, row: t.scores, inner: 1 };
            t.multiply(t.query_rows, pair.keys, left, values, sums, t.values);
            store_head(sums, t.values, 1.0, &pair, head, out);
        }
    });
}

/// Writes `dq`, `dk` and `dv` for the pair's gradient `grad`, `[queries, width]`.
fn backward([dq, dk, dv]: [&mut [f32]; 3], grad: &[f32], [q, k, v]: [&[f32]; 3], pair: Pair) {
    let t = Tiles::new(&pair);
    let scale = 1.0 / (t.d as f32).sqrt();
    let most = pair.queries.max(pair.keys).max(t.d) * t.values.max(t.scores);
    let rows = t.query_rows.max(t.key_rows);
    let sizes = [
        t.query_rows * t.d,
        t.query_rows * t.d,
        most,
        t.query_rows * t.scores,
        t.query_rows * t.scores,
        rows * t.values,
        pair.keys,
    ];
    with_scratch(sizes, |[queries, grads, panels, probabilities, dscores, sums, factors]| {
        let (over_scores, over_keys, over_queries) = (t.d * t.scores, pair.keys * t.values, pair.queries * t.values);
        for head in 0..pair.layout.heads {
            copy_head(q, &pair, head, scale, queries);
            copy_head(grad, &pair, head, 1.0, grads);
            let row_major = |values| Left { values, row: t.d, inner: 1 };
            t.pack(head_of(k, &pair, head).t(), &mut panels[..over_scores]);
            t.multiply(t.query_rows, t.d, row_major(queries), &panels[..over_scores], probabilities, t.scores);
            softmax(probabilities, t.scores, pair);
            t.pack(head_of(v, &pair, head).t(), &mut panels[..over_scores]);
            t.multiply(t.query_rows, t.d, row_major(grads), &panels[..over_scores], dscores, t.scores);
            back_through_softmax(probabilities, dscores, t.scores, factors, head, pair);

            t.pack(Matrix::new(grads, pair.queries, t.d), &mut panels[..over_queries]);
            let transposed = |values| Left { values, row: 1, inner: t.scores };
            t.multiply(t.key_rows, pair.queries, transposed(probabilities), &panels[..over_queries], sums, t.values);
            store_head(sums, t.values, 1.0, &pair, head, dv);
            t.pack(Matrix::new(queries, pair.queries, t.d), &mut panels[..over_queries]);
            t.multiply(t.key_rows, pair.queries, transposed(dscores), &panels[..over_queries], sums, t.values);
            store_head(sums, t.values, 1.0, &pair, head, dk);
            t.pack(head_of(k, &pair, head), &mut panels[..over_keys]);
            let left = Left { values: dscores, row: t.scores, inner: 1 };
            t.multiply(t.query_rows, pair.keys, left, &panels[..over_keys], sums, t.values);
            store_head(sums, t.values, scale, &pair, head, dq);
        }
    });
}
