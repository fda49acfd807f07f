//! Statements about two images, true or false: NLVR2 (Suhr et al. 2019; Tan & Bansal 2019, §4).
//!
//! The sentence is read with each image by the same trunk, the two pooled outputs are laid side by side, and a head of its
//! own says "false" or "true"; the loss is the cross entropy of that. The head starts at random, whatever the checkpoint.

use super::losses::cross_entropy;
use super::questions::only_lxmert;
use super::{BatchLoss, CheckpointParts, Description, Step, Task, TaskKind, something, split_table};
use crate::config::Recipe;
use crate::data::batches::{self, Batch};
use crate::data::predictions::{statement_accuracy, write_judgements};
use crate::data::statements::StatementSet;
use crate::evaluate::Evaluation;
use crate::measures::Measures;
use crate::run_folder::{CheckpointFiles, Preprocessing, lacking_head, weights_file};
use crate::trainer::Job;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::checkpoint::{load_weights, names, read_tensors, take_weights};
use lxmert_core::cli::check_interrupt;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::PairModel;
use lxmert_core::ops::PackedWeights;
use lxmert_core::text::WordPiece;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn labelled(set: &StatementSet) -> Vec<usize> {
    (0..set.len()).filter(|&index| set.examples()[index].label.is_some()).collect()
}

fn label(set: &StatementSet, index: usize) -> u32 {
    u32::from(set.examples()[index].label == Some(true))
}

/// Judging statements.
pub struct Judging {
    store: FeatureStore,
    regions: usize,
    train: StatementSet,
    validation: StatementSet,
    test: StatementSet,
    learnt: Vec<usize>,
    config: LxmertConfig,
    model: PairModel,
    recipe: Recipe,
    device: Device,
}

/// A batch of training statements.
pub struct StatementBatch {
    statements: Vec<usize>,
    inputs: Batch,
}

impl Task for Judging {
    type Example = usize;
    type Batch = StatementBatch;

    fn new(job: &Job, text: &WordPiece, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let paths = job.data.examples()?;
        let store = FeatureStore::open(&paths.features)?;
        let text = (text, recipe.max_length);
        let read = |files: &[PathBuf]| StatementSet::read(files, &store, text, job.allow_missing_images);
        let (train, validation, test) = (read(&paths.train)?, read(&paths.valid)?, read(&paths.test)?);
        let learnt = labelled(&train);
        for (what, files, usable) in [
            ("train on", &paths.train, !learnt.is_empty()),
            ("validate on", &paths.valid, !labelled(&validation).is_empty()),
        ] {
            something(usable, files, || format!("no statement with a label to {what}"))?;
        }
        // Answers are for questions; this head has no place in the hub's configuration.
        let config = LxmertConfig { num_qa_labels: 0, ..recipe.model(store.info().feature_dim)? };
        only_lxmert(&config)?;
        let model = PairModel::new(&config, VarBuilder::from_varmap(variables, DType::F32, &job.device))?;
        let regions = recipe.regions_of(store.info().regions);
        let device = job.device.clone();
        Ok(Self { store, regions, train, validation, test, learnt, config, model, recipe, device })
    }

    fn starting_weights(&self, checkpoint: &Path) -> Result<BTreeMap<String, Tensor>> {
        let path = weights_file(checkpoint)?;
        let mut tensors = names::lxmert(&path, read_tensors(&path)?)?;
        let expected = PairModel::expected(&self.config)?;
        // A head over two images is taken over; one of another task, of another shape, is not.
        let shape_of = |name: &str| expected.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
        let same_head =
            (tensors.iter()).all(|(name, t)| !name.starts_with("answer_head.") || shape_of(name) == Some(t.dims()));
        if !same_head {
            tensors.retain(|name, _| !name.starts_with("answer_head."));
        }
        let fresh = [vec!["answer_head.*".into()], self.recipe.allow_missing.clone()].concat();
        Ok(take_weights(&path, tensors, &expected, &fresh)?)
    }

    fn introduction(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} training statements about two images, {} to validate, {} to test",
                self.learnt.len(),
                self.validation.len(),
                self.test.len()
            ),
            format!("{} regions of {} numbers", self.regions, self.store.info().feature_dim),
        ];
        let cut = self.train.truncated() + self.validation.truncated() + self.test.truncated();
        if cut > 0 {
            let longest = self.recipe.max_length;
            lines.push(format!("{cut} statements are longer than --max-length {longest} and were cut"));
        }
        lines
    }

    fn batches_per_epoch(&self) -> usize {
        self.learnt.len().div_ceil(self.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let Recipe { seed, batch_size, .. } = self.recipe;
        let order = batches::shuffled(&self.learnt, seed, epoch);
        batches::plan(&order, |&index| self.train.tokens(index).len(), batch_size, seed, epoch)
    }

    fn read(&self, statements: Vec<usize>) -> Result<StatementBatch> {
        Ok(StatementBatch { inputs: self.train.batch(&self.store, self.regions, &statements)?, statements })
    }

    fn loss(&self, batch: StatementBatch, step: &Step) -> Result<BatchLoss> {
        let logits = self.model.forward(&batch.inputs.inputs(step.device)?, &step.forward())?; // [statements, 2]
        let labels: Vec<u32> = batch.statements.iter().map(|&index| label(&self.train, index)).collect();
        let sum = cross_entropy(&logits, &labels)?.sum_all()?;
        let judged = logits.argmax(1)?.to_vec1::<u32>()?;
        Ok(BatchLoss {
            loss: (&sum / step.divisor.max(1) as f64)?,
            examples: labels.len(),
            sum: f64::from(sum.to_scalar::<f32>()?),
            right: (judged.iter().zip(&labels).filter(|(judged, label)| judged == label).count(), labels.len()),
            parts: Vec::new(),
        })
    }

    fn validate(&self) -> Result<Measures> {
        let (place, how) = ((&self.store, self.regions), Evaluation::of_run(&self.recipe, &self.device));
        measure(&self.model, &self.validation, place, how, &ProgressBar::hidden()).map(|(found, _)| found)
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures> {
        let best = open_model(&weights_file(folder)?, &self.config, &self.device)?;
        bar.set_length(self.test.len() as u64);
        let (place, how) = ((&self.store, self.regions), Evaluation::of_run(&self.recipe, &self.device));
        let (measures, judged) = measure(&best, &self.test, place, how, bar)?;
        write_predictions(predictions, &self.test, &judged)?;
        Ok(measures)
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            // No class of transformers has a head over two images. The trunk opens in this one, which finds every key of its
            // own and reports the head's six, `answer_head.logit_fc.{0,2,3}.{weight,bias}`, as unexpected.
            architecture: "LxmertModel",
            preprocessing: Preprocessing::of_run(&self.recipe, &self.store),
            answers: Vec::new(),
        }
    }

    fn description(&self) -> Description {
        Description {
            title: "statements about two images".into(),
            pipeline_tag: "visual-question-answering",
            does: "Says whether a statement about two images is true, from their regions and the statement's words. \
                   transformers' `LxmertModel` opens the trunk and reports `answer_head.logit_fc.*`, the head over two \
                   images for which it has no class, as unexpected."
                .into(),
            data: split_table("statements", [self.learnt.len(), self.validation.len(), self.test.len()]),
            losses: "Cross entropy of false and true.".into(),
        }
    }
}

