//! The sum of a step's gradients, in the order of its batches, whichever rank computed them.
//!
//! Adding floats in another order gives other bits. So no rank adds up its own batches first: after every round of batches,
//! one a rank, each rank gets its slice of all ranks' gradients and adds them in rank order, which is the batches' order; after
//! the last round the slices go to all. That moves as many bytes as a ring's all-reduce in the last round, and half in the others.
//!
//! A batch may lack a parameter's gradient, as when nothing in it was masked. Such a gradient is skipped and not taken for zeros,
//! on one rank as on many: `-0 + 0` has other bits, and a parameter without any gradient is not touched by the optimiser.

use super::World;
use crate::Result;
use candle_core::{Device, Shape, Tensor};
use std::ops::Range;

/// Numbers that are exchanged at a time: large enough for the network's bandwidth, small enough not to hold the gradients
/// several times.
const BUCKET: usize = 1 << 23;

/// The sum of a step's gradients, parameter by parameter; the module's text says how.
pub struct GradientSum {
    world: World,
    shapes: Vec<Shape>,
    device: Device,
    /// Pieces of parameters, bucket by bucket, each added up by one rank.
    buckets: Vec<Vec<Piece>>,
    /// In a world of one, the sums of whole parameters; else of the pieces that this rank adds up.
    sums: Vec<Option<Tensor>>,
    /// Parameters that some batch had a gradient of.
    present: Vec<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    parameter: usize,
    /// In the parameter's numbers.
    range: Range<usize>,
    /// The rank that adds it up.
    owner: usize,
    /// Its number among all pieces.
    number: usize,
}

impl GradientSum {
    /// An empty sum. `shapes`: those of the parameters.
    pub fn new(world: World, shapes: Vec<Shape>, device: &Device) -> Self {
        let counts: Vec<usize> = shapes.iter().map(Shape::elem_count).collect();
        let buckets = if world.is_alone() { Vec::new() } else { pieces(&counts, world.size(), BUCKET) };
        let number = if world.is_alone() { shapes.len() } else { buckets.iter().map(Vec::len).sum() };
        let present = vec![false; shapes.len()];
        Self { world, shapes, device: device.clone(), buckets, sums: vec![None; number], present }
    }

    /// Adds a round: the gradients of one batch of each rank, in rank order. `gradients`: this rank's, empty where it had no
    /// batch. `present`: by rank, which gradients it has, empty where it had no batch.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn add(&mut self, gradients: Vec<Option<Tensor>>, present: &[Vec<bool>]) -> Result<()> {
        for flags in present {
            self.present.iter_mut().zip(flags).for_each(|(any, has)| *any |= has);
        }
        if self.world.is_alone() {
            for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
                add_to(sum, gradient)?;
            }
            return Ok(());
        }
        let flat: Vec<Option<Tensor>> = gradients
            .into_iter()
            .map(|gradient| gradient.map(|gradient| gradient.flatten_all()?.contiguous()).transpose())
            .collect::<candle_core::Result<_>>()?;
        let rank = self.world.rank();
        let has = |rank: usize, piece: &Piece| present[rank].get(piece.parameter).copied().unwrap_or(false);
        for bucket in &self.buckets {
            let mut send: Vec<Vec<Tensor>> = vec![Vec::new(); self.world.size()];
            for piece in bucket.iter().filter(|piece| has(rank, piece)) {
                if let Some(gradient) = &flat[piece.parameter] {
                    send[piece.owner].push(gradient.narrow(0, piece.range.start, piece.range.len())?);
                }
            }
            let mine = || bucket.iter().filter(|piece| piece.owner == rank);
            let counts: Vec<usize> = (0..self.world.size())
                .map(|from| mine().filter(|piece| has(from, piece)).map(|piece| piece.range.len()).sum())
                .collect();
            let received = self.world.all_to_all(send, &counts, &self.device)?;
            for (from, numbers) in received.iter().enumerate() {
                let mut at = 0;
                for piece in mine().filter(|piece| has(from, piece)) {
                    let length = piece.range.len();
                    add_to(&mut self.sums[piece.number], Some(numbers.narrow(0, at, length)?))?;
                    at += length;
                }
            }
        }
        Ok(())
    }

    /// Takes the sums, on every rank.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn take(&mut self) -> Result<Vec<Option<Tensor>>> {
        let present = std::mem::replace(&mut self.present, vec![false; self.shapes.len()]);
        let mut sums = vec![None; self.sums.len()];
        std::mem::swap(&mut self.sums, &mut sums);
        if self.world.is_alone() {
            return Ok(sums);
        }
        let mut parts: Vec<Vec<Tensor>> = vec![Vec::new(); self.shapes.len()];
        for bucket in &self.buckets {
            let of = |owner: usize| bucket.iter().filter(move |piece| piece.owner == owner);
            let has = |piece: &&Piece| present[piece.parameter];
            let mine: Vec<Tensor> =
                of(self.world.rank()).filter(has).filter_map(|piece| sums[piece.number].take()).collect();
            let counts: Vec<usize> = (0..self.world.size())
                .map(|owner| of(owner).filter(has).map(|piece| piece.range.len()).sum())
                .collect();
            let gathered = self.world.all_gather(mine, &counts, &self.device)?;
            for (owner, numbers) in gathered.iter().enumerate() {
                let mut at = 0;
                for piece in of(owner).filter(has) {
                    parts[piece.parameter].push(numbers.narrow(0, at, piece.range.len())?);
                    at += piece.range.len();
                }
            }
        }
        let whole = |(parts, shape): (Vec<Tensor>, &Shape)| match parts.is_empty() {
            true => Ok(None),
            false => Ok(Some(Tensor::cat(&parts, 0)?.reshape(shape)?)),
        };
        parts.into_iter().zip(&self.shapes).map(whole).collect()
    }
}

