//! Skinny products: a few rows times a large layer's weights, `a · wᵀ`. The weights are read once, in place, row by
//! row, and never packed. A tile is a few rows times a few rows of weights; each sum is a register along the inner
//! dimension, and its lanes are added at the end.

#![allow(unsafe_code)]

use super::matrix::{Matrix, Threads};
use super::microkernel::Base;
use super::product::Output;
use super::scratch::with_scratch;
use super::simd::{Level, Plain, Vector, compiled_for, level};

/// Up to this number of rows, packing the weights costs more than adding lanes.
pub(super) const MOST_ROWS: usize = 72;
/// Rows and weights of a tile: 24 sums.
const ROWS: usize = 4;
const WEIGHTS: usize = 6;
/// Rows of weights per task.
const PER_TASK: usize = 16 * WEIGHTS;
/// Value counts divisible by the lanes of every machine.
const LANES: usize = 16;

/// Whether this method applies: few rows, and weights stored transposed.
pub(super) fn applies(a: &Matrix, b: &Matrix) -> bool {
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    let fits = !a.is_transposed() && b.is_transposed() && inner.is_multiple_of(LANES);
    // With 8 lanes or fewer there are not enough registers for the tile.
    fits && rows <= MOST_ROWS && columns >= PER_TASK && level() == Level::Avx512
}

/// Like [`product::multiply`](super::product::multiply), if [`applies`].
pub(super) fn multiply(out: Output, a: Matrix, b: Matrix, threads: Threads) {
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    let (tile, tasks) = (tile_of(level()), columns.div_ceil(PER_TASK));
    with_scratch([tasks * rows * PER_TASK], |[products]| {
        threads.for_chunks(products, rows * PER_TASK, |index, products| {
            let first = index * PER_TASK;
            let count = PER_TASK.min(columns - first);
            dots(tile, products, a.from(0, 0), a.leading(), rows, b.from(first, 0), b.leading(), count, inner);
        });
        complete(out, Products { values: products, rows, width: PER_TASK }, threads);
    });
}

/// Skinny products: blocks of `width` columns one after another, each with `rows` rows (the last may be padding).
#[derive(Clone, Copy)]
pub(super) struct Products<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub width: usize,
}

/// `out = epilogue(base + products)`; `out` ends with its last row.
pub(super) fn complete(out: Output, products: Products, threads: Threads) {
    let Output { values, leading, base, epilogue } = out;
    let rows = values.len().div_ceil(leading);
    let columns = values.len() - (rows - 1) * leading;
    let per_task = rows.div_ceil(if threads == Threads::Pool { rayon::current_num_threads() } else { 1 });
    let mut epilogues = epilogue.split(per_task, leading, rows.div_ceil(per_task));
    threads.for_chunks_with(values, per_task * leading, &mut epilogues, |index, out, epilogue| {
        for (row, out) in out.chunks_mut(leading).enumerate() {
            add_base(&mut out[..columns], index * per_task + row, products, base);
        }
        epilogue.apply(out, leading, 0, columns);
    });
}

/// Row `row` of the products with the base.
fn add_base(out: &mut [f32], row: usize, products: Products, base: Base) {
    let Products { values, rows, width } = products;
    for (index, out) in out.chunks_mut(width).enumerate() {
        let values = &values[(index * rows + row) * width..][..out.len()];
        match base {
            Base::Zero => out.copy_from_slice(values),
            Base::Out => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
            Base::Bias(bias) => {
                let sums = values.iter().zip(&bias[index * width..]).map(|(value, bias)| value + bias);
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
            }
        }
    }
}

/// Sums of products of [`ROWS`] by [`WEIGHTS`] rows with the given number of values, compiled for one kind of machine.
/// The last argument lists the next rows, to prefetch meanwhile.
type Tile = unsafe fn(&Rows, &Weights, usize, &mut Sums, &[*const f32]);
type Rows = [*const f32; ROWS];
type Weights = [*const f32; WEIGHTS];
type Sums = [[f32; WEIGHTS]; ROWS];

