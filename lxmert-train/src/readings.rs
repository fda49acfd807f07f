//! Numbers that training leaves to be read. A device computes on while the host prepares the next steps, and to read a number is to wait
//! for it. So losses, counts and gradient norms stay where they are, with what they will mean, and come in one copy.

use crate::ranks::World;
use crate::sums::{Seen, Sums};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lxmert_core::optim::Norm;

type Meaning<'a, T> = Box<dyn FnOnce(&[f32]) -> T + 'a>;

/// What numbers on a device mean, once they are read.
pub struct Unread<'a, T> {
    /// In their order; all are f32 when they are read.
    numbers: Vec<Tensor>,
    meaning: Meaning<'a, T>,
}

impl<'a, T> Unread<'a, T> {
    /// `numbers`: tensors of any shape, whose graph is not kept, one after another what `meaning` is given.
    pub fn new(numbers: &[&Tensor], meaning: impl FnOnce(&[f32]) -> T + 'a) -> Self {
        Self { numbers: numbers.iter().map(|tensor| tensor.detach()).collect(), meaning: Box::new(meaning) }
    }
}

/// The result of one batch.
pub struct BatchLoss<'a> {
    /// The value to differentiate: the batch's summed losses divided by the number of examples in the whole optimiser
    /// step.
    pub loss: Tensor,
    /// What to log of it.
    pub unread: Unread<'a, Seen>,
}

/// The values of all `tensors`, one after another, as f32, in one copy.
///
/// # Errors
/// Returns an error if they are on different devices.
pub fn read(tensors: &[&Tensor]) -> Result<Vec<f32>> {
    let flat = tensors.iter().map(|tensor| tensor.flatten_all()?.to_dtype(DType::F32));
    let flat = flat.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(if flat.is_empty() { Vec::new() } else { Tensor::cat(&flat, 0)?.to_vec1()? })
}

/// An optimiser step.
struct Step<'a> {
    /// This rank's batches, round by round; `None` where it had none.
    rounds: Vec<Option<Unread<'a, Seen>>>,
    norm: Unread<'a, f64>,
    number: u64,
    learning_rate: f64,
}

/// Steps whose numbers are not read yet, and the batches of the one that is not finished.
#[derive(Default)]
pub struct Readings<'a> {
    steps: Vec<Step<'a>>,
    rounds: Vec<Option<Unread<'a, Seen>>>,
}

impl<'a> Readings<'a> {
    /// Adds a round's batch.
    pub fn add(&mut self, batch: Option<Unread<'a, Seen>>) {
        self.rounds.push(batch);
    }

    /// Ends the optimiser step with this number, from 1, whose batches are those added since the last.
    pub fn end_step(&mut self, number: u64, learning_rate: f64, norm: Norm) {
        let norm = match norm {
            Norm::Known(norm) => Unread::new(&[], move |_| norm),
            Norm::OnDevice(norm) => {
                Unread::new(&[&norm], |numbers| numbers.first().map_or(f64::NAN, |norm| f64::from(*norm)))
            }
        };
        self.steps.push(Step { rounds: std::mem::take(&mut self.rounds), norm, number, learning_rate });
    }

    /// Reads all finished steps: the sums of each over all ranks' batches, and its gradient norm. Every rank must call it, after the
    /// same step.
    ///
    /// # Errors
    /// Returns an error if a loss or norm is not finite, or of any rank that cannot read.
    pub fn read(&mut self, world: World) -> Result<Vec<(Sums, f64)>> {
        let steps = std::mem::take(&mut self.steps);
        let of_step = |step: &Step| -> Vec<Tensor> {
            let batches = step.rounds.iter().flatten().flat_map(|batch| &batch.numbers);
            batches.chain(&step.norm.numbers).cloned().collect()
        };
        let numbers: Vec<Tensor> = steps.iter().flat_map(of_step).collect();
        let numbers = read(&numbers.iter().collect::<Vec<_>>())?;
        let mut numbers = numbers.as_slice();
        let mut read = Vec::with_capacity(steps.len());
        for Step { rounds, norm, number, learning_rate } in steps {
            let sums = rounds.into_iter().map(|batch| batch.map(|batch| Sums::of_batch(&take(batch, &mut numbers))));
            let sums = total(world, sums.collect())?;
            let norm = take(norm, &mut numbers);
            if !sums.loss.is_finite() || !norm.is_finite() {
                return Err(Error::Diverged { step: number, loss: sums.mean_loss(), learning_rate });
            }
            read.push((sums, norm));
        }
        Ok(read)
    }
}

