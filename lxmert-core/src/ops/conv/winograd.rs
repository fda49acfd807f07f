//! Winograd's minimal filtering F(4×4, 3×3) (Lavin & Gray 2016): a 3×3 convolution with stride 1 as 36 products over
//! transformed tiles, a quarter of the multiplications.
//!
//! Each 4×4 tile of the output comes from a 6×6 tile of the input: `Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A`, where the elementwise
//! product, summed over channels, is for each of the 36 places one matrix product `[tiles, channels] · [channels, out]`.
//! The polynomials behind it are evaluated at 0, ±5/8, ±3/2 and ∞. Of the points that are exact in f32, these are close
//! to the ones with the least error (Barabasz et al. 2020), half that of the usual ±1 and ±2. In f32 the transforms
//! still lose most of a digit against the direct sum; the tests state the bound.

#![allow(unsafe_code)]
// Matrices are walked along both sides, for which indices are clearer than iterators.
#![allow(clippy::needless_range_loop)]

use super::super::matrix::Matrix;
use super::super::microkernel::{Base, Kernel, Left, balanced};
use super::super::precision::Precision;
use super::super::product::FINISHED_TOGETHER;
use super::super::scratch::with_scratch;
use super::super::simd::{Level, Plain, Vector, compiled_for, vectorised};
use super::{EpilogueFrom, FeatureMap, Windows};
use rayon::prelude::*;
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4_t;
use std::ops::Range;

/// Side of an output tile, and of the input tile that it needs.
const OUT: usize = 4;
const IN: usize = 6;
const PLACES: usize = IN * IN;

/// The points, their squares, and the squares' sum and product.
const A: f32 = 0.625;
const B: f32 = 1.5;
const AA: f32 = A * A;
const BB: f32 = B * B;

/// The weights of a 3×3 convolution, transformed and prepacked.
#[derive(Debug)]
pub(crate) struct Winograd {
    /// For each [`FINISHED_TOGETHER`] output channels, for each place, for each of their panels, `channels` × panel width.
    weights: Vec<f32>,
    channels: usize,
    out_channels: usize,
    kernel: Kernel,
    transforms: Transforms,
}

impl Winograd {
    /// Whether the transforms, which process the channels one register at a time, apply to weights of `[out_channels,
    /// channels, kernel_height, kernel_width]`.
    pub fn applies((_, channels, height, width): (usize, usize, usize, usize), stride: usize, kernel: &Kernel) -> bool {
        (height, width) == (3, 3) && stride == 1 && channels.is_multiple_of(kernel.lanes())
    }

    /// `weight`: `[out_channels, channels, 3, 3]`.
    pub fn new(weight: &[f32], out_channels: usize, channels: usize, kernel: Kernel) -> Self {
        // For each place a matrix [out_channels, channels].
        let filters = out_channels * channels;
        let mut transformed = vec![0.0; PLACES * filters];
        for (i, filter) in weight.chunks_exact(9).enumerate() {
            let places = transform_filter(std::array::from_fn(|tap| f64::from(filter[tap])));
            places.into_iter().enumerate().for_each(|(place, value)| transformed[place * filters + i] = value);
        }
        let transforms = Transforms::of(kernel.level(), kernel.precision());
        let (panels, panel_len) = (out_channels.div_ceil(kernel.columns), kernel.words(channels) * kernel.columns);
        let together = FINISHED_TOGETHER / kernel.columns;
        let mut weights = vec![0.0; PLACES * panels * panel_len];
        let mut rest = weights.chunks_exact_mut(panel_len);
        for first in (0..panels).step_by(together) {
            for filters in transformed.chunks_exact(filters) {
                let filters = Matrix::new(filters, out_channels, channels);
                for (index, panel) in (first..panels.min(first + together)).zip(&mut rest) {
                    kernel.pack(&filters.t(), 0..channels, index, panel);
                }
            }
        }
        Self { weights, channels, out_channels, kernel, transforms }
    }

