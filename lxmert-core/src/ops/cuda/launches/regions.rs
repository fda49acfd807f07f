//! The launches of a detector: proposals of one image (proposals.cuh, suppression.cuh) and regions pooled from a pyramid
//! (regions.cuh).

use super::{Argument, Launch, SHARED_LIMIT, THREADS};
use crate::boxes::BoxXyxy;

/// Values of a region's row: x0 y0 x1 y1 in pixels of the resized image, score (infinite where the network's values are not finite), and
/// 1, or 0 for a row without a region.
pub const REGION: usize = 6;
/// Threads of a block that has a level or an image to itself.
const ALL_THREADS: u32 = 1024;

fn launch(kernel: &str, grid: [u32; 3], threads: u32, addresses: &[u64], rest: &[Argument]) -> Launch {
    let arguments = addresses.iter().map(|address| Argument::Address(*address)).chain(rest.iter().copied());
    Launch { kernel: kernel.into(), grid, threads, shared: 0, arguments: arguments.collect() }
}

/// Regions of one image, each from the level of a pyramid that fits its size.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooling {
    /// Rows, columns, and scale from the regions' unit to its cells, of each level.
    pub levels: Vec<(u32, u32, f32)>,
    /// Channels of every level.
    pub channels: u32,
    /// Bins along each side of a region.
    pub bins: u32,
    /// How the values of a bin become one.
    pub rule: PoolingRule,
}

/// How [`Pooling`] pools.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PoolingRule {
    /// RoIAlign.
    Align {
        /// Sample points per side of a bin; 0 for as many as the region's size requires.
        sampling_ratio: u32,
        /// The level of a box of the canonical size, counted as `finest` is.
        canonical_level: f32,
        /// √area of such a box.
        canonical_size: f32,
        /// The number of the finest level.
        finest: f32,
    },
    /// The largest value, from the only level.
    Max,
}

impl Pooling {
    /// The kernels' table, for levels at these addresses.
    pub fn table(&self, levels: &[u64]) -> Vec<u64> {
        let row = |((rows, columns, scale), address): (&(u32, u32, f32), &u64)| {
            [*address, u64::from(*rows), u64::from(*columns), u64::from(scale.to_bits())]
        };
        self.levels.iter().zip(levels).flat_map(row).collect()
    }

    /// Pools `count` rows of [`REGION`] values into `out`, `[count, channels, bins, bins]`.
    pub fn launch(&self, [table, regions, out]: [u64; 3], count: u32) -> Launch {
        let blocks = (self.channels * self.bins * self.bins).div_ceil(THREADS);
        let (grid, addresses) = ([count, blocks, 1], [table, regions, out]);
        let sizes = [self.channels, self.bins].map(Argument::U32);
        match self.rule {
            PoolingRule::Max => launch("roi_pool", grid, THREADS, &addresses, &sizes),
            PoolingRule::Align { sampling_ratio, canonical_level, canonical_size, finest } => {
                let levels = [Argument::U32(self.levels.len() as u32)];
                let ratio = [Argument::U32(sampling_ratio)];
                let level = [canonical_level, canonical_size, finest].map(Argument::F32);
                launch("roi_align", grid, THREADS, &addresses, &[&levels[..], &sizes, &ratio, &level].concat())
            }
        }
    }
}

/// The proposals of one image.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // as in lxmert-extract's configuration
pub struct Proposing {
    pub levels: Vec<ProposingLevel>,
    pub weights: [f32; 4],
    /// In pixels of the resized image.
    pub least_side: f32,
    /// The largest x and y of a clipped box.
    pub corner: [f32; 2],
    /// Whether boxes end at their last pixel.
    pub inclusive: bool,
    pub score_threshold: f32,
    pub nms_threshold: f64,
    /// Candidates of a level.
    pub pre_nms_top_n: u32,
    /// Proposals in all.
    pub post_nms_top_n: u32,
}

/// A level of the pyramid.
#[derive(Debug, Clone, PartialEq)]
pub struct ProposingLevel {
    /// The anchors of the cell at the origin.
    pub anchors: Vec<BoxXyxy>,
    /// Rows and columns of cells.
    pub cells: [u32; 2],
    /// From one cell to the next, along x and y.
    pub stride: [u32; 2],
}

impl ProposingLevel {
    fn count(&self) -> u32 {
        self.anchors.len() as u32 * self.cells[0] * self.cells[1]
    }
}

