//! Questions about an image: VQA and GQA (Tan & Bansal 2019, §4).
//!
//! Every answer of the table is a yes or no of its own: the loss of a question is the binary cross entropy of each
//! answer's logit with its score, summed over the answers (the original's mean times their number). With `--answer-loss
//! one`, which suits GQA's single answers, it is the cross entropy with the best answer, times the number of answers (the
//! original's `--mceLoss`). The model's answer is the one of the largest logit.

use super::losses::{binary_cross_entropy, cross_entropy};
use super::{BatchLoss, CheckpointParts, Description, Step, Task, something, split_table};
use crate::config::{AnswerLoss, Recipe};
use crate::data::answers::AnswerTable;
use crate::data::batches::{self, Batch};
use crate::data::paths::ExamplePaths;
use crate::data::predictions::{AnswerFile, answer_accuracy, write_answers};
use crate::data::question_set::QuestionSet;
use crate::data::questions::{AnswerType, QuestionId};
use crate::evaluate::Evaluation;
use crate::measures::Measures;
use crate::run_folder::{Preprocessing, weights_file};
use crate::trainer::Job;
use crate::{Error, Result, answering};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::cli::check_interrupt;
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::features::FeatureStore;
use lxmert_core::model::AnswerModel;
use lxmert_core::ops::PackedWeights;
use lxmert_core::text::WordPiece;
use std::collections::BTreeMap;
use std::path::Path;

/// Answering questions.
pub struct Answering {
    store: FeatureStore,
    regions: usize,
    answers: AnswerTable,
    train: QuestionSet,
    validation: QuestionSet,
    test: QuestionSet,
    /// Questions to learn from: those whose answers are known (and, for a single best answer, in the table).
    learnt: Vec<usize>,
    config: LxmertConfig,
    model: AnswerModel,
    recipe: Recipe,
    device: Device,
}

/// A batch of training questions.
pub struct QuestionBatch {
    questions: Vec<usize>,
    inputs: Batch,
}

impl Task for Answering {
    type Example = usize;
    type Batch = QuestionBatch;

    fn new(job: &Job, text: &WordPiece, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let paths = job.data.examples()?;
        let answers = answer_table(paths)?;
        let store = FeatureStore::open(&paths.features)?;
        let read = |files| {
            let text = (text, recipe.max_length);
            QuestionSet::read(files, &store, &answers, text, job.allow_missing_images)
        };
        let (train, validation, test) = (read(&paths.train)?, read(&paths.valid)?, read(&paths.test)?);
        let known = |set: &QuestionSet, i: usize| set.examples()[i].scores.is_some();
        let one = recipe.answer_loss == AnswerLoss::One;
        let learnt: Vec<usize> =
            (0..train.len()).filter(|&i| known(&train, i) && !(one && train.target(i).is_empty())).collect();
        for (what, files, usable) in [
            ("train on", &paths.train, !learnt.is_empty()),
            ("validate on", &paths.valid, (0..validation.len()).any(|i| known(&validation, i))),
        ] {
            something(usable, files, || format!("no question with an answer to {what}"))?;
        }
        let config = LxmertConfig { num_qa_labels: answers.len(), ..recipe.model(store.info().feature_dim)? };
        only_lxmert(&config)?;
        let model = AnswerModel::new(&config, VarBuilder::from_varmap(variables, DType::F32, &job.device))?;
        let regions = recipe.regions_of(store.info().regions);
        let device = job.device.clone();
        Ok(Self { store, regions, answers, train, validation, test, learnt, config, model, recipe, device })
    }

    fn starting_weights(&self, checkpoint: &Path) -> Result<BTreeMap<String, Tensor>> {
        let (weights, matched) = answering::starting_weights(
            &weights_file(checkpoint)?,
            &self.config,
            &self.answers,
            &self.recipe.allow_missing,
        )?;
        match matched {
            Some(matched) => log::info!("{matched} of {} answers start from the checkpoint's", self.answers.len()),
            None => log::info!("the answer head starts from random weights"),
        }
        Ok(weights)
    }

    fn introduction(&self) -> Vec<String> {
        let without = (self.learnt.iter()).filter(|&&question| self.train.target(question).is_empty()).count();
        let mut lines = vec![
            format!(
                "{} training questions about {} images, {} to validate, {} to test; {} answers",
                self.learnt.len(),
                self.train.num_images(),
                self.validation.len(),
                self.test.len(),
                self.answers.len()
            ),
            format!("{} regions of {} numbers", self.regions, self.store.info().feature_dim),
        ];
        if without > 0 {
            lines.push(format!("{without} training questions have no answer of the table"));
        }
        let cut = self.train.truncated() + self.validation.truncated() + self.test.truncated();
        if cut > 0 {
            lines.push(format!("{cut} questions are longer than --max-length {} and were cut", self.recipe.max_length));
        }
        lines
    }