    /// Writes the convolution of `x`, with bias and epilogue, to `out`.
    pub fn forward<'a>(
        &'a self,
        x: &'a FeatureMap,
        windows: &'a Windows,
        bias: &'a [f32],
        epilogue: EpilogueFrom<'a>,
        out: &mut [f32],
    ) {
        let tile_columns = windows.out_width.div_ceil(OUT);
        let tile_rows = windows.out_height.div_ceil(OUT);
        let row_len = windows.out_width * self.out_channels;
        let image_len = windows.out_height * row_len;
        // One task takes rows of tiles of one image, or several whole images: enough tiles to reuse each panel, few
        // enough to stay in the cache.
        let batch = out.len() / image_len;
        let most = (MOST_TILES / (tile_rows * tile_columns)).min(batch.div_ceil(rayon::current_num_threads()));
        let images = balanced(batch, 1, most);
        let rows = match images {
            1 => balanced(tile_rows, 1, (MOST_TILES / tile_columns).max(1)),
            _ => tile_rows,
        };
        let tasks: Vec<(usize, usize, &mut [f32])> = out
            .chunks_mut(images * image_len)
            .enumerate()
            .flat_map(|(group, out)| {
                let per_task = if images == 1 { rows * OUT * row_len } else { out.len() };
                out.chunks_mut(per_task).enumerate().map(move |(i, out)| (group * images, i * rows, out))
            })
            .collect();
        tasks.into_par_iter().for_each(|(image, first, out)| {
            let first = image * windows.out_height + first * OUT;
            Task { layer: self, windows, x, first, bias, epilogue }.run(out);
        });
    }
}

/// How far ahead of their use products are prefetched, in values.
const AHEAD: usize = 32;

/// Tiles per task: with 256 channels their transforms take 2.6 MB, which streams from the third-level cache.
const MOST_TILES: usize = 72;

/// Some rows of tiles of one image, or all of some images.
struct Task<'a> {
    layer: &'a Winograd,
    windows: &'a Windows,
    x: &'a FeatureMap,
    /// First row of the output, counted over the batch.
    first: usize,
    bias: &'a [f32],
    epilogue: EpilogueFrom<'a>,
}

/// A tile of the output.
struct Tile {
    /// First row, counted over the batch.
    row: usize,
    column: usize,
    /// The part inside the image.
    height: usize,
    width: usize,
}

impl Tile {
    /// Whether a place contributes to the part inside the image: the last row of places contributes to the fourth row alone, the
    /// last column to the fourth column.
    fn needs(&self, place: usize) -> bool {
        (self.height == OUT || place / IN + 1 < IN) && (self.width == OUT || place % IN + 1 < IN)
    }

    /// Sorts tiles so that those that need a place are next to each other.
    fn order(&self) -> u8 {
        match (self.height == OUT, self.width == OUT) {
            (true, false) => 0,
            (true, true) => 1,
            (false, true) => 2,
            (false, false) => 3,
        }
    }
}