/// The first of `numbers` as what they mean; leaves the others.
fn take<T>(unread: Unread<T>, numbers: &mut &[f32]) -> T {
    let count = unread.numbers.iter().map(Tensor::elem_count).sum();
    let (own, rest) = numbers.split_at(count);
    *numbers = rest;
    (unread.meaning)(own)
}

/// The sums of a step over all ranks, round by round and in a round by rank, which is the order of the batches.
fn total(world: World, own: Vec<Option<Sums>>) -> Result<Sums> {
    let all = match world.is_alone() {
        true => vec![own],
        false => {
            let json = serde_json::to_vec(&own).map_err(Error::json("another rank"));
            let all = world.gather(json)?;
            let parsed = all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(Error::json("another rank")));
            parsed.collect::<Result<Vec<Vec<Option<Sums>>>>>()?
        }
    };
    let mut total = Sums::default();
    for round in 0..all.iter().map(Vec::len).max().unwrap_or(0) {
        all.iter().filter_map(|rank| rank.get(round)?.as_ref()).for_each(|sums| total.add_batches(sums));
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::world;
    use crate::sums::Part;
    use candle_core::Device;

    fn batch(loss: f32, right: f32) -> Unread<'static, Seen> {
        let numbers = [loss, right].map(|number| Tensor::new(number, &Device::Cpu).unwrap());
        let seen = |numbers: &[f32]| Seen {
            examples: 4,
            sum: f64::from(numbers[0]),
            right: (numbers[1] as usize, 4),
            parts: vec![Part { name: "words", loss: f64::from(numbers[0]), right: (0, 0) }],
        };
        Unread::new(&[&numbers[0], &numbers[1]], seen)
    }

    fn on_device(norm: f32) -> Norm {
        Norm::OnDevice(Tensor::new(&[norm], &Device::Cpu).unwrap())
    }

    /// Steps of one and of two batches, of ranks without a batch, with norms that are known and that are on the device.
    #[test]
    fn steps_read_together_are_those_read_one_by_one() {
        let steps = [
            (vec![Some((0.1, 3.0))], Norm::Known(0.1)),
            (vec![Some((0.3, 1.0)), Some((0.7, 4.0))], on_device(0.2)),
            (vec![Some((0.5, 0.0)), None], on_device(0.3)),
        ];
        let mut found = Vec::new();
        for together in [false, true] {
            let (mut readings, mut read) = (Readings::default(), Vec::new());
            for (number, (batches, norm)) in (1..).zip(&steps) {
                batches.iter().for_each(|of| readings.add(of.map(|(loss, right)| batch(loss, right))));
                readings.end_step(number, 0.01, norm.clone());
                if !together {
                    read.extend(readings.read(world()).unwrap());
                }
            }
            readings.add(Some(batch(9.0, 0.0))); // of a step that has not ended
            read.extend(readings.read(world()).unwrap());
            found.push(read);
        }
        assert_eq!(found[0], found[1]);
        let (sums, norm) = &found[0][1];
        assert_eq!(
            (sums.loss, sums.right, sums.judged, sums.examples),
            (f64::from(0.3f32) + f64::from(0.7f32), 5, 8, 8)
        );
        assert_eq!((found[0].len(), *norm), (3, f64::from(0.2f32)));
        assert_eq!(sums.parts["words"].1, 2);
    }

    #[test]
    fn the_first_step_that_diverged_is_named() {
        for (loss, norm) in [(f32::NAN, 1.0), (1.0, f32::INFINITY)] {
            let mut readings = Readings::default();
            for (number, loss, norm) in [(6, 1.0, 1.0), (7, loss, norm), (8, f32::NAN, f32::NAN)] {
                readings.add(Some(batch(loss, 0.0)));
                readings.end_step(number, 0.01, on_device(norm));
            }
            assert!(matches!(readings.read(world()), Err(Error::Diverged { step: 7, .. })));
        }
    }
}
