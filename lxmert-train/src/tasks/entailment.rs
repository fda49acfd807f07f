//! Does the photo entail the sentence? SNLI-VE (Xie et al. 2019).
//!
//! The answer head has three classes: contradiction, neutral, entailment. The loss is their cross entropy. (volta
//! trains three independent scores by binary cross entropy; exactly one class is right here, which cross entropy
//! expresses.) Examples without annotator agreement have no label: they are neither trained on nor measured.

use super::examples::ExampleTask;
use super::losses::cross_entropy;
use crate::answering;
use crate::data::batches::Batch;
use crate::data::per_example;
use crate::data::snli_ve::{Hypothesis, LABELS};
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::recipe::{NamedRecipe, Optimiser, Recipe, Suits};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::answers::AnswerTable;
use lxmert_core::config::LxmertConfig;
use lxmert_core::files::atomic_write;
use lxmert_core::model::{AnswerModel, LxmertInputs, Pass};
use lxmert_core::pretrained::Pretrained;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// Predicting whether photos entail sentences.
pub struct Entailment;

impl ExampleTask<1> for Entailment {
    const NAME: &'static str = "entailment";
    const ABOUT: &'static str = "Does the photo entail the sentence, contradict it, or neither? SNLI-VE. Measured by accuracy, overall and by class";
    const STEM: &'static str = "entailment";
    const RECIPES: &'static [NamedRecipe] = &[NamedRecipe {
        name: "paper-snli-ve",
        about: "volta's SNLI-VE: 20 epochs of batches of 128 at 2e-5",
        recipe: || Self::recipe(Suits::Benchmark),
    }];

    const ARCHITECTURE: &'static str = "LxmertForQuestionAnswering";

    type Example = Hypothesis;
    type Model = AnswerModel;
    /// The class.
    type Judgement = u32;

    fn recipe(suits: Suits) -> Recipe {
        let recipe = Recipe::fine_tuning_for(suits).for_task(Self::NAME, "all/accuracy");
        match suits {
            // volta's config_tasks/all_trainval_tasks.yml.
            Suits::Benchmark => Recipe {
                epochs: 20,
                batch_size: 128,
                learning_rate: 2e-5,
                max_length: 56,
                optimiser: Optimiser::AdamW,
                decay_all: false,
                clip: 1.0,
                ..recipe
            },
            Suits::Scenes | Suits::Photos => recipe,
        }
    }

    fn of_job(_: &Job) -> Result<Self> {
        Ok(Self)
    }

    fn of_checkpoint(_: &Pretrained) -> Result<Self> {
        Ok(Self)
    }

    fn answers(&self) -> Vec<String> {
        LABELS.map(String::from).to_vec()
    }

    fn model(config: &LxmertConfig, vb: VarBuilder) -> candle_core::Result<AnswerModel> {
        AnswerModel::new(config, vb)
    }

    fn open(checkpoint: &Pretrained, device: &Device) -> Result<AnswerModel> {
        let answers = checkpoint.answers()?;
        if answers.answers() != LABELS {
            let (count, labels) = (answers.len(), LABELS.join(", "));
            let reason =
                format!("its head has {count} answers other than {labels}; use a checkpoint of --task entailment");
            return Err(Error::file(&checkpoint.place.weights, reason));
        }
        Ok(checkpoint.answering(device)?)
    }

    fn starting_weights(
        &self,
        checkpoint: &Pretrained,
        config: &LxmertConfig,
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>> {
        let labels = AnswerTable::new(self.answers()).map_err(Error::Argument)?;
        Ok(answering::starting_weights(checkpoint, config, &labels, allow_missing)?.0)
    }

    fn logits(model: &AnswerModel, inputs: &LxmertInputs, pass: &Pass) -> candle_core::Result<Tensor> {
        Ok(model.forward(inputs, pass)?.logits) // [batch, 3]
    }

    fn losses(&self, logits: &Tensor, hypotheses: &[&Hypothesis], _: &Batch) -> Result<Tensor> {
        losses(logits, &hypotheses.iter().map(|hypothesis| hypothesis.label).collect::<Vec<_>>())
    }

    fn judge(&self, classes: &[f32], _: &[&Hypothesis], _: &Batch) -> Vec<u32> {
        classes.iter().map(|class| *class as u32).collect()
    }

    fn is_right(&self, hypothesis: &Hypothesis, &class: &u32) -> bool {
        hypothesis.label == Some(class)
    }

    fn measures(&self, hypotheses: &[Hypothesis], judged: &[(u32, f32)]) -> Measures {
        measures(hypotheses.iter().zip(judged).map(|(hypothesis, &(class, loss))| (hypothesis, class, loss)))
    }

    fn record(&self, hypothesis: &Hypothesis, &class: &u32, logits: &[f32]) -> Vec<(&'static str, Value)> {
        let probabilities: BTreeMap<&str, f64> = LABELS.into_iter().zip(per_example::softmax(logits)).collect();
        vec![
            ("pair_id", json!(hypothesis.pair_id)),
            ("label", json!(hypothesis.label.and_then(|label| LABELS.get(label as usize)))),
            ("prediction", json!(LABELS.get(class as usize))),
            ("probabilities", json!(probabilities)),
        ]
    }

    /// `snli_ve.jsonl`, one line per hypothesis in the file's order: its `pairID`, and the `prediction` in words.
    fn write_predictions(&self, folder: &Path, hypotheses: &[Hypothesis], judged: &[(u32, f32)]) -> Result<()> {
        Ok(atomic_write(folder.join("snli_ve.jsonl"), |file| {
            for (hypothesis, (class, _)) in hypotheses.iter().zip(judged) {
                let prediction = LABELS.get(*class as usize);
                writeln!(file, "{}", json!({"pairID": hypothesis.pair_id, "prediction": prediction}))?;
            }
            Ok(())
        })?)
    }

    fn description(&self, data: String) -> Description {
        Description {
            title: "visual entailment".into(),
            pipeline_tag: "visual-question-answering",
            does: format!(
                "Says whether a photo entails a sentence, contradicts it, or leaves it open, from the photo's regions and the \
                 sentence's words. The classes of the answer head are {}.",
                LABELS.join(", ")
            ),
            data,
            losses: "Cross entropy of the three classes.".into(),
        }
    }
}