impl Task<'_> {
    /// `out`: the output rows that these tiles cover.
    fn run(&self, out: &mut [f32]) {
        let (layer, kernel) = (self.layer, &self.layer.kernel);
        let (channels, out_channels, panel) = (layer.channels, layer.out_channels, kernel.columns);
        let tiles = self.tiles(out.len() / (self.windows.out_width * out_channels));
        let needed: [Range<usize>; PLACES] = std::array::from_fn(|place| {
            let first = tiles.iter().take_while(|tile| !tile.needs(place)).count();
            first..first + tiles[first..].iter().take_while(|tile| tile.needs(place)).count()
        });
        let rows = tiles.len() + kernel.round_rows(1); // the kernel rounds the number of needed tiles up
        let words = kernel.words(channels);
        // Rows a power of two apart would fall into the same cache sets.
        let stride = words + 16;
        let width = FINISHED_TOGETHER.min(out_channels.next_multiple_of(panel));
        let (inputs, products) = (PLACES * rows * stride, PLACES * rows * width);
        with_scratch([inputs, products, OUT * OUT * width, channels], |[inputs, products, patch, zeros]| {
            zeros.fill(0.0);
            for (index, tile) in tiles.iter().enumerate() {
                let sources = self.sources(tile, zeros);
                self.layer.transforms.input(&sources, &mut inputs[index * stride..], rows * stride);
            }
            for (group, weights) in layer.weights.chunks(PLACES * words * width).enumerate() {
                let place_len = weights.len() / PLACES;
                let places = inputs.chunks_exact(rows * stride).zip(products.chunks_exact_mut(rows * width));
                for (((input, products), weights), needed) in places.zip(weights.chunks_exact(place_len)).zip(&needed) {
                    let input = Left { values: &input[needed.start * stride..], row: stride, inner: 1 };
                    let products = &mut products[needed.start * width..];
                    let rows = kernel.round_rows(needed.len());
                    for (index, weights) in weights.chunks_exact(words * panel).enumerate() {
                        let products = &mut products[index * panel..];
                        kernel.multiply(rows, words, input, weights, Base::Zero, products, width);
                    }
                }
                let patch = &mut patch[..OUT * OUT * place_len / words];
                for (index, tile) in tiles.iter().enumerate() {
                    layer.transforms.output(&products[index * width..], rows * width, patch, place_len / words);
                    self.store(tile, group * width, patch, out);
                }
            }
        });
    }

    /// The tiles of `rows` rows of the output, in their order.
    fn tiles(&self, rows: usize) -> Vec<Tile> {
        let Windows { out_height, out_width, .. } = *self.windows;
        let (mut tiles, mut row) = (Vec::new(), self.first);
        while row < self.first + rows {
            let height = OUT.min(out_height - row % out_height);
            let tile = |column| Tile { row, column, height, width: OUT.min(out_width - column) };
            tiles.extend((0..out_width).step_by(OUT).map(tile));
            row += height;
        }
        tiles.sort_by_key(Tile::order);
        tiles
    }

    /// Finishes and stores the part of a tile's 4×4 outputs, `patch`, that is inside the image, for the channels from `start` on.
    fn store(&self, tile: &Tile, start: usize, patch: &[f32], out: &mut [f32]) {
        let (channels, panel) = (self.layer.out_channels, patch.len() / (OUT * OUT));
        let width = panel.min(channels - start);
        for (row, values) in (tile.row..tile.row + tile.height).zip(patch.chunks_exact(OUT * panel)) {
            let pixel = row * self.windows.out_width + tile.column;
            let first = self.first * self.windows.out_width;
            let out = &mut out[(pixel - first) * channels..][..tile.width * channels];
            add_bias(out, channels, start, width, values, panel, self.bias);
            (self.epilogue)(pixel).apply(out, channels, start, width);
        }
    }

    /// The 36 pixels of a tile's input: in the image, or in the padding, which is `zeros`.
    fn sources<'b>(&'b self, tile: &Tile, zeros: &'b [f32]) -> [&'b [f32]; PLACES] {
        let channels = self.layer.channels;
        let (image, y) = (tile.row / self.windows.out_height, tile.row % self.windows.out_height);
        let values = &self.x.values()[image * self.windows.in_len()..][..self.windows.in_len()];
        let mut sources = [zeros; PLACES];
        for i in 0..IN {
            let Some(row) = self.windows.in_row(y, i) else { continue };
            for j in 0..IN {
                if let Some(column) = self.windows.in_column(tile.column, j) {
                    sources[i * IN + j] = &values[(row * self.windows.width + column) * channels..][..channels];
                }
            }
        }
        sources
    }
}

vectorised! {
    /// `out = values + bias` in the `width` columns from `start` on of all rows, which are `leading` apart in `out` and
    /// `panel` apart in `values`.
    fn add_bias(out: &mut [f32], leading: usize, start: usize, width: usize, values: &[f32], panel: usize, bias: &[f32]) {
        let bias = &bias[start..start + width];
        for (out, values) in out.chunks_exact_mut(leading).zip(values.chunks_exact(panel)) {
            for ((out, value), bias) in out[start..start + width].iter_mut().zip(values).zip(bias) {
                *out = value + bias;
            }
        }
    }
}

