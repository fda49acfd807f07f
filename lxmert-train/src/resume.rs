//! The state that lets a killed run go on equal to the bit.
//!
//! Everything lies in one safetensors file, renamed into place whole: weights (`model.<name>`),
//! AdamW's moments, and, as JSON in the file's metadata, the position: step, epoch, place in the
//! epoch, best epoch, the running sums of the epoch, and how long the logs were. There is no
//! generator to save: pairs, order and dropout are functions of the seed, the epoch and the step.

use crate::optim::AdamW;
use crate::tasks::{BatchLoss, Part};
use crate::{Error, Result};
use candle_core::Tensor;
use lxmert_core::checkpoint::{read_tensors, save_safetensors};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Optimiser steps taken.
    pub step: u64,
    /// Epochs finished.
    pub epoch: u64,
    /// Batches of the current epoch that are done.
    pub batch: usize,
    /// Sums over the current epoch.
    pub epoch_sums: Sums,
    /// Sums since the last step record.
    pub log_sums: Sums,
    /// The best epoch so far.
    pub best: Option<Best>,
    /// Whether training has ended and only the test is left.
    pub trained: bool,
    /// Length of `metrics.jsonl` in bytes.
    pub metrics_bytes: u64,
    /// Length of the event file in bytes.
    pub events_bytes: u64,
    /// Seconds spent, over all sittings.
    pub seconds: f64,
}

/// Running sums of the training loss.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Sum of the examples' losses.
    pub loss: f64,
    /// Examples judged right.
    pub right: usize,
    /// Examples judged.
    pub judged: usize,
    /// Examples.
    pub examples: usize,
    /// Of each part of the loss: the sum of its batch means, and the batches that had it.
    pub parts: BTreeMap<String, (f64, u64)>,
    /// Of each part that guesses: right guesses, and guesses.
    #[serde(default)]
    pub guesses: BTreeMap<String, (usize, usize)>,
    /// Sum of the gradient norms.
    pub norm: f64,
    /// Optimiser steps.
    pub steps: u64,
}

impl Sums {
    /// Takes in a batch's result.
    pub fn add_batch(&mut self, batch: &BatchLoss) {
        self.loss += batch.sum;
        self.right += batch.right.0;
        self.judged += batch.right.1;
        self.examples += batch.examples;
        for &Part { name, loss, right } in &batch.parts {
            add(&mut self.parts, name, (loss, 1));
            if right.1 > 0 {
                add(&mut self.guesses, name, right);
            }
        }
    }

    /// Takes in an optimiser step's batches and the norm of its gradient.
    pub fn add_step(&mut self, step: &Self, norm: f64) {
        self.loss += step.loss;
        self.right += step.right;
        self.judged += step.judged;
        self.examples += step.examples;
        step.parts.iter().for_each(|(name, sums)| add(&mut self.parts, name, *sums));
        step.guesses.iter().for_each(|(name, counts)| add(&mut self.guesses, name, *counts));
        self.norm += norm;
        self.steps += 1;
    }

    /// Mean loss of an example.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.examples.max(1) as f64
    }

    /// Share of the judged examples that were right; none when none was judged.
    pub fn accuracy(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.right as f64 / self.judged as f64)
    }

    /// Each part's mean over the batches that had it.
    pub fn part_means(&self) -> BTreeMap<String, f64> {
        self.parts.iter().map(|(name, (sum, batches))| (name.clone(), sum / *batches as f64)).collect()
    }

    /// Of each part that guesses, the share of right guesses.
    pub fn part_accuracies(&self) -> BTreeMap<String, f64> {
        self.guesses.iter().map(|(name, (right, all))| (name.clone(), *right as f64 / (*all).max(1) as f64)).collect()
    }
}

fn add<A: Copy + Default + AddAssign, B: Copy + Default + AddAssign>(
    sums: &mut BTreeMap<String, (A, B)>,
    name: &str,
    (a, b): (A, B),
) {
    let sum = sums.entry(name.to_string()).or_default();
    sum.0 += a;
    sum.1 += b;
}