/// The loss of each hypothesis, `[batch]`; 0 if it has no label. `logits`: `[batch, 3]`.
fn losses(logits: &Tensor, labels: &[Option<u32>]) -> Result<Tensor> {
    let classes: Vec<u32> = labels.iter().map(|label| label.unwrap_or(0)).collect();
    let weights: Vec<f32> = labels.iter().map(|label| if label.is_some() { 1.0 } else { 0.0 }).collect();
    Ok((cross_entropy(logits, &classes)? * Tensor::from_vec(weights, labels.len(), logits.device())?)?)
}

/// Accuracy over all labelled hypotheses, and over those of each class.
fn measures<'a>(judged: impl IntoIterator<Item = (&'a Hypothesis, u32, f32)>) -> Measures {
    // For each class: number of hypotheses, correct ones, and the sum of losses.
    let mut sums = [[0f64; 3]; LABELS.len()];
    let mut all = 0.0;
    for (hypothesis, judgement, loss) in judged {
        all += 1.0;
        if let Some(label) = hypothesis.label {
            let right = if label == judgement { 1.0 } else { 0.0 };
            sums[label as usize].iter_mut().zip([1.0, right, f64::from(loss)]).for_each(|(sum, value)| *sum += value);
        }
    }
    let mut measures = Measures::default();
    measures.set("all", "sentences", all);
    let total = [0, 1, 2].map(|i| sums.iter().map(|class| class[i]).sum::<f64>());
    if total[0] > 0.0 {
        measures.extend("all", [("accuracy", total[1] / total[0]), ("loss", total[2] / total[0])]);
    }
    for (name, [count, right, loss]) in LABELS.into_iter().zip(sums) {
        if count > 0.0 {
            measures.extend(name, [("sentences", count), ("accuracy", right / count), ("loss", loss / count)]);
        }
    }
    measures
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_loss_is_cross_entropy_and_zero_without_a_label() {
        let logits = Var::new(&[[1f32, 2.0, 3.0], [0.5, -1.0, 4.0]], &Device::Cpu).unwrap();
        let loss = losses(&logits, &[Some(0), None]).unwrap();
        let z: f64 = [1f64, 2.0, 3.0].iter().map(|x| x.exp()).sum();
        let got: Vec<f32> = loss.to_vec1().unwrap();
        assert!((f64::from(got[0]) - (z.ln() - 1.0)).abs() < 2e-6 && got[1] == 0.0, "{got:?}");
        // The gradient is the softmax minus one at the label, and zero without one.
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        let got: Vec<f32> = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let want = [1f64.exp() / z - 1.0, 2f64.exp() / z, 3f64.exp() / z, 0.0, 0.0, 0.0];
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 2e-6), "{got:?}, not {want:?}");
    }

    #[test]
    fn accuracy_is_over_labelled_hypotheses_overall_and_by_class() {
        let hypothesis = |label: Option<u32>| Hypothesis { pair_id: "a".into(), image: 0, sentence: "x".into(), label };
        let examples = [Some(0), Some(2), Some(2), None, Some(2)].map(hypothesis);
        let judged = examples.iter().zip([0, 2, 1, 1, 0]).map(|(example, judgement)| (example, judgement, 0.5));
        let found = measures(judged);
        let get = |set: &str| [found.get(set, "sentences"), found.get(set, "accuracy"), found.get(set, "loss")];
        assert_eq!(get("all"), [Some(5.0), Some(0.5), Some(0.5)]);
        assert_eq!(get("contradiction"), [Some(1.0), Some(1.0), Some(0.5)]);
        assert_eq!(get("neutral"), [None, None, None]);
        assert_eq!(get("entailment"), [Some(3.0), Some(1.0 / 3.0), Some(0.5)]);
    }
}
