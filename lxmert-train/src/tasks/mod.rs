//! What a model is trained to do; one file per task, each a [`Task`] that the one training loop
//! ([`trainer`](crate::trainer)) runs.

pub mod alignment;
pub mod losses;
pub mod masked_words;
pub mod matching;
pub mod pretraining;
pub mod questions;
pub mod retrieval;
pub mod statements;

use crate::config::Recipe;
use crate::measures::Measures;
use crate::run_folder::Preprocessing;
use crate::trainer::Job;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use indicatif::ProgressBar;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::Forward;
use lxmert_core::ops::{DropoutRng, Precision};
use lxmert_core::text::WordPiece;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tasks, as `--task` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// Does the sentence describe the image? Measured by accuracy and retrieval.
    Matching,
    /// Which of four pairs is the true one? Measured as matching is.
    Retrieval,
    /// The paper's pre-training: masked words and objects, matching, image question answering.
    Pretraining,
    /// Answers to questions: VQA, GQA. Measured by accuracy, by kind of answer where the data says it.
    Questions,
    /// Is a statement about two images true? NLVR2. Measured by accuracy and consistency.
    Statements,
}

impl std::fmt::Display for TaskKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
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
    pub fn forward(&self) -> Forward<'_> {
        self.dropout.as_ref().map_or_else(Forward::eval, Forward::train).with_precision(self.precision)
    }
}

/// What one batch gave.
#[derive(Debug)]
pub struct BatchLoss {
    /// To differentiate: the batch's summed losses over [`Step::divisor`].
    pub loss: Tensor,
    /// Examples in the batch.
    pub examples: usize,
    /// Sum over the examples of the loss that the log shows, in f64.
    pub sum: f64,
    /// Examples that were judged right, and how many were judged.
    pub right: (usize, usize),
    /// The losses that make up the whole, where there are several.
    pub parts: Vec<Part>,
}

/// One of the losses of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Its mean over the batch, before its weight.
    pub loss: f64,
    /// Guesses that were right, and how many there were; 0 where it has none to count.
    pub right: (usize, usize),
}

/// What is said of the data and the task in the model card.
#[derive(Debug, Clone)]
pub struct Description {
    /// `image-text matching on scenes`.
    pub title: String,
    /// The hub's `pipeline_tag`.
    pub pipeline_tag: &'static str,
    /// One sentence on what the model does.
    pub does: String,
    /// Markdown: sizes of the splits, how examples are drawn.
    pub data: String,
    /// Markdown: the losses and their weights; may be empty.
    pub losses: String,
}

/// What a checkpoint of this task holds besides the weights.
#[derive(Debug, Clone)]
pub struct CheckpointParts {
    /// The model's configuration.
    pub config: LxmertConfig,
    /// The name of the class that opens it in transformers.
    pub architecture: &'static str,
    /// How to put data before the model.
    pub preprocessing: Preprocessing,
    /// The answers of its answer head, by class; empty where it has none.
    pub answers: Vec<String>,
}

/// Refuses example files that hold nothing of use, naming the first.
fn something(there: bool, files: &[PathBuf], lacking: impl FnOnce() -> String) -> Result<()> {
    if there {
        return Ok(());
    }
    Err(Error::file(files.first().map_or(Path::new("no file"), PathBuf::as_path), lacking()))
}

/// The sizes of training, validation and test split as a Markdown table.
fn split_table(what: &str, counts: [usize; 3]) -> String {
    let [train, validation, test] = counts;
    format!(
        "| split | {what} |\n| --- | ---: |\n| train | {train} |\n| validation | {validation} |\n| test | {test} |\n"
    )
}

/// One kind of training: examples in, losses and measures out. The loop owns the optimiser, the order of things and
/// every file; a task owns its data and its model.
pub trait Task: Sync + Sized {
    /// One training example.
    type Example: Copy + Send + Sync;
    /// A batch, read from the store.
    type Batch: Send;

    /// Loads the data and makes the model, whose variables go into `variables` (their values are set afterwards).
    ///
    /// # Errors
    /// When the data cannot be used.
    fn new(job: &Job, text: &WordPiece, variables: &VarMap) -> Result<Self>;

    /// The weights to start from out of `checkpoint`; what a new head needs may be missing.
    ///
    /// # Errors
    /// When the checkpoint does not fit, with every name that does not.
    fn starting_weights(&self, checkpoint: &Path) -> Result<BTreeMap<String, Tensor>>;

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

    /// Measures of the checkpoint in `folder` on the test split, with `bar` moved on example by example. What a
    /// benchmark's server takes is written into the folder `predictions`.
    ///
    /// # Errors
    /// As [`Task::validate`].
    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures>;

    /// What a checkpoint holds besides the weights.
    fn checkpoint(&self) -> CheckpointParts;

    /// What the model card says.
    fn description(&self) -> Description;
}
