//! What each kernel of `kernels/` is launched with: name, grid, block, shared memory and arguments in order, from addresses and
//! sizes. The device runs these, and the tests run the same ones on the CPU.

pub mod regions;

use super::super::dropout_mask::Mask;

/// A kernel's argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// An address in the device's memory; 0 where there is none.
    Address(u64),
    /// A count, an index or a key.
    U32(u32),
    /// A count that 32 bits may not hold.
    U64(u64),
    /// A constant.
    F32(f32),
    /// A constant that a comparison depends on.
    F64(f64),
}

/// What the values of activations are in memory. Weights, biases, statistics and sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 4 bytes.
    F32,
    /// The upper half of an f32.
    Bf16,
}

/// One launch.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The function's name.
    pub kernel: String,
    /// Blocks. Where one is 0 there is nothing to do.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// In the order of the kernel's parameters.
    pub arguments: Vec<Argument>,
}

/// Shared memory of a block that no kernel needs to ask for.
const SHARED_LIMIT: u32 = 48 << 10;
/// Threads of a block where nothing else is said.
const THREADS: u32 = 256;
/// Values of one parameter that a block of the optimiser's takes.
pub const PIECE: u32 = 4096;

/// Dropout of one call: none keeps everything.
#[derive(Debug, Clone, Copy)]
pub struct Dropout(Option<Mask>);

impl Dropout {
    /// With the probability and key of a call of [`DropoutRng`](crate::ops::DropoutRng).
    pub fn new(probability: f32, key: u32) -> Self {
        Self(Some(Mask::new(probability, key)))
    }

    /// Keeps everything.
    pub const NONE: Self = Self(None);

    fn arguments(self) -> [Argument; 3] {
        let (threshold, scale, key) = self.0.map_or((0, 1.0, 0), |mask| mask.parts());
        [Argument::U32(threshold), Argument::F32(scale), Argument::U32(key)]
    }
}

impl From<Option<Mask>> for Dropout {
    fn from(mask: Option<Mask>) -> Self {
        Self(mask)
    }
}

impl Launch {
    fn new(kernel: &str, element: Element, grid: [u32; 3], threads: u32, shared: u32, addresses: &[u64]) -> Self {
        let suffix = if element == Element::F32 { "f32" } else { "bf16" };
        let arguments = addresses.iter().map(|address| Argument::Address(*address)).collect();
        Self { kernel: format!("{kernel}_{suffix}"), grid, threads, shared, arguments }
    }

