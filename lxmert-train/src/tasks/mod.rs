//! The tasks that a model can be trained for: one file per task, each a [`Task`], and one [`registry`] of them.
//!
//! To add a task, write its file here and its reader under [`data`](crate::data), and add a line to
//! [`registry::TASKS`]. The command line, the training loop and the logs find it there.

pub mod alignment;
pub mod entailment;
pub mod examples;
pub mod masked_words;
pub mod matching;
pub mod pretraining;
pub mod questions;
pub mod referring;
pub mod registry;
pub mod retrieval;
pub mod statements;

pub use lxmert_core::losses;

use crate::data::paths::Data;
use crate::data::splits::Split;
use crate::evaluate::Evaluation;
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::readings::{BatchLoss, Unread};
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::run_folder::CheckpointParts;
use crate::sums::Seen;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use indicatif::ProgressBar;
use lxmert_core::model::Pass;
use lxmert_core::ops::{DropoutRng, Precision};
use lxmert_core::pretrained::Pretrained;
use std::collections::BTreeMap;
use std::path::Path;

/// The kind of data that a task reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Captioned images.
    Captions,
    /// Files of examples. The string is the prefix of the scenes' own files (see
    /// [`ExamplePaths::scenes`](crate::data::paths::ExamplePaths::scenes)).
    Examples(&'static str),
    /// Captioned images if they are given, otherwise files of examples.
    Either(&'static str),
}

impl Reads {
    /// The prefix, if the task reads files of examples when no captioned images are given.
    pub fn stem(self) -> Option<&'static str> {
        match self {
            Self::Captions => None,
            Self::Examples(stem) | Self::Either(stem) => Some(stem),
        }
    }
}

/// One training step's context.
#[derive(Debug)]
pub struct Step<'a> {
    /// Number of the batch in the whole run, from 0; with the seed it determines the masks.
    pub number: u64,
    /// Number of examples in the whole optimiser step. Losses are sums over the batch divided by it, so that
    /// accumulated batches are weighted by size.
    pub divisor: usize,
    /// The device to compute on.
    pub device: &'a Device,
    dropout: Option<DropoutRng>,
    precision: Precision,
}

impl<'a> Step<'a> {
    /// Batch `number` of a run by this recipe.
    pub fn new(number: u64, divisor: usize, recipe: &Recipe, device: &'a Device) -> Self {
        let dropout = (recipe.dropout > 0.0).then(|| DropoutRng::new(recipe.seed, number));
        Self { number, divisor, device, dropout, precision: recipe.precision }
    }

    /// How to run the model.
    pub fn forward(&self) -> Pass<'_> {
        self.dropout.as_ref().map_or_else(Pass::eval, Pass::train).with_precision(self.precision)
    }

    /// A batch's loss from the sum over its examples, a scalar, of which as many were predicted correctly as `right` finds in `said`.
    ///
    /// # Errors
    /// Returns an error if the device is out of memory.
    pub fn loss<'b>(
        &self,
        sum: &Tensor,
        examples: usize,
        said: &Tensor,
        right: impl FnOnce(&[f32]) -> usize + 'b,
    ) -> Result<BatchLoss<'b>> {
        let seen = move |numbers: &[f32]| Seen {
            examples,
            sum: f64::from(numbers[0]),
            right: (right(&numbers[1..]), examples),
            parts: Vec::new(),
        };
        Ok(BatchLoss { loss: (sum / self.divisor.max(1) as f64)?, unread: Unread::new(&[sum, said], seen) })
    }
}

/// A checkpoint to measure on a split, outside a run.
#[derive(Debug)]
pub struct Exam<'a> {
    /// The checkpoint, in any form that [`Place::find`](lxmert_core::checkpoint::Place::find) accepts.
    pub checkpoint: &'a Path,
    /// The data with its splits.
    pub data: &'a Data,
    /// The split that is measured.
    pub split: Split,
    /// How to run the model.
    pub how: Evaluation<'a>,
    /// Whether any number of images may lack features.
    pub allow_missing_images: bool,
    /// Seed of the split, if the data does not define one.
    pub seed: u64,
    /// Number of test images in retrieval; 0 to omit it.
    pub recall_images: usize,
    /// The folder for predictions, if wanted.
    pub predictions: Option<&'a Path>,
    /// A file for a line per example, if wanted; see [`per_example`](crate::data::per_example).
    pub per_example: Option<&'a Path>,
    /// Advances with each example.
    pub bar: &'a ProgressBar,
}

