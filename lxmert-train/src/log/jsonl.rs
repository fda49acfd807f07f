//! `metrics.jsonl`: one JSON object per line, appended during the run. Each has a `"kind"`: `step`, `epoch` or `test`.

use crate::measures::Measures;
use crate::{Error, Result};
use lxmert_core::files::AppendLog;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// A few training steps, averaged.
    Step(StepRecord),
    /// A finished epoch with its validation.
    Epoch(EpochRecord),
    /// The results of the best checkpoint on the test split, after the last epoch.
    Test(TestRecord),
}

/// The training steps since the previous record, averaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimiser steps taken so far.
    pub step: u64,
    /// Epochs finished so far, including the fraction of the current one.
    pub epoch: f64,
    /// Mean training loss.
    pub loss: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Mean gradient norm before clipping.
    pub gradient_norm: f64,
    /// Training examples per second.
    pub examples_per_second: f64,
    /// The means of the losses that add up to the total.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, f64>,
    /// Accuracy of each part that predicts something (masked words, objects, …), with dropout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accuracies: BTreeMap<String, f64>,
}

/// A finished epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Number of the epoch, from 1.
    pub epoch: u64,
    /// Optimiser steps taken so far.
    pub step: u64,
    /// Mean training loss of the epoch, measured during training, with dropout.
    pub train_loss: f64,
    /// Training accuracy of the epoch, measured likewise, if the task has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_accuracy: Option<f64>,
    /// Results on the validation split.
    pub validation: Measures,
    /// Whether this epoch is the best so far.
    pub best: bool,
    /// Seconds the epoch took, validation included.
    pub seconds: f64,
}

impl EpochRecord {
    /// A one-line summary of the epoch.
    pub fn line(&self) -> String {
        let accuracy = self.train_accuracy.map_or_else(String::new, |accuracy| format!(", accuracy {accuracy:.3}"));
        format!(
            "epoch {}: train loss {:.3}{accuracy} | {} | {:.0} s{}",
            self.epoch,
            self.train_loss,
            self.validation.line(),
            self.seconds,
            if self.best { ", best" } else { "" }
        )
    }
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// The epoch of the checkpoint that was tested.
    pub epoch: u64,
    /// Results on the test split.
    pub test: Measures,
}

/// Appends records to `metrics.jsonl`.
#[derive(Debug)]
pub struct JsonlWriter {
    log: AppendLog,
}

impl JsonlWriter {
    /// Opens the file and keeps its first `keep` bytes: a resumed run writes again what came after its saved state.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened or is shorter than `keep`.
    pub fn open(path: &Path, keep: u64) -> Result<Self> {
        let mut log = AppendLog::open(path)?;
        log.cut(keep)?;
        Ok(Self { log })
    }

    /// Writes one record as one line.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(Error::json(self.log.path()))?;
        line.push('\n');
        Ok(self.log.append(line.as_bytes())?)
    }

    /// The file's length, for the training state.
    ///
    /// # Errors
    /// Returns an error if the file cannot be synced to disk.
    pub fn position(&self) -> Result<u64> {
        Ok(self.log.sync()?)
    }
}

/// Reads `metrics.jsonl`. Skips a last line that a kill has truncated.
///
/// # Errors
/// Returns an error if the file cannot be read or another line is not a record.
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let whole = match text.rfind('\n') {
        Some(end) => &text[..end],
        None => "",
    };
    let lines = whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| serde_json::from_str(line).map_err(|e| Error::row(path, i + 1, format!("not a record: {e}"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn step(n: u64) -> Record {
        Record::Step(StepRecord {
            step: n,
            epoch: 0.1,
            loss: 0.7,
            learning_rate: 1e-4,
            gradient_norm: 2.0,
            examples_per_second: 9.5,
            parts: BTreeMap::from([("words".to_string(), 3.5)]),
            accuracies: BTreeMap::from([("words".to_string(), 0.25)]),
        })
    }

    #[test]
    fn reopening_drops_records_after_the_state_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = JsonlWriter::open(&path, 0).unwrap();
        writer.write(&step(1)).unwrap();
        let keep = writer.position().unwrap();
        writer.write(&step(2)).unwrap();
        drop(writer);
        let mut writer = JsonlWriter::open(&path, keep).unwrap();
        writer.write(&step(3)).unwrap();
        drop(writer);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"kind\":\"st").unwrap();
        assert_eq!(read_records(&path).unwrap(), [step(1), step(3)]);
        assert!(JsonlWriter::open(&path, 1 << 20).unwrap_err().to_string().contains("changed since"));
    }
}
