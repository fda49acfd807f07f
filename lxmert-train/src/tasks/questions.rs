//! Questions about an image: VQA and GQA (Tan & Bansal 2019, §4).
//!
//! Every answer of the table is a yes or no of its own: the loss of a question is the binary cross entropy of each
//! answer's logit with its score, summed over the answers (the original's mean times their number). With `--answer-loss
//! one`, which suits GQA's single answers, it is the cross entropy with the best answer, times the number of answers (the
//! original's `--mceLoss`). The model's answer is the one of the largest logit.

use super::examples::{ExampleBatch, ExampleSplits, judge_all};
use super::losses::{binary_cross_entropy, cross_entropy};
use super::{Exam, Reads, Step, Task};
use crate::answering;
use crate::data::image_examples::ImageExamples;
use crate::data::paths::ExamplePaths;
use crate::data::predictions::{AnswerFile, answer_accuracy, write_answers};
use crate::data::questions::{AnswerType, Question, QuestionId};
use crate::evaluate::Evaluation;
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::ranks::world;
use crate::recipe::{AnswerLoss, NamedRecipe, Recipe, Suits};
use crate::run_folder::{CheckpointParts, open_checkpoint};
use crate::sums::BatchLoss;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::answering::Answerer;
use lxmert_core::answers::{AnswerTable, SoftLabel};
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::AnswerModel;
use lxmert_core::ops::PrepackedWeights;
use lxmert_core::pretrained::Pretrained;
use std::collections::BTreeMap;
use std::path::Path;

/// The questions of a split.
type QuestionSet = ImageExamples<Question, 1>;

/// Answering questions.
pub struct Questions {
    data: ExampleSplits<Question, 1>,
    answers: AnswerTable,
    config: LxmertConfig,
    model: AnswerModel,
    recipe: Recipe,
    device: Device,
}