/// What a test found.
#[derive(Debug, Clone, Default)]
pub struct Tested {
    /// The measures.
    pub measures: Measures,
    /// Seconds that ranking images and captions took, where it did.
    pub retrieval_seconds: f64,
}

impl From<Measures> for Tested {
    fn from(measures: Measures) -> Self {
        Self { measures, retrieval_seconds: 0.0 }
    }
}

/// One kind of training: examples in, losses and measures out. The loop ([`trainer`](crate::trainer)) owns the
/// optimiser, the schedule and every file; a task owns its data and its model.
pub trait Task: Sync + Sized {
    /// Its name for `--task`.
    const NAME: &'static str;
    /// A one-line description for the help.
    const ABOUT: &'static str;
    /// The data that it reads.
    const READS: Reads;
    /// Its recipes for `--recipe`.
    const RECIPES: &'static [NamedRecipe] = &[];

    /// One training example.
    type Example: Copy + Send + Sync;
    /// A batch, read from the store.
    type Batch: Send;

    /// The default recipe for a run on such data.
    fn recipe(suits: Suits) -> Recipe;

    /// Measures a checkpoint on a split. Prediction files for the benchmark's server go into [`Exam::predictions`].
    ///
    /// # Errors
    /// Returns an error if the checkpoint has no head for this task, the data does not fit it, or Ctrl-C was pressed.
    fn evaluate(exam: &Exam) -> Result<Measures>;

    /// Loads the data and builds the model with its variables in `variables` (their values are set afterwards).
    ///
    /// # Errors
    /// Returns an error if the data is unusable.
    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self>;

    /// The initial weights from `checkpoint`. Those of a new head may be missing.
    ///
    /// # Errors
    /// Returns an error with every mismatched name if the checkpoint does not fit.
    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>>;

    /// Notes for the user at the start, one per line.
    fn introduction(&self) -> Vec<String>;

    /// Training batches per epoch.
    fn batches_per_epoch(&self) -> usize;

    /// The batches of an epoch, a function of the seed and the epoch only.
    fn epoch(&self, epoch: u64) -> Vec<Vec<Self::Example>>;

    /// Reads a batch; called ahead of need on a separate thread.
    ///
    /// # Errors
    /// Returns an error if the store is damaged.
    fn read(&self, examples: Vec<Self::Example>) -> Result<Self::Batch>;

    /// The loss of a batch.
    ///
    /// # Errors
    /// Returns an error if the batch does not fit the model.
    fn loss(&self, batch: Self::Batch, step: &Step) -> Result<BatchLoss<'_>>;

    /// Measures on the validation split, without dropout.
    ///
    /// # Errors
    /// Returns an error if the data does not fit, or Ctrl-C was pressed.
    fn validate(&self) -> Result<Measures>;

    /// Measures the run's checkpoint in `folder` on the test split and advances `bar` with each example. Predictions go
    /// into the folder `predictions`.
    ///
    /// # Errors
    /// See [`Task::validate`].
    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Tested>;

    /// The parts of a checkpoint other than the weights.
    fn checkpoint(&self) -> CheckpointParts;

    /// The text of the model card.
    fn description(&self) -> Description;
}

/// Fewer examples than this say little about a model.
const FEW: usize = 30;

/// Warns that a measure is of few examples, and counts those that are right.
fn warn_of_few(what: &str, (right, count): (usize, usize)) {
    if (1..FEW).contains(&count) {
        log::warn!("{what}: {right} of {count} right; a measure of fewer than {FEW} says little");
    }
}

/// Rejects predictions in an [`Exam`] of a task for which no server takes them.
fn refuse_predictions(exam: &Exam, task: &str) -> Result<()> {
    match exam.predictions {
        None => Ok(()),
        Some(_) => Err(Error::Argument(format!("--predictions: --task {task} has no prediction file"))),
    }
}