/// `G g Gᵀ`, in f64.
fn transform_filter(g: [f64; 9]) -> [f32; PLACES] {
    let (a, b) = (f64::from(A), f64::from(B));
    // The value at a point, divided by the product of its distances from the others (which the input's transform
    // omits).
    let at = |p: f64, other: f64| {
        let scale = 1.0 / (2.0 * p * p * (p * p - other * other));
        [scale, scale * p, scale * p * p]
    };
    let at_zero = [1.0 / (a * a * b * b), 0.0, 0.0];
    let rows: [[f64; 3]; IN] = [at_zero, at(a, b), at(-a, b), at(b, a), at(-b, a), [0.0, 0.0, 1.0]];
    std::array::from_fn(|place| {
        let (i, j) = (place / IN, place % IN);
        let sum: f64 = (0..9).map(|k| rows[i][k / 3] * g[k] * rows[j][k % 3]).sum();
        sum as f32
    })
}

/// The transforms of tiles, compiled for one kind of machine.
#[derive(Clone, Copy, Debug)]
struct Transforms {
    precision: Precision,
    lanes: usize,
    input: Input,
    output: Output,
}

/// The pixels of a tile; each is a pointer to its channels.
type Sources = [*const f32; PLACES];
type Input = unsafe fn(&Sources, usize, *mut f32, usize);
type Output = unsafe fn(*const f32, usize, *mut f32, usize);

impl Transforms {
    fn of(level: Level, precision: Precision) -> Self {
        let pairs = precision == Precision::Bf16;
        let of = |lanes, input: Input, output: Output| Self { precision, lanes, input, output };
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => of(16, if pairs { avx512_pairs } else { avx512_input }, avx512_output),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => of(8, if pairs { avx2_input::<true> } else { avx2_input::<false> }, avx2_output),
            #[cfg(target_arch = "aarch64")]
            Level::Neon if pairs => of(4, input::<float32x4_t, true>, output::<float32x4_t>),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => of(4, input::<float32x4_t, false>, output::<float32x4_t>),
            _ => of(Plain::LANES, if pairs { input::<Plain, true> } else { input::<Plain, false> }, output::<Plain>),
        }
    }

    /// `Bᵀ d B` of the tile with the pixels `sources`; place `p` goes to `out[p · stride..]`, in words of the
    /// precision.
    fn input(&self, sources: &[&[f32]; PLACES], out: &mut [f32], stride: usize) {
        let channels = sources[0].len();
        assert!(channels.is_multiple_of(self.lanes) && sources.iter().all(|source| source.len() == channels));
        let words = if self.precision == Precision::Bf16 { channels / 2 } else { channels };
        assert!(out.len() >= (PLACES - 1) * stride + words);
        let pointers = sources.map(<[f32]>::as_ptr);
        // SAFETY: every source holds `channels` values, a multiple of a register's; the last place written ends at
        // (PLACES − 1) · stride + words, within `out`; the function suits the machine (`Kernel::level`).
        unsafe { (self.input)(&pointers, channels, out.as_mut_ptr(), stride) }
    }

    /// `Aᵀ m A` for `count` channels; place `p` is read at `products[p · stride..]`, pixel `q` written at `patch[q ·
    /// count..]`.
    fn output(&self, products: &[f32], stride: usize, patch: &mut [f32], count: usize) {
        assert!(count.is_multiple_of(self.lanes) && products.len() >= (PLACES - 1) * stride + count);
        assert!(patch.len() >= OUT * OUT * count);
        // SAFETY: as above, by the two assertions.
        unsafe { (self.output)(products.as_ptr(), stride, patch.as_mut_ptr(), count) }
    }
}

compiled_for! {
    "avx512f,avx2,fma": fn avx512_input(sources: &Sources, channels: usize, out: *mut f32, stride: usize)
        = input::<__m512, false>
}
compiled_for! {
    "avx512f,avx512bf16,avx2,fma": fn avx512_pairs(sources: &Sources, channels: usize, out: *mut f32, stride: usize)
        = input::<__m512, true>
}
compiled_for! {
    "avx2,fma": fn avx2_input<const PAIRS: bool>(sources: &Sources, channels: usize, out: *mut f32, stride: usize)
        = input::<__m256, PAIRS>
}
compiled_for! {
    "avx512f,avx2,fma": fn avx512_output(products: *const f32, stride: usize, patch: *mut f32, count: usize)
        = output::<__m512>
}
compiled_for! {
    "avx2,fma": fn avx2_output(products: *const f32, stride: usize, patch: *mut f32, count: usize) = output::<__m256>
}

