//! Does the photo entail the sentence? SNLI-VE (Xie et al. 2019).
//!
//! The answer head with three classes: contradiction, neutral, entailment. The loss is their cross entropy. (volta trains
//! three yes-or-no scores by binary cross entropy; exactly one class is right here, which cross entropy says.) Examples whose
//! annotators did not agree have no label: they are not learnt from and not counted.

use super::examples::{ExampleBatch, ExampleSplits, judge_all};
use super::losses::cross_entropy;
use super::{Exam, Reads, Step, Task};
use crate::answering;
use crate::data::image_examples::ImageExamples;
use crate::data::snli_ve::{Hypothesis, LABELS};
use crate::evaluate::Evaluation;
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::ranks::world;
use crate::recipe::{NamedRecipe, Optimiser, Recipe, Suits};
use crate::run_folder::{CheckpointParts, open_checkpoint};
use crate::sums::BatchLoss;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::answers::AnswerTable;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::FeatureStore;
use lxmert_core::files::atomic_write;
use lxmert_core::model::AnswerModel;
use lxmert_core::ops::PrepackedWeights;
use lxmert_core::pretrained::Pretrained;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// The hypotheses of a split.
type HypothesisSet = ImageExamples<Hypothesis, 1>;

/// Judging whether photos entail sentences.
pub struct Entailment {
    data: ExampleSplits<Hypothesis, 1>,
    config: LxmertConfig,
    model: AnswerModel,
    recipe: Recipe,
    device: Device,
}

impl Task for Entailment {
    const NAME: &'static str = "entailment";
    const ABOUT: &'static str = "Does the photo entail the sentence, contradict it, or neither? SNLI-VE. Measured by accuracy, in all and by class";
    const READS: Reads = Reads::Examples("entailment");
    const RECIPES: &'static [NamedRecipe] = &[NamedRecipe {
        name: "paper-snli-ve",
        about: "volta's SNLI-VE: 20 epochs of batches of 128 at 2e-5",
        recipe: || Self::recipe(Suits::Benchmark),
    }];

    type Example = usize;
    type Batch = ExampleBatch;

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

    fn evaluate(exam: &Exam) -> Result<Measures> {
        let checkpoint = open_checkpoint(exam.checkpoint, Self::NAME)?;
        let model = model_of(&checkpoint, exam.how.device)?;
        let store = FeatureStore::open(exam.data.features())?;
        checkpoint.check_features(store.info().feature_dim)?;
        let with = (&checkpoint.text, &checkpoint.preprocessing);
        let (set, regions) = ExampleSplits::test_split(exam.data, &store, with, exam.allow_missing_images)?;
        measure_and_predict(&model, &set, (&store, regions), exam.how, exam.predictions, exam.bar)
    }

    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let data = ExampleSplits::load(job, &origin.text, |_| true)?;
        let config = origin.lxmert_config(data.store.info().feature_dim, Self::NAME)?;
        let config = LxmertConfig { num_qa_labels: LABELS.len(), ..config };
        let model = AnswerModel::new(&config, VarBuilder::from_varmap(variables, DType::F32, &job.device))?;
        Ok(Self { data, config, model, recipe, device: job.device.clone() })
    }

    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>> {
        let labels = AnswerTable::new(LABELS.map(String::from).to_vec()).map_err(Error::Argument)?;
        Ok(answering::starting_weights(checkpoint, &self.config, &labels, &self.recipe.allow_missing)?.0)
    }

    fn introduction(&self) -> Vec<String> {
        self.data.introduction(self.recipe.max_length)
    }

    fn batches_per_epoch(&self) -> usize {
        self.data.batches_per_epoch(self.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        self.data.epoch(&self.recipe, epoch)
    }

    fn read(&self, hypotheses: Vec<usize>) -> Result<ExampleBatch> {
        self.data.read(hypotheses)
    }

    fn loss(&self, batch: ExampleBatch, step: &Step) -> Result<BatchLoss> {
        let logits = self.model.forward(&batch.inputs.inputs(step.device)?, &step.forward())?.logits; // [batch, 3]
        let labels = labels(&self.data.train, &batch.examples);
        let judged = logits.argmax(1)?.to_vec1::<u32>()?;
        let right = judged.iter().zip(&labels).filter(|(judged, label)| Some(**judged) == **label).count();
        step.loss(&losses(&logits, &labels)?.sum_all()?, labels.len(), right)
    }

    fn validate(&self) -> Result<Measures> {
        let how = Evaluation::of_run(&self.recipe, &self.device);
        measure_and_predict(&self.model, &self.data.validation, self.place(), how, None, &ProgressBar::hidden())
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures> {
        let best = model_of(&Pretrained::open(folder)?, &self.device)?;
        let how = Evaluation::of_run(&self.recipe, &self.device);
        measure_and_predict(&best, &self.data.test, self.place(), how, Some(predictions), bar)
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            architecture: "LxmertForQuestionAnswering",
            preprocessing: self.recipe.preprocessing(&self.data.store),
            answers: LABELS.map(String::from).to_vec(),
        }
    }

    fn description(&self) -> Description {
        Description {
            title: "visual entailment".into(),
            pipeline_tag: "visual-question-answering",
            does: format!(
                "Says whether a photo entails a sentence, contradicts it, or leaves it open, from the photo's regions and the \
                 sentence's words. The classes of the answer head are {}.",
                LABELS.join(", ")
            ),
            data: self.data.table(),
            losses: "Cross entropy of the three classes.".into(),
        }
    }
}

