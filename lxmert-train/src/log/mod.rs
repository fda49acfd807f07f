//! The outputs of a running job: JSON lines, TensorBoard events, a progress bar, curves, the model card.

pub mod card;
pub mod curves;
pub mod jsonl;
pub mod progress;
pub mod tensorboard;

pub use jsonl::{Record, read_records};

use crate::Result;
use crate::job::RunSettings;
use crate::run_folder::RunFolder;
use crate::sums::Sums;
use jsonl::{EpochRecord, JsonlWriter, StepRecord, TestRecord};
use std::time::Instant;
use tensorboard::EventWriter;

/// The two logs of a run, written side by side.
pub struct RunLog {
    metrics: JsonlWriter,
    events: EventWriter,
    /// When counting examples began, and how many there were since.
    measured: (Instant, usize),
}

impl RunLog {
    /// Opens a run's logs and truncates `metrics.jsonl` and the event file to these lengths in bytes. A new event file starts
    /// with the settings, for TensorBoard's HParams.
    ///
    /// # Errors
    /// Returns an error if a file cannot be opened or is shorter than that.
    pub fn open(folder: &RunFolder, (metrics_bytes, events_bytes): (u64, u64), settings: &RunSettings) -> Result<Self> {
        let mut events = EventWriter::open(&folder.tensorboard(), events_bytes)?;
        if events_bytes == 0 {
            events.start(&settings.name, &settings.flat())?;
        }
        Ok(Self {
            metrics: JsonlWriter::open(&folder.metrics(), metrics_bytes)?,
            events,
            measured: (Instant::now(), 0),
        })
    }

    /// Counts trained examples, for the rate.
    pub fn count(&mut self, examples: usize) {
        self.measured.1 += examples;
    }

    /// Records the steps in `sums`. `epoch`: epochs finished, including the fraction of the current one.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn step(&mut self, step: u64, epoch: f64, learning_rate: f64, sums: &Sums) -> Result<()> {
        let (since, examples) = std::mem::replace(&mut self.measured, (Instant::now(), 0));
        let record = StepRecord {
            step,
            epoch,
            loss: sums.mean_loss(),
            learning_rate,
            gradient_norm: sums.norm / sums.steps.max(1) as f64,
            examples_per_second: examples as f64 / since.elapsed().as_secs_f64(),
            parts: sums.part_means(),
            accuracies: sums.part_accuracies(),
        };
        let named = [("loss", &record.parts), ("accuracy", &record.accuracies)];
        let parts: Vec<(String, f64)> = named
            .into_iter()
            .flat_map(|(kind, values)| values.iter().map(move |(name, value)| (format!("train/{kind}_{name}"), *value)))
            .collect();
        let mut scalars = vec![
            ("train/loss", record.loss),
            ("train/learning_rate", learning_rate),
            ("train/gradient_norm", record.gradient_norm),
            ("train/examples_per_second", record.examples_per_second),
        ];
        scalars.extend(parts.iter().map(|(name, value)| (name.as_str(), *value)));
        self.events.scalars(step, &scalars)?;
        self.metrics.write(&Record::Step(record))
    }

    /// Records a finished epoch.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        let mut scalars = vec![("train/epoch_loss".to_string(), record.train_loss)];
        scalars.extend(record.train_accuracy.map(|accuracy| ("train/epoch_accuracy".to_string(), accuracy)));
        scalars.extend(record.validation.flat().map(|(name, value)| (format!("val/{name}"), value)));
        self.events.scalars(record.step, &scalars)?;
        self.metrics.write(&Record::Epoch(record.clone()))
    }

    /// Records the test results.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn test(&mut self, step: u64, record: &TestRecord) -> Result<()> {
        let scalars: Vec<(String, f64)> =
            record.test.flat().map(|(name, value)| (format!("test/{name}"), value)).collect();
        self.events.scalars(step, &scalars)?;
        self.events.end()?;
        self.metrics.write(&Record::Test(record.clone()))
    }

    /// The records so far.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn records(&self, folder: &RunFolder) -> Result<Vec<Record>> {
        read_records(&folder.metrics())
    }

    /// Redraws the run's curves.
    ///
    /// # Errors
    /// Returns an error if the picture cannot be written.
    pub fn draw_curves(&self, folder: &RunFolder) -> Result<()> {
        curves::draw(&folder.curves(), &self.records(folder)?)
    }

    /// The files' lengths, for the training state.
    ///
    /// # Errors
    /// Returns an error if a file cannot be synced to disk.
    pub fn positions(&self) -> Result<(u64, u64)> {
        Ok((self.metrics.position()?, self.events.position()?))
    }
}