fn add_to(sum: &mut Option<Tensor>, more: Option<Tensor>) -> Result<()> {
    *sum = match (sum.take(), more) {
        (Some(sum), Some(more)) => Some((sum + more)?),
        (sum, more) => sum.or(more),
    };
    Ok(())
}

/// Cuts parameters of `counts` numbers, one after another, into buckets of at most `bucket` numbers, and each bucket into a
/// slice for each of `ranks` ranks; a slice is one piece or several, each of one parameter. Pieces of a parameter follow each
/// other.
fn pieces(counts: &[usize], ranks: usize, bucket: usize) -> Vec<Vec<Piece>> {
    let total: usize = counts.iter().sum();
    let starts: Vec<usize> = counts.iter().scan(0, |at, count| Some(std::mem::replace(at, *at + count))).collect();
    let mut number = 0;
    let mut buckets = Vec::new();
    for first in (0..total).step_by(bucket) {
        let length = bucket.min(total - first);
        let mut cut = Vec::new();
        for owner in 0..ranks {
            let slice = first + length * owner / ranks..first + length * (owner + 1) / ranks;
            let from = starts.partition_point(|start| *start <= slice.start).saturating_sub(1);
            for parameter in from..counts.len() {
                let start = slice.start.max(starts[parameter]);
                let end = slice.end.min(starts[parameter] + counts[parameter]);
                if starts[parameter] >= slice.end {
                    break;
                }
                if start < end {
                    let range = start - starts[parameter]..end - starts[parameter];
                    cut.push(Piece { parameter, range, owner, number });
                    number += 1;
                }
            }
        }
        buckets.push(cut);
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_parameter_once_in_order_and_share_it_evenly() {
        for (counts, ranks, bucket) in
            [(vec![3, 0, 5, 1, 7], 2, 6), (vec![1], 4, 8), (vec![100, 1, 1, 50], 3, 64), (vec![10, 20], 1, 7)]
        {
            let cut = pieces(&counts, ranks, bucket);
            let all: Vec<&Piece> = cut.iter().flatten().collect();
            assert!(all.iter().enumerate().all(|(number, piece)| piece.number == number));
            for (parameter, &count) in counts.iter().enumerate() {
                let mut at = 0;
                for piece in all.iter().filter(|piece| piece.parameter == parameter) {
                    assert_eq!(piece.range.start, at, "{counts:?}");
                    at = piece.range.end;
                }
                assert_eq!(at, count, "{counts:?}");
            }
            for bucket in &cut {
                let of = |rank| -> usize {
                    bucket.iter().filter(|piece| piece.owner == rank).map(|piece| piece.range.len()).sum()
                };
                let lengths: Vec<usize> = (0..ranks).map(of).collect();
                assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1, "{lengths:?}");
            }
        }
    }

    #[test]
    fn alone_gradients_are_added_and_missing_ones_skipped() {
        let world = super::super::world();
        let tensor = |values: [f32; 2]| Tensor::new(&values, &Device::Cpu).unwrap();
        let mut sum = GradientSum::new(world, vec![Shape::from(2); 3], &Device::Cpu);
        for _ in 0..2 {
            let first = vec![Some(tensor([-0.0, 1.0])), None, None];
            sum.add(first, &[vec![true, false, false]]).unwrap();
            sum.add(vec![None, Some(tensor([1.0, 2.0])), None], &[vec![false, true, false]]).unwrap();
            sum.add(vec![None, Some(tensor([3.0, 4.0])), None], &[vec![false, true, false]]).unwrap();
            let got: Vec<Option<Vec<f32>>> =
                sum.take().unwrap().into_iter().map(|sum| sum.map(|sum| sum.to_vec1().unwrap())).collect();
            assert_eq!(got, [Some(vec![-0.0, 1.0]), Some(vec![4.0, 6.0]), None]);
            assert!(got[0].as_ref().unwrap()[0].is_sign_negative());
        }
    }
}
