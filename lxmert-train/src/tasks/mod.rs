//! What a model is trained to do: one file per task, each a [`Task`], and one [`registry`] of them.
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
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::run_folder::CheckpointParts;
use crate::sums::BatchLoss;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use indicatif::ProgressBar;
use lxmert_core::model::Pass;
use lxmert_core::ops::{DropoutRng, Precision};
use lxmert_core::pretrained::Pretrained;
use std::collections::BTreeMap;
use std::path::Path;

/// The data that a task reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Captioned images.
    Captions,
    /// Files of examples. The stem is what the scenes' own files start with (see [`ExamplePaths::scenes`](crate::data::paths::ExamplePaths::scenes)).
    Examples(&'static str),
    /// Captioned images where they are named, else files of examples.
    Either(&'static str),
}

impl Reads {
    /// Whether it is files of examples, when no captioned images are named.
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
    /// Number of the batch in the whole run, from 0: what masks are drawn from, besides the seed.
    pub number: u64,
    /// Examples of the whole optimiser step: losses are sums over the batch divided by it, so that accumulated
    /// batches weigh by their size.
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

    /// A batch's loss out of the sum over its examples: `right` of them were judged right.
    ///
    /// # Errors
    /// When the sum is no scalar.
    pub fn loss(&self, sum: &Tensor, examples: usize, right: usize) -> Result<BatchLoss> {
        Ok(BatchLoss {
            loss: (sum / self.divisor.max(1) as f64)?,
            examples,
            sum: f64::from(sum.to_scalar::<f32>()?),
            right: (right, examples),
            parts: Vec::new(),
        })
    }
}

/// A checkpoint to be measured on a split, outside of a run.
#[derive(Debug)]
pub struct Exam<'a> {
    /// The checkpoint, in any form that [`Place::find`](lxmert_core::checkpoint::Place::find) takes.
    pub checkpoint: &'a Path,
    /// Where the splits lie.
    pub data: &'a Data,
    /// The split that is measured.
    pub split: Split,
    /// How to run the model.
    pub how: Evaluation<'a>,
    /// Whether any number of images may lack features.
    pub allow_missing_images: bool,
    /// Seed of the split, where the data brings none.
    pub seed: u64,
    /// Test images that take part in retrieval; 0 leaves it out.
    pub recall_images: usize,
    /// The folder for predictions, if they are wanted.
    pub predictions: Option<&'a Path>,
    /// A file for a line an example, if it is wanted; see [`per_example`](crate::data::per_example).
    pub per_example: Option<&'a Path>,
    /// Moved on example by example.
    pub bar: &'a ProgressBar,
}

/// One kind of training: examples in, losses and measures out. The loop ([`trainer`](crate::trainer)) owns the optimiser,
/// the order of things and every file; a task owns its data and its model.
pub trait Task: Sync + Sized {
    /// As `--task` names it.
    const NAME: &'static str;
    /// What it is, in a line of the help.
    const ABOUT: &'static str;
    /// The data that it reads.
    const READS: Reads;
    /// Its recipes that `--recipe` names.
    const RECIPES: &'static [NamedRecipe] = &[];

    /// One training example.
    type Example: Copy + Send + Sync;
    /// A batch, read from the store.
    type Batch: Send;

    /// The recipe that a run on such data starts from.
    fn recipe(suits: Suits) -> Recipe;

    /// Measures of a checkpoint on a split. What a benchmark's server takes is written where [`Exam::predictions`]
    /// says.
    ///
    /// # Errors
    /// When the checkpoint has no head for this task, the data does not fit it, or Ctrl-C was pressed.
    fn evaluate(exam: &Exam) -> Result<Measures>;

    /// Loads the data and makes the model, whose variables go into `variables` (their values are set afterwards).
    ///
    /// # Errors
    /// When the data cannot be used.
    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self>;

    /// The weights to start from out of `checkpoint`. Those of a new head may be missing.
    ///
    /// # Errors
    /// When the checkpoint does not fit, with every name that does not.
    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>>;

    /// What a user should know at the start, a line each.
    fn introduction(&self) -> Vec<String>;

    /// Training batches per epoch.
    fn batches_per_epoch(&self) -> usize;

    /// The batches of an epoch, a function of the seed and the epoch alone.
    fn epoch(&self, epoch: u64) -> Vec<Vec<Self::Example>>;

    /// Reads a batch; called on a thread of its own, ahead of need.
    ///
    /// # Errors
    /// When the store is damaged.
    fn read(&self, examples: Vec<Self::Example>) -> Result<Self::Batch>;

    /// The loss of a batch.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    fn loss(&self, batch: Self::Batch, step: &Step) -> Result<BatchLoss>;

    /// Measures on the validation split, without dropout.
    ///
    /// # Errors
    /// When the data does not fit, or Ctrl-C was pressed.
    fn validate(&self) -> Result<Measures>;

    /// Measures of the run's checkpoint in `folder` on the test split, with `bar` moved on example by example. Predictions
    /// go into the folder `predictions`.
    ///
    /// # Errors
    /// As [`Task::validate`].
    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures>;

    /// What a checkpoint holds besides the weights.
    fn checkpoint(&self) -> CheckpointParts;

    /// What the model card says.
    fn description(&self) -> Description;
}

/// Refuses an [`Exam`] of a task that has nothing to predict for a server.
fn refuse_predictions(exam: &Exam, task: &str) -> Result<()> {
    match exam.predictions {
        None => Ok(()),
        Some(_) => Err(Error::Argument(format!("--predictions: no server takes predictions of --task {task}"))),
    }
}
