//! Questions about an image: VQA and GQA (Tan & Bansal 2019, §4).
//!
//! Every answer in the table is an independent yes or no: the loss of a question is the binary cross entropy of each
//! answer's logit with its score, summed over the answers (the original's mean times their number). With `--answer-loss
//! one`, which suits GQA's single answers, it is the cross entropy with the best answer, times the number of answers
//! (the original's `--mceLoss`). The model's answer is the one with the largest logit.

use super::examples::ExampleTask;
use super::losses::{binary_cross_entropy, cross_entropy};
use crate::answering;
use crate::data::batches::Batch;
use crate::data::predictions::{AnswerFile, answer_accuracy, write_answers};
use crate::data::questions::{Question, QuestionId};
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::recipe::{AnswerLoss, NamedRecipe, Recipe, Suits};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::answers::{AnswerTable, SoftLabel};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{AnswerModel, LxmertInputs, Pass};
use lxmert_core::pretrained::Pretrained;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Answers of a question that `--per-example` lists.
const TOP_ANSWERS: usize = 5;

/// Answering questions.
pub struct Questions {
    answers: AnswerTable,
    loss: AnswerLoss,
}

impl ExampleTask<1> for Questions {
    const NAME: &'static str = "questions";
    const ABOUT: &'static str =
        "Answers to questions: VQA, GQA. Measured by accuracy, by answer type if the data states it";
    const STEM: &'static str = "questions";
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

    const ARCHITECTURE: &'static str = "LxmertForQuestionAnswering";

    type Example = Question;
    type Model = AnswerModel;
    /// The answer's number in the table.
    type Judgement = u32;

    fn recipe(suits: Suits) -> Recipe {
        Recipe::fine_tuning_for(suits).for_task(Self::NAME, "all/accuracy")
    }

    fn of_job(job: &Job) -> Result<Self> {
        let Some(path) = &job.data.examples()?.answers else {
            return Err(Error::Argument(
                "questions need a table of answers to choose from; pass --answers vqa, --answers gqa, or a file".into(),
            ));
        };
        Ok(Self { answers: AnswerTable::read(path)?, loss: job.recipe.answer_loss })
    }

    fn of_checkpoint(checkpoint: &Pretrained) -> Result<Self> {
        Ok(Self { answers: checkpoint.answers()?, loss: AnswerLoss::Scores })
    }

    fn answers(&self) -> Vec<String> {
        self.answers.answers().to_vec()
    }

    /// With scores as targets, a question without an answer in the table teaches that none of them is right.
    fn learns_from(&self, question: &Question) -> bool {
        self.loss == AnswerLoss::Scores || !self.target(question).is_empty()
    }

    fn model(config: &LxmertConfig, vb: VarBuilder) -> candle_core::Result<AnswerModel> {
        AnswerModel::new(config, vb)
    }

    fn open(checkpoint: &Pretrained, device: &Device) -> Result<AnswerModel> {
        Ok(checkpoint.answering(device)?)
    }