fn tile_of(level: Level) -> Tile {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512,
        _ => tile::<Plain>,
    }
}

/// `out[row · PER_TASK + weight]`: row `row` of `a` times row `weight` of `w`.
#[allow(clippy::too_many_arguments)] // two matrices and their sizes
fn dots(
    tile: Tile,
    out: &mut [f32],
    a: &[f32],
    a_stride: usize,
    rows: usize,
    w: &[f32],
    w_stride: usize,
    weights: usize,
    inner: usize,
) {
    assert!(rows > 0 && weights > 0 && inner.is_multiple_of(LANES));
    assert!(a.len() >= (rows - 1) * a_stride + inner && w.len() >= (weights - 1) * w_stride + inner);
    assert!(out.len() >= (rows - 1) * PER_TASK + weights && weights <= PER_TASK);
    let groups = rows.div_ceil(ROWS);
    for first_weight in (0..weights).step_by(WEIGHTS) {
        let next = (first_weight + WEIGHTS).min(weights)..(first_weight + 2 * WEIGHTS).min(weights);
        for (group, first_row) in (0..rows).step_by(ROWS).enumerate() {
            // Each group of rows prefetches its share of the next tile's weights, which would otherwise stall.
            let mut ahead = [std::ptr::null(); WEIGHTS];
            let share = next.clone().filter(|j| (j - next.start) * groups / WEIGHTS == group);
            let count = ahead.iter_mut().zip(share).map(|(to, j)| *to = w[j * w_stride..].as_ptr()).count();
            let ahead = &ahead[..count];
            // Beyond the edge, take the last row again and discard its result.
            let a_rows: Rows = std::array::from_fn(|i| a[(first_row + i).min(rows - 1) * a_stride..].as_ptr());
            let w_rows: Weights = std::array::from_fn(|j| w[(first_weight + j).min(weights - 1) * w_stride..].as_ptr());
            let mut sums = [[0.0; WEIGHTS]; ROWS];
            // SAFETY: `level` has found the instructions; every pointer is to the start of a row within its slice, and
            // by the assertions each row has `inner` values, a multiple of the lanes.
            unsafe { tile(&a_rows, &w_rows, inner, &mut sums, ahead) };
            for (row, sums) in (first_row..rows).zip(&sums) {
                let count = WEIGHTS.min(weights - first_weight);
                out[row * PER_TASK + first_weight..][..count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

compiled_for! {
    "avx512f,avx2,fma": fn avx512(a: &Rows, w: &Weights, inner: usize, sums: &mut Sums, ahead: &[*const f32])
        = tile::<__m512>
}

/// # Safety
/// Every pointer is valid for `inner` values, a multiple of the lanes.
#[inline(always)]
unsafe fn tile<V: Vector>(a: &Rows, w: &Weights, inner: usize, sums: &mut Sums, ahead: &[*const f32]) {
    // SAFETY: `k + LANES <= inner`, as `inner` is a multiple of the lanes; a prefetch may have any address.
    unsafe {
        let mut partial = [[V::splat(0.0); WEIGHTS]; ROWS];
        let mut k = 0;
        while k < inner {
            for row in ahead {
                V::prefetch(row.wrapping_add(k));
            }
            let weights = w.map(|row| V::load(row.wrapping_add(k)));
            for (partial, row) in partial.iter_mut().zip(a) {
                let value = V::load(row.wrapping_add(k));
                for (partial, weight) in partial.iter_mut().zip(weights) {
                    *partial = value.mul_add(weight, *partial);
                }
            }
            k += V::LANES;
        }
        for (sums, partial) in sums.iter_mut().zip(partial) {
            for (sum, partial) in sums.iter_mut().zip(partial) {
                *sum = partial.sum();
            }
        }
    }
}

#[cfg(test)]
mod bounds;
