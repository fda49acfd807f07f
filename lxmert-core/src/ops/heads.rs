//! One image-sentence pair's attention by the microkernel, head after head: scores, softmax, dropout and the weighted sum
//! never leave the cache; the backward recomputes the probabilities.

use super::dropout::Mask;
use super::math::{dot, exp, sum};
use super::matrix::Matrix;
use super::microkernel::{Base, Kernel, Left};
use super::precision::Precision;
use super::scratch::with_scratch;
use super::simd::vectorised;

/// What is the same for all heads of one pair.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub heads: usize,
    pub dropout: Option<PairDropout<'a>>,
}

/// Dropout of a pair's probabilities, whose masks are those of the padded `[batch, heads, queries, keys]` tensor.
#[derive(Clone, Copy)]
pub(super) struct PairDropout<'a> {
    pub mask: Mask,
    /// The pair's number in the batch, and its queries and keys with their padding.
    pub index: usize,
    pub queries: usize,
    pub keys: usize,
    /// Padded rows of the pair's queries and keys, counted over the whole batch.
    pub query_rows: &'a [u32],
    pub key_rows: &'a [u32],
}

impl PairDropout<'_> {
    #[inline(always)]
    fn factors(&self, heads: usize, head: usize, query: usize, factors: &mut [f32]) {
        let query = self.query_rows[query] as usize - self.index * self.queries;
        let first = (((self.index * heads + head) * self.queries + query) * self.keys) as u32;
        let first = first.wrapping_sub((self.index * self.keys) as u32);
        for (factor, row) in factors.iter_mut().zip(self.key_rows) {
            *factor = self.mask.factor(first.wrapping_add(*row));
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
        let d = pair.width / pair.heads;
        Self {
            d,
            query_rows: kernel.round_rows(pair.queries),
            key_rows: kernel.round_rows(pair.keys),
            scores: pair.keys.next_multiple_of(kernel.columns),
            values: d.next_multiple_of(kernel.columns),
            kernel,
        }
    }

    /// Packs `b`, of `inner` rows, whose columns fill rows of `width`.
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
            self.kernel.multiply_into(rows, inner, a, panel, Base::Zero, out, width);
        }
    }
}

/// A head's columns of `rows` rows.
fn head_of<'a>(values: &'a [f32], rows: usize, pair: &Pair, head: usize) -> Matrix<'a> {
    let d = pair.width / pair.heads;
    Matrix::strided(&values[head * d..], rows, d, pair.width)
}

fn copy_head(from: &[f32], pair: &Pair, head: usize, factor: f32, to: &mut [f32]) {
    let d = pair.width / pair.heads;
    for (to, from) in to.chunks_exact_mut(d).zip(from.chunks_exact(pair.width)) {
        for (to, from) in to.iter_mut().zip(&from[head * d..(head + 1) * d]) {
            *to = from * factor;
        }
    }
}

fn store_head(from: &[f32], stride: usize, factor: f32, pair: &Pair, head: usize, to: &mut [f32]) {
    let d = pair.width / pair.heads;
    for (from, to) in from.chunks_exact(stride).zip(to.chunks_exact_mut(pair.width)) {
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
        let Some(dropout) = &pair.dropout else { return };
        for (query, row) in probabilities.chunks_exact_mut(stride).take(pair.queries).enumerate() {
            dropout.factors(pair.heads, head, query, factors);
            for (p, f) in row.iter_mut().zip(factors.iter()) {
                *p *= f;
            }
        }
    }
}

vectorised! {
    /// Turns the gradient by the dropped-out probabilities into that by the scores, and drops out the probabilities.
    fn back_through_softmax(
        probabilities: &mut [f32], grads: &mut [f32], stride: usize, factors: &mut [f32], head: usize, pair: Pair,
    ) {
        let rows = probabilities.chunks_exact_mut(stride).zip(grads.chunks_exact_mut(stride));
        for (query, (p, g)) in rows.take(pair.queries).enumerate() {
            let (p, g) = (&mut p[..pair.keys], &mut g[..pair.keys]);
            if let Some(dropout) = &pair.dropout {
                dropout.factors(pair.heads, head, query, factors);
                for (g, f) in g.iter_mut().zip(factors.iter()) {
                    *g *= f;
                }
            }
            let mean = dot(p, g);
            for (g, p) in g.iter_mut().zip(p.iter()) {
                *g = p * (*g - mean);
            }
            if pair.dropout.is_some() {
                for (p, f) in p.iter_mut().zip(factors.iter()) {
                    *p *= f;
                }
            }
        }
    }
}

/// `q`: `[queries, width]`; `k`, `v`: `[keys, width]`; gives `out`: `[queries, width]`. There is at least one key.
pub(super) fn forward(out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], pair: Pair) {
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
        for head in 0..pair.heads {
            copy_head(q, &pair, head, scale, queries);
            t.pack(head_of(k, pair.keys, &pair, head).t(), keys);
            t.pack(head_of(v, pair.keys, &pair, head), values);
            t.multiply(t.query_rows, t.d, Left { values: queries, row: t.d, inner: 1 }, keys, scores, t.scores);
            softmax(scores, t.scores, pair);
            drop_out(scores, t.scores, factors, head, pair);
            let left = Left { values: scores, row: t.scores, inner: 1 };
            t.multiply(t.query_rows, pair.keys, left, values, sums, t.values);
            store_head(sums, t.values, 1.0, &pair, head, out);
        }
    });
}

/// Writes `dq`, `dk` and `dv` for the pair's `grad`, `[queries, width]`.
#[allow(clippy::too_many_arguments)] // four inputs and their gradients
pub(super) fn backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    grad: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    pair: Pair,
) {
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
        for head in 0..pair.heads {
            copy_head(q, &pair, head, scale, queries);
            copy_head(grad, &pair, head, 1.0, grads);
            let row_major = |values| Left { values, row: t.d, inner: 1 };
            t.pack(head_of(k, pair.keys, &pair, head).t(), &mut panels[..over_scores]);
            t.multiply(t.query_rows, t.d, row_major(queries), &panels[..over_scores], probabilities, t.scores);
            softmax(probabilities, t.scores, pair);
            t.pack(head_of(v, pair.keys, &pair, head).t(), &mut panels[..over_scores]);
            t.multiply(t.query_rows, t.d, row_major(grads), &panels[..over_scores], dscores, t.scores);
            back_through_softmax(probabilities, dscores, t.scores, factors, head, pair);

            t.pack(Matrix::new(grads, pair.queries, t.d), &mut panels[..over_queries]);
            let transposed = |values| Left { values, row: 1, inner: t.scores };
            t.multiply(t.key_rows, pair.queries, transposed(probabilities), &panels[..over_queries], sums, t.values);
            store_head(sums, t.values, 1.0, &pair, head, dv);
            t.pack(Matrix::new(queries, pair.queries, t.d), &mut panels[..over_queries]);
            t.multiply(t.key_rows, pair.queries, transposed(dscores), &panels[..over_queries], sums, t.values);
            store_head(sums, t.values, 1.0, &pair, head, dk);
            t.pack(head_of(k, pair.keys, &pair, head), &mut panels[..over_keys]);
            let left = Left { values: dscores, row: t.scores, inner: 1 };
            t.multiply(t.query_rows, pair.keys, left, &panels[..over_keys], sums, t.values);
            store_head(sums, t.values, scale, &pair, head, dq);
        }
    });
}
