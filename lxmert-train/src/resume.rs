//! The state from which a killed run resumes bit for bit.
//!
//! It is one safetensors file, written atomically: weights (`model.<name>`), AdamW's moments, the weights' average
//! (`average.<name>`) if there is one, and, in the file's metadata, a checksum of the whole file and as JSON the position:
//! step, epoch, batch in the epoch, best epoch, the epoch's running sums, and the lengths of the logs. No random generator
//! has a state to save: pairs, order and dropout are functions of the seed, the epoch and the step.

use crate::average::Average;
use crate::measures::nan_for_null;
use crate::run_folder::Seconds;
use crate::sums::Sums;
use crate::{Error, Result};
use candle_core::Tensor;
use lxmert_core::checkpoint::{read_tensors, save_verifiable_safetensors, verify_safetensors};
use lxmert_core::optim::AdamW;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The position of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Optimiser steps taken.
    pub step: u64,
    /// Epochs finished.
    pub epoch: u64,
    /// Finished batches of the current epoch.
    pub batch: usize,
    /// Sums over the current epoch.
    pub epoch_sums: Sums,
    /// Sums since the last step record.
    pub log_sums: Sums,
    /// The best epoch so far.
    pub best: Option<Best>,
    /// Whether training has finished and only the test is left.
    pub trained: bool,
    /// Length of `metrics.jsonl` in bytes.
    pub metrics_bytes: u64,
    /// Length of the event file in bytes.
    pub events_bytes: u64,
    /// Time spent, over all sessions.
    pub seconds: Seconds,
}

impl Position {
    /// Records the watched measure of the epoch that has just ended (higher is better); returns whether the epoch is
    /// the best so far. NaN is worse than every number.
    pub fn take_measure(&mut self, value: f64) -> bool {
        let better = |best: &Best| value > best.value || best.value.is_nan() && !value.is_nan();
        let is_best = self.best.as_ref().is_none_or(better);
        if is_best {
            self.best = Some(Best { epoch: self.epoch, value });
        }
        is_best
    }
}

/// The best epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its number, from 1.
    pub epoch: u64,
    /// The watched measure; higher is better.
    #[serde(deserialize_with = "nan_for_null")]
    pub value: f64,
}

/// Writes the state.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn save(path: &Path, position: &Position, optimiser: &AdamW, average: Option<&Average>) -> Result<()> {
    let mut tensors = optimiser.state()?;
    tensors.extend(optimiser.parameters().map(|(name, var)| (format!("model.{name}"), var.as_tensor().clone())));
    tensors.extend(average.into_iter().flat_map(Average::state));
    let json = serde_json::to_string(position).map_err(Error::json(path))?;
    let metadata = BTreeMap::from([("position".to_string(), json)]);
    Ok(save_verifiable_safetensors(path, &tensors, &metadata)?)
}

/// Reads the state into the optimiser's parameters and moments, and into the average.
///
/// # Errors
/// Returns an error if the file is damaged or not a training state of this model.
pub fn load(path: &Path, optimiser: &mut AdamW, average: Option<&mut Average>) -> Result<Position> {
    let position = position(path)?;
    let tensors: BTreeMap<String, Tensor> = read_tensors(path)?;
    for (name, var) in optimiser.parameters() {
        let tensor = tensors
            .get(&format!("model.{name}"))
            .ok_or_else(|| Error::file(path, format!("the weight '{name}' is missing")))?;
        if tensor.shape() != var.shape() {
            return Err(Error::file(
                path,
                format!("'{name}' is {:?}, the model needs {:?}", tensor.dims(), var.dims()),
            ));
        }
        var.set(&tensor.to_device(var.device())?)?;
    }
    optimiser.restore(&tensors, position.step)?;
    if let Some(average) = average {
        average.restore(&tensors)?;
    }
    Ok(position)
}

/// Checks the whole file and reads only the position.
///
/// # Errors
/// Returns an error if the file is damaged or not a training state.
pub fn position(path: &Path) -> Result<Position> {
    let bad = |reason: &str| {
        let advice = "restore it from a copy, or start again with --overwrite (and --init for the weights in last)";
        Error::file(path, format!("not a training state to resume from: {reason}; {advice}"))
    };
    let metadata = verify_safetensors(path).map_err(|error| match error {
        lxmert_core::Error::Format { reason, .. } => bad(&reason),
        other => other.into(),
    })?;
    let json = metadata.get("position").ok_or_else(|| bad("it has no position"))?;
    serde_json::from_str(json).map_err(|e| bad(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use lxmert_core::optim::AdamWConfig;

    #[test]
    fn nan_is_the_best_only_until_there_is_a_number() {
        let mut position = Position::default();
        let mut best_after = |value| {
            position.epoch += 1;
            position.take_measure(value);
            // Through the state file and back, since JSON has no NaN.
            position = serde_json::from_str(&serde_json::to_string(&position).unwrap()).unwrap();
            position.best.unwrap().epoch
        };
        let epochs = [f64::NAN, f64::NAN, 0.5, f64::NAN, 0.25, 0.75].map(&mut best_after);
        assert_eq!(epochs, [1, 1, 3, 3, 3, 6]);
    }

    #[test]
    fn refuses_a_state_with_any_byte_changed_added_or_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let weight = |value: f32| Var::from_tensor(&Tensor::full(value, (3, 5), &Device::Cpu).unwrap()).unwrap();
        let optimiser =
            |value| AdamW::new(AdamWConfig::default(), BTreeMap::from([("w".into(), weight(value))])).unwrap();
        // As a user's text could stand in it.
        let epoch_sums = Sums { parts: BTreeMap::from([("\"crc32\":\"".into(), (0.5, 1))]), ..Sums::default() };
        let saved = Position { step: 7, epoch_sums, ..Position::default() };
        save(&path, &saved, &optimiser(0.25), None).unwrap();
        let mut fresh = optimiser(0.0);
        assert_eq!(load(&path, &mut fresh, None).unwrap(), saved);
        let (_, var) = fresh.parameters().next().unwrap();
        assert_eq!(var.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.25; 15]);

        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], what: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = load(&path, &mut optimiser(0.0), None).unwrap_err().to_string();
            assert!(error.contains("state.safetensors: ") && error.contains("--overwrite"), "{what}: {error}");
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            refused(&bytes, &format!("a bit of byte {at}"));
        }
        for length in [0, 7, 8, 100, whole.len() - 1] {
            refused(&whole[..length], &format!("{length} bytes of it"));
        }
        refused(&[whole.as_slice(), b"x"].concat(), "a byte more");
    }
}