impl Task for Questions {
    const NAME: &'static str = "questions";
    const ABOUT: &'static str =
        "Answers to questions: VQA, GQA. Measured by accuracy, by kind of answer where the data says it";
    const READS: Reads = Reads::Examples("questions");
    const RECIPES: &'static [NamedRecipe] = &[
        NamedRecipe {
            name: "paper-vqa",
            about: "The original's VQA: 4 epochs of batches of 32 at 5e-5",
            recipe: || Self::recipe(Suits::Benchmark),
        },
        NamedRecipe {
            name: "paper-gqa",
            about: "The original's GQA: 4 epochs of batches of 32 at 1e-5",
            recipe: || Recipe { learning_rate: 1e-5, ..Self::recipe(Suits::Benchmark) },
        },
    ];

    type Example = usize;
    type Batch = ExampleBatch;

    fn recipe(suits: Suits) -> Recipe {
        Recipe::fine_tuning_for(suits).for_task(Self::NAME, "all/accuracy")
    }

    fn evaluate(exam: &Exam) -> Result<Measures> {
        let answerer = Answerer::new(open_checkpoint(exam.checkpoint, Self::NAME)?, exam.how.device)?;
        let Answerer { config, text, preprocessing, answers, model } = &answerer;
        let store = FeatureStore::open(exam.data.features())?;
        preprocessing.check_features(config, store.info().feature_dim)?;
        let (set, regions) =
            ExampleSplits::test_split(exam.data, &store, (text, preprocessing), exam.allow_missing_images)?;
        measure_and_predict(model, answers, &set, (&store, regions), exam.how, exam.predictions, exam.bar)
    }

    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let paths = job.data.examples()?;
        let answers = answer_table(paths)?;
        let one = recipe.answer_loss == AnswerLoss::One;
        let data = ExampleSplits::load(job, &origin.text, |question| !one || !target(&answers, question).is_empty())?;
        let known = |&question: &usize| !target(&answers, &data.train.examples()[question]).is_empty();
        if !data.learnt.iter().any(known) {
            let reason = format!("none of its {} questions has an answer of the table", data.learnt.len());
            let first = paths.train.first().map_or(Path::new("no file"), |path| path);
            return Err(Error::file(first, format!("{reason}; name the table of these answers by --answers")));
        }
        let config = origin.lxmert_config(data.store.info().feature_dim, Self::NAME)?;
        let config = LxmertConfig { num_qa_labels: answers.len(), ..config };
        let model = AnswerModel::new(&config, VarBuilder::from_varmap(variables, DType::F32, &job.device))?;
        Ok(Self { data, answers, config, model, recipe, device: job.device.clone() })
    }

    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>> {
        let (weights, matched) =
            answering::starting_weights(checkpoint, &self.config, &self.answers, &self.recipe.allow_missing)?;
        match matched {
            Some(matched) => log::info!("{matched} of {} answers start from the checkpoint's", self.answers.len()),
            None => log::info!("the answer head starts from random weights"),
        }
        Ok(weights)
    }

    fn introduction(&self) -> Vec<String> {
        let mut lines = self.data.introduction(self.recipe.max_length);
        lines.push(format!("{} answers", self.answers.len()));
        let without = self.data.learnt.iter().filter(|&&question| self.target(question).is_empty()).count();
        if without > 0 {
            lines.push(format!("{without} training questions have no answer of the table"));
        }
        lines
    }

    fn batches_per_epoch(&self) -> usize {
        self.data.batches_per_epoch(self.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        self.data.epoch(&self.recipe, epoch)
    }

    fn read(&self, questions: Vec<usize>) -> Result<ExampleBatch> {
        self.data.read(questions)
    }

    fn loss(&self, batch: ExampleBatch, step: &Step) -> Result<BatchLoss> {
        let logits = self.model.forward(&batch.inputs.inputs(step.device)?, &step.forward())?.logits;
        let targets: Vec<SoftLabel> = batch.examples.iter().map(|&question| self.target(question)).collect();
        let losses = answer_losses(&logits, &targets, self.recipe.answer_loss, step.device)?;
        let mut right = 0;
        for (label, target) in largest(&logits)?.into_iter().zip(&targets) {
            right += usize::from(best(target).is_some_and(|(_, most)| score(target, label) >= most));
        }
        step.loss(&losses.sum_all()?, targets.len(), right)
    }

    fn validate(&self) -> Result<Measures> {
        let how = Evaluation::of_run(&self.recipe, &self.device);
        let (set, bar) = (&self.data.validation, ProgressBar::hidden());
        measure_and_predict(&self.model, &self.answers, set, self.place(), how, None, &bar)
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures> {
        let best = Pretrained::open(folder)?.answering(&self.device)?;
        let how = Evaluation::of_run(&self.recipe, &self.device);
        measure_and_predict(&best, &self.answers, &self.data.test, self.place(), how, Some(predictions), bar)
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            architecture: "LxmertForQuestionAnswering",
            preprocessing: self.recipe.preprocessing(&self.data.store),
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
            data: self.data.table(),
            losses: losses.into(),
        }
    }
}

impl Questions {
    fn target(&self, question: usize) -> SoftLabel {
        target(&self.answers, &self.data.train.examples()[question])
    }

    fn place(&self) -> (&FeatureStore, usize) {
        (&self.data.store, self.data.regions)
    }
}

/// The answers of a question, as labels of the table; empty where it has none there. Answers are looked up as they are
/// written.
fn target(answers: &AnswerTable, question: &Question) -> SoftLabel {
    answers.soft_label(question.scores.iter().flatten().map(|(answer, score)| (answer.as_str(), *score)), false)
}