/// The best epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its number, from 1.
    pub epoch: u64,
    /// The watched measure, higher is better.
    pub value: f64,
}

/// Writes the state.
///
/// # Errors
/// When it cannot be written.
pub fn save(path: &Path, position: &Position, optimiser: &AdamW) -> Result<()> {
    let mut tensors = optimiser.state()?;
    tensors.extend(optimiser.parameters().map(|(name, var)| (format!("model.{name}"), var.as_tensor().clone())));
    let json = serde_json::to_string(position).map_err(Error::json(path))?;
    let metadata = BTreeMap::from([("position".to_string(), json)]);
    Ok(save_safetensors(path, &tensors, &metadata)?)
}

/// Reads the state into the optimiser's parameters and moments.
///
/// # Errors
/// When the file is not a training state of this model.
pub fn load(path: &Path, optimiser: &mut AdamW) -> Result<Position> {
    let position = position(path)?;
    let tensors: BTreeMap<String, Tensor> = read_tensors(path)?;
    for (name, var) in optimiser.parameters() {
        let tensor = tensors
            .get(&format!("model.{name}"))
            .ok_or_else(|| Error::file(path, format!("lacks the weight '{name}'")))?;
        if tensor.shape() != var.shape() {
            return Err(Error::file(
                path,
                format!("'{name}' is {:?}, the model needs {:?}", tensor.dims(), var.dims()),
            ));
        }
        var.set(&tensor.to_device(var.device())?)?;
    }
    optimiser.restore(&tensors, position.step)?;
    Ok(position)
}

/// Reads the position alone.
///
/// # Errors
/// When the file is not a training state.
pub fn position(path: &Path) -> Result<Position> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let total = file.metadata().map_err(Error::io(path))?.len();
    let mut size = [0u8; 8];
    file.read_exact(&mut size).map_err(Error::io(path))?;
    let size = u64::from_le_bytes(size);
    let bad = |reason: &str| Error::file(path, format!("not a training state ({reason}); start anew with --overwrite"));
    if size > total.saturating_sub(8) {
        return Err(bad("its header is cut short"));
    }
    let mut header = vec![0u8; size as usize];
    file.read_exact(&mut header).map_err(Error::io(path))?;
    let header: serde_json::Value = serde_json::from_slice(&header).map_err(|_| bad("its header is not JSON"))?;
    let json = header["__metadata__"]["position"].as_str().ok_or_else(|| bad("it says no position"))?;
    serde_json::from_str(json).map_err(|e| bad(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn parts_are_means_over_batches_and_their_guesses_are_counted() {
        let batch = |parts: &[Part]| {
            let loss = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
            BatchLoss { loss, examples: 4, sum: 2.0, right: (0, 0), parts: parts.to_vec() }
        };
        let (words, regions) =
            (|loss, right| Part { name: "words", loss, right }, Part { name: "features", loss: 1.0, right: (0, 0) });
        let (mut step, mut sums) = (Sums::default(), Sums::default());
        step.add_batch(&batch(&[words(3.0, (1, 4)), regions]));
        step.add_batch(&batch(&[words(1.0, (2, 2))]));
        sums.add_step(&step, 1.0);
        sums.add_step(&Sums::default(), 1.0);
        assert_eq!(sums.part_means(), BTreeMap::from([("words".into(), 2.0), ("features".into(), 1.0)]));
        assert_eq!(sums.part_accuracies(), BTreeMap::from([("words".into(), 0.5)]));
        // A state that was saved before guesses were counted still resumes.
        let mut old = serde_json::to_value(&sums).unwrap();
        old.as_object_mut().unwrap().remove("guesses");
        let old: Sums = serde_json::from_value(old).unwrap();
        assert_eq!((old.parts, old.guesses.len()), (sums.parts, 0));
    }
}