/// # Safety
/// As [`Transforms::input`] checks.
#[inline(always)]
unsafe fn input<V: Vector, const PAIRS: bool>(sources: &Sources, channels: usize, out: *mut f32, stride: usize) {
    let mut channel = 0;
    while channel < channels {
        // SAFETY: `channel + LANES <= channels`, which is a multiple of LANES, so all accesses are in the ranges that
        // the caller guarantees. `wrapping_add` costs no check in a debug build.
        unsafe {
            let mut half = [[V::splat(0.0); IN]; IN];
            for j in 0..IN {
                let mut column = [V::splat(0.0); IN];
                for i in 0..IN {
                    column[i] = V::load(sources[i * IN + j].wrapping_add(channel));
                }
                let column = times_b(column);
                for i in 0..IN {
                    half[i][j] = column[i];
                }
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, value) in times_b(row).into_iter().enumerate() {
                    let place = out.wrapping_add((i * IN + j) * stride);
                    match PAIRS {
                        true => value.store_pairs(place.wrapping_add(channel / 2)),
                        false => value.store(place.wrapping_add(channel)),
                    }
                }
            }
        }
        channel += V::LANES;
    }
}

/// # Safety
/// As [`Transforms::output`] checks.
#[inline(always)]
unsafe fn output<V: Vector>(products: *const f32, stride: usize, patch: *mut f32, count: usize) {
    let mut channel = 0;
    while channel < count {
        // SAFETY: as in `input`.
        unsafe {
            let mut half = [[V::splat(0.0); IN]; OUT];
            for j in 0..IN {
                let mut column = [V::splat(0.0); IN];
                for i in 0..IN {
                    let place = products.wrapping_add((i * IN + j) * stride + channel);
                    column[i] = V::load(place);
                    // More streams than the hardware follows.
                    V::prefetch(place.wrapping_add(AHEAD));
                }
                let column = times_a(column);
                for i in 0..OUT {
                    half[i][j] = column[i];
                }
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, value) in times_a(row).into_iter().enumerate() {
                    value.store(patch.wrapping_add((i * OUT + j) * count + channel));
                }
            }
        }
        channel += V::LANES;
    }
}

/// `Bᵀ d`, by factors.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn times_b<V: Vector>(d: [V; IN]) -> [V; IN] {
    // SAFETY: arithmetic on registers.
    unsafe {
        let (minus_aa, minus_bb) = (V::splat(-AA), V::splat(-BB));
        let (product, minus_sum) = (V::splat(AA * BB), V::splat(-AA - BB));
        let (even_a, odd_a) = (minus_bb.mul_add(d[2], d[4]), minus_bb.mul_add(d[1], d[3]));
        let (even_b, odd_b) = (minus_aa.mul_add(d[2], d[4]), minus_aa.mul_add(d[1], d[3]));
        [
            product.mul_add(d[0], minus_sum.mul_add(d[2], d[4])),
            V::splat(A).mul_add(odd_a, even_a),
            V::splat(-A).mul_add(odd_a, even_a),
            V::splat(B).mul_add(odd_b, even_b),
            V::splat(-B).mul_add(odd_b, even_b),
            product.mul_add(d[1], minus_sum.mul_add(d[3], d[5])),
        ]
    }
}

/// `Aᵀ m`, by factors.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn times_a<V: Vector>(m: [V; IN]) -> [V; OUT] {
    // SAFETY: arithmetic on registers.
    unsafe {
        let (sum1, difference1) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (sum2, difference2) = (m[3].add(m[4]), m[3].sub(m[4]));
        let times = |x: V, factor: f32| x.mul(V::splat(factor));
        [
            m[0].add(sum1).add(sum2),
            V::splat(B).mul_add(difference2, times(difference1, A)),
            V::splat(BB).mul_add(sum2, times(sum1, AA)),
            V::splat(B * BB).mul_add(difference2, V::splat(A * AA).mul_add(difference1, m[5])),
        ]
    }
}

#[cfg(test)]
mod bounds;