impl Entailment {
    fn place(&self) -> (&FeatureStore, usize) {
        (&self.data.store, self.data.regions)
    }
}

/// The model of a checkpoint whose answers are the three labels.
fn model_of(checkpoint: &Pretrained, device: &Device) -> Result<AnswerModel> {
    let answers = checkpoint.answers()?;
    if answers.answers() != LABELS {
        let (count, labels) = (answers.len(), LABELS.join(", "));
        let reason =
            format!("its head has {count} answers other than {labels}; name a checkpoint of --task entailment");
        return Err(Error::file(&checkpoint.place.weights, reason));
    }
    Ok(checkpoint.answering(device)?)
}

fn labels(set: &HypothesisSet, hypotheses: &[usize]) -> Vec<Option<u32>> {
    hypotheses.iter().map(|&index| set.examples()[index].label).collect()
}

/// Measures over a set of hypotheses; the model's judgements go into the folder `predictions`. `place`: the store, and
/// regions per image.
fn measure_and_predict(
    model: &AnswerModel,
    set: &HypothesisSet,
    place: (&FeatureStore, usize),
    how: Evaluation,
    predictions: Option<&Path>,
    bar: &ProgressBar,
) -> Result<Measures> {
    bar.set_length(set.len() as u64);
    let mut judged = vec![(0, 0.0); set.len()];
    let prepacked = PrepackedWeights::new();
    let run = how.forward(&prepacked).pooled_only();
    let found = judge_all(set, place, how, bar, |hypotheses, inputs| {
        let logits = model.forward(&inputs.inputs(how.device)?, &run)?.logits;
        let losses = losses(&logits, &labels(set, hypotheses))?.to_vec1::<f32>()?;
        let judgements = logits.argmax(1)?.to_vec1::<u32>()?;
        Ok(judgements.into_iter().zip(losses).flat_map(|(judgement, loss)| [judgement.into(), loss.into()]).collect())
    })?;
    for (index, made) in found {
        judged[index] = (made[0] as u32, made[1] as f32);
    }
    if let Some(folder) = predictions.filter(|_| !set.is_empty() && world().is_first()) {
        write_predictions(folder, set, judged.iter().map(|(judgement, _)| *judgement))?;
    }
    Ok(measures(set.examples().iter().zip(&judged).map(|(example, &(judgement, loss))| (example, judgement, loss))))
}

/// Writes `snli_ve.jsonl` into `folder`, a line a hypothesis in the file's order: its `pairID`, and the `prediction` in words.
fn write_predictions(folder: &Path, set: &HypothesisSet, judged: impl Iterator<Item = u32>) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let lines: Vec<String> = (set.examples().iter().zip(judged))
        .map(|(example, judgement)| {
            json!({"pairID": example.pair_id, "prediction": LABELS.get(judgement as usize)}).to_string()
        })
        .collect();
    Ok(atomic_write(folder.join("snli_ve.jsonl"), |file| writeln!(file, "{}", lines.join("\n")))?)
}

/// The loss of each hypothesis, `[batch]`; 0 where there is no label. `logits`: `[batch, 3]`.
fn losses(logits: &Tensor, labels: &[Option<u32>]) -> Result<Tensor> {
    let classes: Vec<u32> = labels.iter().map(|label| label.unwrap_or(0)).collect();
    let weights: Vec<f32> = labels.iter().map(|label| if label.is_some() { 1.0 } else { 0.0 }).collect();
    Ok((cross_entropy(logits, &classes)? * Tensor::from_vec(weights, labels.len(), logits.device())?)?)
}

/// Accuracy over all hypotheses that have a label, and over those of each class.
fn measures<'a>(judged: impl IntoIterator<Item = (&'a Hypothesis, u32, f32)>) -> Measures {
    // Of each class: hypotheses, right ones, and the sum of losses.
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
    fn the_loss_is_cross_entropy_and_none_without_a_label() {
        let logits = Var::new(&[[1f32, 2.0, 3.0], [0.5, -1.0, 4.0]], &Device::Cpu).unwrap();
        let loss = losses(&logits, &[Some(0), None]).unwrap();
        let z: f64 = [1f64, 2.0, 3.0].iter().map(|x| x.exp()).sum();
        let got: Vec<f32> = loss.to_vec1().unwrap();
        assert!((f64::from(got[0]) - (z.ln() - 1.0)).abs() < 2e-6 && got[1] == 0.0, "{got:?}");
        // The gradient is the softmax less one at the label, and nothing without one.
        let gradients = loss.sum_all().unwrap().backward().unwrap();
        let got: Vec<f32> = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let want = [1f64.exp() / z - 1.0, 2f64.exp() / z, 3f64.exp() / z, 0.0, 0.0, 0.0];
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 2e-6), "{got:?}, not {want:?}");
    }

    #[test]
    fn accuracy_is_over_labelled_hypotheses_in_all_and_by_class() {
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