    fn with(mut self, arguments: impl IntoIterator<Item = Argument>) -> Self {
        self.arguments.extend(arguments);
        self
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// `norm(dropout(x + bias) + residual)` of `[height, width]` and its gradient. All fields but the sizes are addresses; `bias`,
/// `residual` and `rows` may be 0, and `normed` and `scales` where no backward pass follows.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // named as the kernel's parameters, which norm.cuh explains
pub struct Norm {
    pub weight: u64,
    pub rows: u64,
    pub normed: u64,
    pub scales: u64,
    pub height: u32,
    pub width: u32,
    pub dropout: Dropout,
}

impl Norm {
    fn launch(&self, kernel: &str, element: Element, shared: u32, addresses: &[u64], sizes: &[Argument]) -> Launch {
        let threads = self.width.next_multiple_of(32).clamp(32, THREADS);
        Launch::new(kernel, element, [self.height, 1, 1], threads, shared, addresses)
            .with([Argument::U32(self.width)])
            .with(sizes.iter().copied())
            .with(self.dropout.arguments())
    }

    /// Whether a row fits a block's shared memory.
    pub fn fits(width: usize) -> bool {
        width * 4 <= (SHARED_LIMIT - 1024) as usize && width > 0
    }

    /// Writes `y`, and `normed` and `scales` unless they are 0.
    pub fn forward(&self, element: Element, [x, bias, residual, shift, y]: [u64; 5], eps: f32) -> Launch {
        let addresses = [x, bias, residual, self.weight, shift, self.rows, y, self.normed, self.scales];
        self.launch("norm", element, 4 * self.width, &addresses, &[Argument::F32(eps)])
    }

    /// Writes the gradients by the residual and by `x`.
    pub fn backward(&self, element: Element, [grad, dx, dropped]: [u64; 3]) -> Launch {
        let addresses = [grad, self.normed, self.scales, self.weight, self.rows, dx, dropped];
        self.launch("norm_backward", element, 0, &addresses, &[])
    }
}

/// `dropout(activation(x + bias))` of `[height, width]` and its gradient; `bias` and `rows` may be 0.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // as above
pub struct Activate {
    pub x: u64,
    pub bias: u64,
    pub rows: u64,
    pub count: u64,
    pub width: u32,
    /// 0: none, 1: GELU, 2: ReLU.
    pub activation: u32,
    pub dropout: Dropout,
}

impl Activate {
    fn launch(&self, kernel: &str, element: Element, addresses: &[u64]) -> Launch {
        let blocks = self.count.div_ceil(u64::from(THREADS)) as u32;
        Launch::new(kernel, element, [blocks, 1, 1], THREADS, 0, addresses)
            .with([Argument::U64(self.count), Argument::U32(self.width), Argument::U32(self.activation)])
            .with(self.dropout.arguments())
    }

    /// Writes `y`.
    pub fn forward(&self, element: Element, y: u64) -> Launch {
        self.launch("activate", element, &[self.x, self.bias, self.rows, y])
    }

    /// Writes the gradient by `x`.
    pub fn backward(&self, element: Element, [grad, dx]: [u64; 2]) -> Launch {
        self.launch("activate_backward", element, &[grad, self.x, self.bias, self.rows, dx])
    }
}

/// Attention over ragged rows and its gradient.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // as above
pub struct Attention {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub q_starts: u64,
    pub k_starts: u64,
    pub q_rows: u64,
    pub k_rows: u64,
    pub q_stride: u32,
    pub kv_stride: u32,
    pub batch: u32,
    pub heads: u32,
    /// Width of a head.
    pub d: u32,
    pub q_length: u32,
    pub k_length: u32,
    pub dropout: Dropout,
}

/// Warps of a block, forward and backward.
const WARPS: [u32; 2] = [4, 8];

impl Attention {
    /// Of floats: keys and values, and what each warp holds: once in the forward pass, twice in the backward.
    fn shared(k_length: u32, d: u32, pass: usize) -> u32 {
        4 * (2 * k_length * (d + 1) + WARPS[pass] * (pass as u32 + 1) * (d + 64))
    }

    /// Whether keys and values of a head fit a block: up to 64 keys of 64 values.
    pub fn fits(k_length: usize, d: usize) -> bool {
        (1..=64).contains(&k_length)
            && (1..=256).contains(&d)
            && k_length * d <= 16 * 32 * WARPS[1] as usize
            && (0..2).all(|pass| Self::shared(k_length as u32, d as u32, pass) <= SHARED_LIMIT)
    }

    fn launch(&self, kernel: &str, element: Element, pass: usize, addresses: &[u64]) -> Launch {
        let places = [self.q_starts, self.k_starts, self.q_rows, self.k_rows].map(Argument::Address);
        let sizes = [self.q_stride, self.kv_stride, self.d, self.q_length, self.k_length].map(Argument::U32);
        let (grid, shared) = ([self.batch, self.heads, 1], Self::shared(self.k_length, self.d, pass));
        Launch::new(kernel, element, grid, 32 * WARPS[pass], shared, addresses)
            .with(places)
            .with(sizes)
            .with(self.dropout.arguments())
    }

    /// Writes `out`, `[queries, heads · d]`.
    pub fn forward(&self, element: Element, out: u64) -> Launch {
        self.launch("attention", element, 0, &[self.q, self.k, self.v, out])
    }

    /// Writes the gradients by q, k and v, which lie as those do.
    pub fn backward(&self, element: Element, [grad, dq, dk, dv]: [u64; 4]) -> Launch {
        self.launch("attention_backward", element, 1, &[grad, self.q, self.k, self.v, dq, dk, dv])
    }
}

/// A sum in two launches: chunks, then their sums. The partial sums need room for `chunks` times the result; with one chunk the
/// first launch writes the result and the second is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// How many.
    pub count: u32,
    /// Rows (or ids) of each but the last.
    pub size: u32,
}

impl Chunks {
    fn of(total: u32, wanted: u32) -> Self {
        let size = total.div_ceil(wanted.max(1)).max(1);
        Self { count: total.div_ceil(size).max(1), size }
    }