/// A checkpoint that judges statements.
pub struct StatementCheckpoint {
    /// The model's configuration.
    pub config: LxmertConfig,
    /// How to put data before it.
    pub preprocessing: Preprocessing,
    /// Its tokeniser.
    pub text: WordPiece,
    /// The model.
    pub model: PairModel,
}

impl StatementCheckpoint {
    /// Reads a checkpoint; `place`: any form that [`Place::find`](lxmert_core::checkpoint::Place::find) takes.
    ///
    /// # Errors
    /// When a file is missing, or the weights are not such a model's.
    pub fn open(place: &Path, device: &Device) -> Result<Self> {
        let files = CheckpointFiles::open(place, TaskKind::Statements)?;
        let CheckpointFiles { place, config, preprocessing, text } = files;
        let model = open_model(&place.weights, &config, device).map_err(|error| {
            lacking_head(error, "answer_head.", "no head over two images; name a checkpoint of --task statements")
        })?;
        Ok(Self { model, config, preprocessing, text })
    }
}

/// The model whose weights were trained on statements.
///
/// # Errors
/// When the weights are not there or not this model's.
fn open_model(weights: &Path, config: &LxmertConfig, device: &Device) -> Result<PairModel> {
    let weights: HashMap<String, Tensor> = load_weights(weights, &PairModel::expected(config)?, &[])?
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_device(device)?)))
        .collect::<Result<_>>()?;
    Ok(PairModel::new(config, VarBuilder::from_tensors(weights, DType::F32, device))?)
}

/// Measures over a set of statements, and the judgement of each. `place`: the store, and regions per image.
///
/// # Errors
/// When the data does not fit the model, or Ctrl-C was pressed.
pub fn measure(
    model: &PairModel,
    set: &StatementSet,
    place: (&FeatureStore, usize),
    how: Evaluation,
    bar: &ProgressBar,
) -> Result<(Measures, Vec<bool>)> {
    let all: Vec<usize> = (0..set.len()).collect();
    let order = batches::plan_in_order(&all, |&i| set.tokens(i).len(), how.batch_size);
    let mut judged = vec![false; set.len()];
    let mut loss = 0.0;
    let packed = PackedWeights::new();
    let run = how.forward(&packed);
    batches::for_each(
        order.into_iter(),
        |statements| Ok((set.batch(place.0, place.1, &statements)?, statements)),
        |(inputs, statements)| {
            check_interrupt()?;
            let logits = model.forward(&inputs.inputs(how.device)?, &run)?;
            let labels: Vec<u32> = statements.iter().map(|&index| label(set, index)).collect();
            let losses = cross_entropy(&logits, &labels)?.to_vec1::<f32>()?;
            let judgements = logits.argmax(1)?.to_vec1::<u32>()?;
            for ((&index, judgement), value) in statements.iter().zip(judgements).zip(losses) {
                judged[index] = judgement == 1;
                if set.examples()[index].label.is_some() {
                    loss += f64::from(value);
                }
            }
            bar.inc(statements.len() as u64);
            Ok(true)
        },
    )?;
    let found = statement_accuracy(set.examples(), judged.iter().copied());
    let mut measures = Measures::default();
    measures.set("all", "statements", set.len() as f64);
    if found.accuracy.count > 0 {
        let (accuracy, consistency) = (found.accuracy.mean(), found.consistency.mean());
        let loss = loss / found.accuracy.count as f64;
        measures.extend("all", [("accuracy", accuracy), ("consistency", consistency), ("loss", loss)]);
    }
    Ok((measures, judged))
}

/// Writes what NLVR2's evaluation takes into `folder`: `nlvr2.csv`. Nothing for no statement.
///
/// # Errors
/// When the file cannot be written.
pub fn write_predictions(folder: &Path, set: &StatementSet, judged: &[bool]) -> Result<()> {
    if set.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let identifiers = set.examples().iter().map(|statement| statement.identifier.as_str());
    write_judgements(&folder.join("nlvr2.csv"), identifiers.zip(judged.iter().copied()))
}