    fn starting_weights(
        &self,
        checkpoint: &Pretrained,
        config: &LxmertConfig,
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>> {
        let (weights, matched) = answering::starting_weights(checkpoint, config, &self.answers, allow_missing)?;
        match matched {
            Some(matched) => log::info!("{matched} of {} answers start from the checkpoint's rows", self.answers.len()),
            None => log::info!("the answer head starts from random weights"),
        }
        Ok(weights)
    }

    fn notes(&self, learnt: &[&Question]) -> std::result::Result<Vec<String>, String> {
        let without = learnt.iter().filter(|question| self.target(question).is_empty()).count();
        if without == learnt.len() {
            let reason = format!("none of its {without} questions has an answer in the table");
            return Err(format!("{reason}; pass the table of these answers as --answers"));
        }
        let mut lines = vec![format!("{} answers", self.answers.len())];
        if without > 0 {
            lines.push(format!("{without} training questions have no answer in the table"));
        }
        if 2 * without >= learnt.len() {
            let all = learnt.len();
            log::warn!(
                "{without} of {all} training questions have no answer in the table of --answers; is it the right one?"
            );
        }
        Ok(lines)
    }

    fn logits(model: &AnswerModel, inputs: &LxmertInputs, pass: &Pass) -> candle_core::Result<Tensor> {
        Ok(model.forward(inputs, pass)?.logits) // [batch, answers]
    }

    fn losses(&self, logits: &Tensor, questions: &[&Question], _: &Batch) -> Result<Tensor> {
        answer_losses(logits, &self.targets(questions), AnswerLoss::Scores)
    }

    fn training_losses(&self, logits: &Tensor, questions: &[&Question], _: &Batch) -> Result<Tensor> {
        answer_losses(logits, &self.targets(questions), self.loss)
    }

    fn judge(&self, classes: &[f32], _: &[&Question], _: &Batch) -> Vec<u32> {
        classes.iter().map(|class| *class as u32).collect()
    }

    fn is_right(&self, question: &Question, &answer: &u32) -> bool {
        let target = self.target(question);
        best(&target).is_some_and(|(_, most)| score(&target, answer) >= most)
    }

    fn measures(&self, questions: &[Question], judged: &[(u32, f32)]) -> Measures {
        let accuracy = answer_accuracy(questions, self.words(judged));
        let mut measures = Measures::default();
        measures.set("all", "questions", questions.len() as f64);
        if accuracy.overall.count > 0 {
            let known = questions.iter().zip(judged).filter(|(question, _)| question.scores.is_some());
            let loss = known.map(|(_, (_, loss))| f64::from(*loss)).sum::<f64>() / accuracy.overall.count as f64;
            measures.extend("all", [("accuracy", accuracy.overall.mean()), ("loss", loss)]);
        }
        for (kind, score) in accuracy.by_type {
            // A set's name has no slash: `set/measure` is how `--metric` names one.
            measures.extend(&kind.replace('/', "-"), [("questions", score.count as f64), ("accuracy", score.mean())]);
        }
        measures
    }

    fn record(&self, question: &Question, &answer: &u32, logits: &[f32]) -> Vec<(&'static str, Value)> {
        let mut best: Vec<usize> = (0..logits.len()).collect();
        best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let word = |label: usize| self.answers.answer(label as u32).unwrap_or("");
        let probability = |label: usize| 1.0 / (1.0 + (-f64::from(logits[label])).exp());
        let best = best.into_iter().take(TOP_ANSWERS);
        let best: Vec<Value> =
            best.map(|label| json!({"answer": word(label), "probability": probability(label)})).collect();
        let answer = word(answer as usize);
        let label: Option<BTreeMap<&str, f32>> = (question.scores.as_ref())
            .map(|scores| scores.iter().map(|(answer, score)| (answer.as_str(), *score)).collect());
        vec![
            ("question_id", json!(question.id)),
            ("label", json!(label)),
            ("answer", json!(answer)),
            ("score", json!(question.scores.as_ref().map(|_| question.score(answer)))),
            ("answers", json!(best)),
        ]
    }

    /// `vqa.json` if the questions' ids are numbers, otherwise `gqa.json`.
    fn write_predictions(&self, folder: &Path, questions: &[Question], judged: &[(u32, f32)]) -> Result<()> {
        let vqa = questions.iter().all(|question| matches!(question.id, QuestionId::Number(_)));
        let (name, form) = if vqa { ("vqa.json", AnswerFile::Vqa) } else { ("gqa.json", AnswerFile::Gqa) };
        let ids = questions.iter().map(|question| &question.id);
        write_answers(&folder.join(name), form, ids.zip(self.words(judged)))
    }

    fn description(&self, data: String) -> Description {
        let losses = match self.loss {
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
            data,
            losses: losses.into(),
        }
    }
}

impl Questions {
    /// The answers of a question, as labels of the table; empty if none is in the table. Answers are looked up exactly
    /// as written.
    fn target(&self, question: &Question) -> SoftLabel {
        let scores = question.scores.iter().flatten().map(|(answer, score)| (answer.as_str(), *score));
        self.answers.soft_label(scores, false)
    }

    fn targets(&self, questions: &[&Question]) -> Vec<SoftLabel> {
        questions.iter().map(|question| self.target(question)).collect()
    }

    fn words(&self, judged: &[(u32, f32)]) -> impl Iterator<Item = &str> {
        judged.iter().map(|(answer, _)| self.answers.answer(*answer).unwrap_or(""))
    }
}

/// The loss of each question, `[batch]`. `logits`: `[batch, answers]`. A question without a target has no loss with
/// `--answer-loss one`; with scores it has the loss of "none of them".
fn answer_losses(logits: &Tensor, targets: &[SoftLabel], loss: AnswerLoss) -> Result<Tensor> {
    let device = logits.device();
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

/// The first of the answers with the largest score.
fn best(target: &[(u32, f32)]) -> Option<(u32, f32)> {
    target.iter().copied().reduce(|best, next| if next.1 > best.1 { next } else { best })
}

fn score(target: &[(u32, f32)], label: u32) -> f32 {
    target.iter().find(|(known, _)| *known == label).map_or(0.0, |(_, score)| *score)
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
        let got: Vec<f32> = answer_losses(&logits, &targets, AnswerLoss::Scores).unwrap().to_vec1().unwrap();
        let want = [bce(0.5, 0.3) + bce(-1.0, 0.0) + bce(2.0, 0.9), bce(0.0, 0.0) + bce(3.0, 0.0) + bce(-2.0, 0.0)];
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-5), "{got:?} {want:?}");
        let got: Vec<f32> = answer_losses(&logits, &targets, AnswerLoss::One).unwrap().to_vec1().unwrap();
        let normaliser = (0.5f64.exp() + (-1f64).exp() + 2f64.exp()).ln();
        assert!((f64::from(got[0]) - 3.0 * (normaliser - 2.0)).abs() < 1e-5 && got[1] == 0.0, "{got:?}");
    }

    #[test]
    fn best_answer_is_the_first_of_the_largest_score() {
        assert_eq!(best(&[(1, 0.6), (4, 0.9), (7, 0.9)]), Some((4, 0.9)));
        assert_eq!(best(&[]), None);
    }
}