/// Measures over a set of questions; the model's answers go into the folder `predictions`. `place`: the store, and regions
/// per image.
fn measure_and_predict(
    model: &AnswerModel,
    answers: &AnswerTable,
    set: &QuestionSet,
    place: (&FeatureStore, usize),
    how: Evaluation,
    predictions: Option<&Path>,
    bar: &ProgressBar,
) -> Result<Measures> {
    bar.set_length(set.len() as u64);
    let mut labels = vec![0u32; set.len()];
    let (mut loss, mut counted) = (0.0, 0usize);
    let packed = PrepackedWeights::new();
    let run = how.forward(&packed);
    let found = judge_all(set, place, how, bar, |questions, inputs| {
        let logits = model.forward(&inputs.inputs(how.device)?, &run)?.logits;
        let targets: Vec<SoftLabel> = questions.iter().map(|&i| target(answers, &set.examples()[i])).collect();
        let losses = answer_losses(&logits, &targets, AnswerLoss::Scores, how.device)?.to_vec1::<f32>()?;
        Ok(largest(&logits)?.into_iter().zip(losses).flat_map(|(label, loss)| [label.into(), loss.into()]).collect())
    })?;
    for (question, made) in found {
        labels[question] = made[0] as u32;
        if set.examples()[question].scores.is_some() {
            loss += made[1];
            counted += 1;
        }
    }
    let words: Vec<&str> = labels.iter().map(|&label| answers.answer(label).unwrap_or("")).collect();
    let accuracy = answer_accuracy(set.examples(), words.iter().copied());
    let mut measures = Measures::default();
    measures.set("all", "questions", set.len() as f64);
    if counted > 0 {
        measures.set("all", "accuracy", accuracy.overall.mean());
        measures.set("all", "loss", loss / counted as f64);
    }
    for (kind, score) in accuracy.by_type {
        // A set's name has no slash: `set/measure` is how `--metric` names one.
        let name = if kind == AnswerType::YesNo { "yes-no" } else { kind.name() };
        measures.extend(name, [("questions", score.count as f64), ("accuracy", score.mean())]);
    }
    if let Some(folder) = predictions.filter(|_| world().is_first()) {
        write_predictions(folder, set, &words)?;
    }
    Ok(measures)
}

/// Writes what the benchmark's server takes into `folder`: `vqa.json` where the questions' ids are numbers, else
/// `gqa.json`. Nothing for no question.
fn write_predictions(folder: &Path, set: &QuestionSet, words: &[&str]) -> Result<()> {
    if set.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let vqa = set.examples().iter().all(|question| matches!(question.id, QuestionId::Number(_)));
    let (name, form) = if vqa { ("vqa.json", AnswerFile::Vqa) } else { ("gqa.json", AnswerFile::Gqa) };
    let ids = set.examples().iter().map(|question| &question.id);
    write_answers(&folder.join(name), form, ids.zip(words.iter().copied()))
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

/// The loss of each question, `[batch]`. `logits`: `[batch, answers]`; a question without a target has, by its best answer,
/// no loss, and by scores that of "none of them".
fn answer_losses(logits: &Tensor, targets: &[SoftLabel], loss: AnswerLoss, device: &Device) -> Result<Tensor> {
    let (batch, answers) = logits.dims2()?;
    match loss {
        AnswerLoss::Scores => {
            let mut scores = vec![0f32; batch * answers];
            for (row, target) in targets.iter().enumerate() {
                for &(label, score) in target {
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
    fn losses_equal_the_originals() {
        let device = Device::Cpu;
        let logits = Tensor::new(&[[0.5f32, -1.0, 2.0], [0.0, 3.0, -2.0]], &device).unwrap();
        let targets = [vec![(0, 0.3), (2, 0.9)], vec![]];
        let bce = |x: f64, y: f64| x.max(0.0) - x * y + (1.0 + (-x.abs()).exp()).ln();
        let got: Vec<f32> = answer_losses(&logits, &targets, AnswerLoss::Scores, &device).unwrap().to_vec1().unwrap();
        let want = [bce(0.5, 0.3) + bce(-1.0, 0.0) + bce(2.0, 0.9), bce(0.0, 0.0) + bce(3.0, 0.0) + bce(-2.0, 0.0)];
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-5), "{got:?} {want:?}");
        let got: Vec<f32> = answer_losses(&logits, &targets, AnswerLoss::One, &device).unwrap().to_vec1().unwrap();
        let normaliser = (0.5f64.exp() + (-1f64).exp() + 2f64.exp()).ln();
        assert!((f64::from(got[0]) - 3.0 * (normaliser - 2.0)).abs() < 1e-5 && got[1] == 0.0, "{got:?}");
    }

    #[test]
    fn best_answer_is_the_first_of_the_largest_score() {
        assert_eq!(best(&[(1, 0.6), (4, 0.9), (7, 0.9)]), Some((4, 0.9)));
        assert_eq!(best(&[]), None);
    }
}