    fn batches_per_epoch(&self) -> usize {
        self.learnt.len().div_ceil(self.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let Recipe { seed, batch_size, .. } = self.recipe;
        let order = batches::shuffled(&self.learnt, seed, epoch);
        batches::plan(&order, |&question| self.train.tokens(question).len(), batch_size, seed, epoch)
    }

    fn read(&self, questions: Vec<usize>) -> Result<QuestionBatch> {
        Ok(QuestionBatch { inputs: self.train.batch(&self.store, self.regions, &questions)?, questions })
    }

    fn loss(&self, batch: QuestionBatch, step: &Step) -> Result<BatchLoss> {
        let logits = self.model.forward(&batch.inputs.inputs(step.device)?, &step.forward())?.logits;
        let targets: Vec<&[(u32, f32)]> = batch.questions.iter().map(|&i| self.train.target(i)).collect();
        let losses = answer_losses(&logits, &targets, self.recipe.answer_loss, step.device)?;
        let sum = losses.sum_all()?;
        let mut right = 0;
        for (label, target) in largest(&logits)?.into_iter().zip(&targets) {
            right += usize::from(best(target).is_some_and(|(_, most)| score(target, label) >= most));
        }
        Ok(BatchLoss {
            loss: (&sum / step.divisor.max(1) as f64)?,
            examples: batch.questions.len(),
            sum: f64::from(sum.to_scalar::<f32>()?),
            right: (right, batch.questions.len()),
            parts: Vec::new(),
        })
    }

    fn validate(&self) -> Result<Measures> {
        let (place, how) = ((&self.store, self.regions), Evaluation::of_run(&self.recipe, &self.device));
        measure(&self.model, &self.answers, &self.validation, place, how, &ProgressBar::hidden())
            .map(|(found, _)| found)
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures> {
        let best = answering::AnswerCheckpoint::open(folder, &self.device)?;
        bar.set_length(self.test.len() as u64);
        let (place, how) = ((&self.store, self.regions), Evaluation::of_run(&self.recipe, &self.device));
        let (measures, labels) = measure(&best.model, &self.answers, &self.test, place, how, bar)?;
        write_predictions(predictions, &self.answers, &self.test, &labels)?;
        Ok(measures)
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            architecture: "LxmertForQuestionAnswering",
            preprocessing: Preprocessing::of_run(&self.recipe, &self.store),
            answers: self.answers.answers().to_vec(),
        }
    }

    fn description(&self) -> Description {
        let losses = match self.recipe.answer_loss {
            AnswerLoss::Scores => "Binary cross entropy of every answer with its score, summed over the answers.",
            AnswerLoss::One => "Cross entropy with the best answer, times the number of answers.",
        };
        Description {
            title: "visual question answering".into(),
            pipeline_tag: "visual-question-answering",
            does: format!(
                "Answers a question about an image with one of {} answers, from the image's regions and the question's words.",
                self.answers.len()
            ),
            data: split_table("questions", [self.learnt.len(), self.validation.len(), self.test.len()]),
            losses: losses.into(),
        }
    }
}

/// Measures over a set of questions, and the label of each question's answer. `place`: the store, and regions per image.
///
/// # Errors
/// When the data does not fit the model, or Ctrl-C was pressed.
pub fn measure(
    model: &AnswerModel,
    answers: &AnswerTable,
    set: &QuestionSet,
    place: (&FeatureStore, usize),
    how: Evaluation,
    bar: &ProgressBar,
) -> Result<(Measures, Vec<u32>)> {
    let all: Vec<usize> = (0..set.len()).collect();
    let order = batches::plan_in_order(&all, |&i| set.tokens(i).len(), how.batch_size);
    let mut labels = vec![0u32; set.len()];
    let (mut loss, mut counted) = (0.0, 0usize);
    let packed = PackedWeights::new();
    let run = how.forward(&packed);
    batches::for_each(
        order.into_iter(),
        |questions| Ok((set.batch(place.0, place.1, &questions)?, questions)),
        |(inputs, questions)| {
            check_interrupt()?;
            let logits = model.forward(&inputs.inputs(how.device)?, &run)?.logits;
            for (&question, label) in questions.iter().zip(largest(&logits)?) {
                labels[question] = label;
            }
            let targets: Vec<&[(u32, f32)]> = questions.iter().map(|&i| set.target(i)).collect();
            let losses = answer_losses(&logits, &targets, AnswerLoss::Scores, how.device)?.to_vec1::<f32>()?;
            for (question, value) in questions.iter().zip(losses) {
                if set.examples()[*question].scores.is_some() {
                    loss += f64::from(value);
                    counted += 1;
                }
            }
            bar.inc(questions.len() as u64);
            Ok(true)
        },
    )?;
    let accuracy = answer_accuracy(set.examples(), labels.iter().map(|&label| answers.answer(label).unwrap_or("")));
    let mut measures = Measures::default();
    measures.set("all", "questions", set.len() as f64);
    if counted > 0 {
        measures.set("all", "accuracy", accuracy.overall.mean());
        measures.set("all", "loss", loss / counted as f64);
    }
    for (kind, score) in accuracy.by_type {
        // A set's name has no stroke: `set/measure` is how `--metric` names one.
        let name = if kind == AnswerType::YesNo { "yes-no" } else { kind.name() };
        measures.extend(name, [("questions", score.count as f64), ("accuracy", score.mean())]);
    }
    Ok((measures, labels))
}

/// Writes what the benchmark's server takes into `folder`: `vqa.json` where the questions' ids are numbers, else
/// `gqa.json`. Nothing for no question.
///
/// # Errors
/// When the file cannot be written.
pub fn write_predictions(folder: &Path, answers: &AnswerTable, set: &QuestionSet, labels: &[u32]) -> Result<()> {
    if set.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let vqa = set.examples().iter().all(|question| matches!(question.id, QuestionId::Number(_)));
    let (name, form) = if vqa { ("vqa.json", AnswerFile::Vqa) } else { ("gqa.json", AnswerFile::Gqa) };
    let words = labels.iter().map(|&label| answers.answer(label).unwrap_or(""));
    write_answers(&folder.join(name), form, set.examples().iter().map(|question| &question.id).zip(words))
}

/// The answer table that a data set names.
fn answer_table(paths: &ExamplePaths) -> Result<AnswerTable> {
    match &paths.answers {
        Some(path) => Ok(AnswerTable::read(path)?),
        None => Err(Error::Argument(
            "questions need the table of answers to choose from; name it by --answers, such as data/answers/vqa.json or data/answers/gqa.json".into(),
        )),
    }
}

/// The student project's variant has a matching head alone.
pub(super) fn only_lxmert(config: &LxmertConfig) -> Result<()> {
    match config.cross_layer {
        CrossLayer::Lxmert => Ok(()),
        CrossLayer::Student => Err(Error::Argument("--cross-layer student: that variant is for matching alone".into())),
    }
}

/// The loss of each question, `[batch]`. `logits`: `[batch, answers]`; a question without a target has, by its best answer,
/// no loss, and by scores that of "none of them".
fn answer_losses(logits: &Tensor, targets: &[&[(u32, f32)]], loss: AnswerLoss, device: &Device) -> Result<Tensor> {
    let (batch, answers) = logits.dims2()?;
    match loss {
        AnswerLoss::Scores => {
            let mut scores = vec![0f32; batch * answers];
            for (row, target) in targets.iter().enumerate() {
                for &(label, score) in *target {
                    scores[row * answers + label as usize] = score;
                }
            }
            let scores = Tensor::from_vec(scores, (batch, answers), device)?;
            Ok(binary_cross_entropy(logits, &scores)?.sum(1)?)
        }
        AnswerLoss::One => {
            let labels: Vec<u32> = targets.iter().map(|target| best(target).map_or(0, |(label, _)| label)).collect();
            let weights: Vec<f32> =
                targets.iter().map(|target| if target.is_empty() { 0.0 } else { answers as f32 }).collect();
            Ok((cross_entropy(logits, &labels)? * Tensor::from_vec(weights, batch, device)?)?)
        }
    }
}

/// The first answer of the largest score.
fn best(target: &[(u32, f32)]) -> Option<(u32, f32)> {
    target.iter().copied().reduce(|best, next| if next.1 > best.1 { next } else { best })
}

fn score(target: &[(u32, f32)], label: u32) -> f32 {
    target.iter().find(|(known, _)| *known == label).map_or(0.0, |(_, score)| *score)
}

/// The label of the largest logit of each row.
fn largest(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.argmax(1)?.to_vec1::<u32>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_the_original_s() {
        let device = Device::Cpu;
        let logits = Tensor::new(&[[0.5f32, -1.0, 2.0], [0.0, 3.0, -2.0]], &device).unwrap();
        let targets: [&[(u32, f32)]; 2] = [&[(0, 0.3), (2, 0.9)], &[]];
        let bce = |x: f64, y: f64| x.max(0.0) - x * y + (1.0 + (-x.abs()).exp()).ln();
        let got: Vec<f32> = answer_losses(&logits, &targets, AnswerLoss::Scores, &device).unwrap().to_vec1().unwrap();
        let want = [bce(0.5, 0.3) + bce(-1.0, 0.0) + bce(2.0, 0.9), bce(0.0, 0.0) + bce(3.0, 0.0) + bce(-2.0, 0.0)];
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-5), "{got:?} {want:?}");
        let got: Vec<f32> = answer_losses(&logits, &targets, AnswerLoss::One, &device).unwrap().to_vec1().unwrap();
        let normaliser = (0.5f64.exp() + (-1f64).exp() + 2f64.exp()).ln();
        assert!((f64::from(got[0]) - 3.0 * (normaliser - 2.0)).abs() < 1e-5 && got[1] == 0.0, "{got:?}");
    }

    #[test]
    fn the_best_answer_is_the_first_of_the_largest_score() {
        assert_eq!(best(&[(1, 0.6), (4, 0.9), (7, 0.9)]), Some((4, 0.9)));
        assert_eq!(best(&[]), None);
    }
}