    /// For column sums: at least 64 rows a chunk, and enough chunks to fill a device.
    pub fn of_columns(rows: u32, width: u32) -> Self {
        let wanted = 512u32.div_ceil(width.div_ceil(32).max(1));
        Self::of(rows, wanted.min(rows.div_ceil(64)))
    }

    /// For an embedding table: as many as keep some 512 blocks busy.
    pub fn of_table(ids: u32, rows: u32) -> Self {
        Self::of(ids, 512u32.div_ceil(rows.max(1)).min(ids.div_ceil(64)))
    }
}

/// `out[chunk, c] = Σ a[r, c] (b[r, c])`; `b` may be 0.
pub fn column_sums(element: Element, [a, b, out]: [u64; 3], rows: u32, width: u32, chunks: Chunks) -> Launch {
    Launch::new("column_sums", element, [width.div_ceil(32), chunks.count, 1], THREADS, 0, &[a, b, out])
        .with([rows, width, chunks.size].map(Argument::U32))
}

/// `out[chunk, row, :] = Σ grad[i, :]` over the chunk's `ids[i] = row`.
pub fn embedding_backward(
    element: Element,
    [ids, grad, out]: [u64; 3],
    count: u32,
    (rows, width): (u32, u32),
    chunks: Chunks,
) -> Launch {
    let shared = 4 * (width + THREADS);
    Launch::new("embedding_backward", element, [rows, chunks.count, 1], THREADS, shared, &[ids, grad, out])
        .with([count, width, chunks.size].map(Argument::U32))
}

/// The optimiser's step over all parameters. The fields are addresses, as optimiser.cuh explains.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // as above
pub struct Optimiser {
    pub table: u64,
    /// f64, one a piece.
    pub squares: u64,
    /// Two f32: norm and factor.
    pub norm: u64,
    pub rates: u64,
    pub parameters: u32,
    pub piece_count: u32,
}

/// AdamW's constants at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // as in optim/adamw.rs
pub struct StepConstants {
    pub beta1: f32,
    pub beta2: f32,
    pub rest1: f32,
    pub rest2: f32,
    pub root_correction: f32,
    pub epsilon: f32,
}

impl Optimiser {
    fn launch(&self, kernel: &str, blocks: u32, addresses: &[u64], rest: &[Argument]) -> Launch {
        let arguments = addresses.iter().map(|address| Argument::Address(*address)).chain(rest.iter().copied());
        let arguments = arguments.collect();
        Launch { kernel: kernel.into(), grid: [blocks, 1, 1], threads: THREADS, shared: 0, arguments }
    }

    /// The global norm and the factor that clips it to `limit` (0: none), into [`norm`](Self::norm).
    pub fn clip(&self, limit: f32) -> [Launch; 2] {
        let sizes = [self.parameters, PIECE].map(Argument::U32);
        let squares = self.launch("square_sums", self.piece_count, &[self.table, self.squares], &sizes);
        let rest = [Argument::U32(self.piece_count), Argument::F32(limit)];
        [squares, self.launch("clip_factor", 1, &[self.squares, self.norm], &rest)]
    }

    /// AdamW with the gradients times the clip factor.
    pub fn step(&self, c: &StepConstants) -> Launch {
        let sizes = [self.parameters, PIECE].map(Argument::U32);
        let constants = [c.beta1, c.beta2, c.rest1, c.rest2, c.root_correction, c.epsilon];
        let rest: Vec<Argument> = sizes.into_iter().chain(constants.map(Argument::F32)).collect();
        self.launch("adamw", self.piece_count, &[self.table, self.rates, self.norm], &rest)
    }

    /// The table's end, for parameters of these sizes (0 without a gradient): sizes, and the pieces up to each one's last.
    pub fn sizes_and_pieces(sizes: &[usize]) -> Vec<u64> {
        let ends = sizes.iter().scan(0, |pieces, size| {
            *pieces += size.div_ceil(PIECE as usize) as u64;
            Some(*pieces)
        });
        sizes.iter().map(|size| *size as u64).chain(ends).collect()
    }
}