/// Where the launches of [`Proposing`] find and leave things; all are addresses.
#[derive(Debug, Clone, Copy)]
pub struct ProposingPlaces {
    /// [`Proposing::table`].
    pub table: u64,
    /// Room, as [`Proposing::rooms`] says.
    pub rooms: [u64; 8],
    /// The result, `[post_nms_top_n, REGION]`, f32, best first.
    pub out: u64,
}

impl Proposing {
    fn anchors(&self) -> u32 {
        self.levels.iter().map(ProposingLevel::count).sum()
    }

    fn most(&self, level: &ProposingLevel) -> u32 {
        level.count().min(self.pre_nms_top_n)
    }

    fn candidates(&self) -> u32 {
        self.levels.iter().map(|level| self.most(level)).sum()
    }

    fn words(&self) -> u32 {
        self.candidates().div_ceil(64)
    }

    /// Whether counts are exact in f32 and the candidates' bits fit a block.
    pub fn fits(&self) -> bool {
        let anchors: usize =
            self.levels.iter().map(|l| l.anchors.len() * l.cells[0] as usize * l.cells[1] as usize).sum();
        anchors < 1 << 24 && !self.levels.is_empty() && 8 * self.words() <= SHARED_LIMIT
    }

    /// The kernels' table, for logits, deltas and anchors of each level at these addresses.
    pub fn table(&self, levels: &[[u64; 3]]) -> Vec<u64> {
        let (mut first, mut slot, mut table) = (0, 0, Vec::new());
        for (level, addresses) in self.levels.iter().zip(levels) {
            let most = self.most(level);
            let cells = level.cells[0] * level.cells[1];
            let shapes = level.anchors.len() as u32;
            table.extend(addresses);
            let row = [shapes, level.cells[1], cells, level.stride[0], level.stride[1], first, slot, most];
            table.extend(row.map(u64::from));
            (first, slot) = (first + level.count(), slot + most);
        }
        table
    }

    /// The room that the launches need, in numbers of 4 bytes, each at a multiple of 8 bytes: all keys, chosen anchors, then boxes,
    /// scores, levels, keys and order of the candidates, and their masks with two numbers before.
    pub fn rooms(&self) -> [usize; 8] {
        let candidates = self.candidates() as usize;
        let masks = 2 * candidates * self.words() as usize + 2;
        [self.anchors() as usize, candidates, 4 * candidates, candidates, candidates, candidates, candidates, masks]
    }

    /// From logits and deltas to proposals.
    pub fn launches(&self, places: &ProposingPlaces) -> Vec<Launch> {
        let ProposingPlaces { table, rooms: [all, chosen, boxes, scores, levels, keys, order, summary], out } = *places;
        let (count, level_count) = (self.candidates(), self.levels.len() as u32);
        let masks = summary + 8;
        let [wx, wy, ww, wh] = self.weights;
        let rule = [wx, wy, ww, wh, self.least_side, self.corner[0], self.corner[1]].map(Argument::F32);
        let rule = [&rule[..], &[Argument::U32(u32::from(self.inclusive))]].concat();
        let widest = self.levels.iter().map(ProposingLevel::count).max().unwrap_or(0);
        let some = [Argument::U32(count)];
        let candidates = [Argument::U32(count), Argument::U32(level_count), Argument::F32(self.score_threshold)];
        let overlap =
            [Argument::U32(self.words()), Argument::F64(self.nms_threshold), Argument::U32(u32::from(self.inclusive))];
        let each = [count.div_ceil(THREADS), 1, 1];
        let sweep = [self.words(), self.post_nms_top_n].map(Argument::U32);
        let sweep =
            launch("suppression_sweep", [1; 3], ALL_THREADS, &[boxes, scores, order, summary, masks, out], &sweep);
        vec![
            launch("proposal_keys", [widest.div_ceil(THREADS), level_count, 1], THREADS, &[table, all], &rule),
            launch("proposal_top", [level_count, 1, 1], ALL_THREADS, &[table, all, chosen], &[]),
            launch(
                "proposal_candidates",
                each,
                THREADS,
                &[table, chosen, boxes, scores, levels, keys, all],
                &[&candidates[..], &rule].concat(),
            ),
            launch("suppression_order", each, THREADS, &[scores, levels, keys, order], &some),
            launch("suppression_shift", [1; 3], ALL_THREADS, &[boxes, scores, summary], &some),
            launch(
                "suppression_masks",
                [self.words(), self.words(), 1],
                64,
                &[boxes, levels, order, summary, masks],
                &overlap,
            ),
            Launch { shared: 8 * self.words(), ..sweep },
        ]
    }
}
