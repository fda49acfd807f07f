//! Statements about two images, true or false: NLVR2 (Suhr et al. 2019; Tan & Bansal 2019, §4).
//!
//! The sentence is read with each image by the same trunk, the two pooled outputs are laid side by side, and a head of its
//! own says "false" or "true"; the loss is the cross entropy of that. The head starts at random, whatever the checkpoint.

use super::examples::{ExampleBatch, ExampleSplits, judge_all};
use super::losses::cross_entropy;
use super::{Exam, Reads, Step, Task};
use crate::data::image_examples::ImageExamples;
use crate::data::predictions::{statement_accuracy, write_judgements};
use crate::data::statements::Statement;
use crate::evaluate::Evaluation;
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::ranks::world;
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::run_folder::{CheckpointParts, open_checkpoint};
use crate::sums::BatchLoss;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use indicatif::ProgressBar;
use lxmert_core::checkpoint::take_weights;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::PairModel;
use lxmert_core::ops::PrepackedWeights;
use lxmert_core::pretrained::Pretrained;
use std::collections::BTreeMap;
use std::path::Path;

/// The statements of a split.
type StatementSet = ImageExamples<Statement, 2>;

/// The class of a statement: 1 for true; one without a label counts as false, and is not measured.
fn label(set: &StatementSet, index: usize) -> u32 {
    u32::from(set.examples()[index].label == Some(true))
}

/// Judging statements.
pub struct Statements {
    data: ExampleSplits<Statement, 2>,
    config: LxmertConfig,
    model: PairModel,
    recipe: Recipe,
    device: Device,
}

impl Task for Statements {
    const NAME: &'static str = "statements";
    const ABOUT: &'static str = "Is a statement about two images true? NLVR2. Measured by accuracy and consistency";
    const READS: Reads = Reads::Examples("statements");
    const RECIPES: &'static [NamedRecipe] = &[NamedRecipe {
        name: "paper-nlvr2",
        about: "The original's NLVR2: 4 epochs of batches of 32 at 5e-5",
        recipe: || Self::recipe(Suits::Benchmark),
    }];

    type Example = usize;
    type Batch = ExampleBatch;

    fn recipe(suits: Suits) -> Recipe {
        Recipe::fine_tuning_for(suits).for_task(Self::NAME, "all/accuracy")
    }

    fn evaluate(exam: &Exam) -> Result<Measures> {
        let checkpoint = open_checkpoint(exam.checkpoint, Self::NAME)?;
        let model = checkpoint.judging(exam.how.device)?;
        let store = FeatureStore::open(exam.data.features())?;
        checkpoint.check_features(store.info().feature_dim)?;
        let text = (&checkpoint.text, &checkpoint.preprocessing);
        let (set, regions) = ExampleSplits::test_split(exam.data, &store, text, exam.allow_missing_images)?;
        measure_and_predict(&model, &set, (&store, regions), exam.how, exam.predictions, exam.bar)
    }

    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let data = ExampleSplits::load(job, &origin.text, |_| true)?;
        // Answers are for questions; this head has no place in the hub's configuration.
        let config = origin.lxmert_config(data.store.info().feature_dim, Self::NAME)?;
        let config = LxmertConfig { num_qa_labels: 0, ..config };
        let model = PairModel::new(&config, VarBuilder::from_varmap(variables, DType::F32, &job.device))?;
        Ok(Self { data, config, model, recipe, device: job.device.clone() })
    }

    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = checkpoint.tensors().clone();
        let expected = PairModel::expected(&self.config)?;
        // A head over two images is taken over; one of another task, of another shape, is not.
        let shape_of = |name: &str| expected.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
        let same_head =
            (tensors.iter()).all(|(name, t)| !name.starts_with("answer_head.") || shape_of(name) == Some(t.dims()));
        if !same_head {
            tensors.retain(|name, _| !name.starts_with("answer_head."));
        }
        let fresh = [vec!["answer_head.*".into()], self.recipe.allow_missing.clone()].concat();
        Ok(take_weights(&checkpoint.place.weights, tensors, &expected, &fresh)?)
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

    fn read(&self, statements: Vec<usize>) -> Result<ExampleBatch> {
        self.data.read(statements)
    }

    fn loss(&self, batch: ExampleBatch, step: &Step) -> Result<BatchLoss> {
        let logits = self.model.forward(&batch.inputs.inputs(step.device)?, &step.forward())?; // [statements, 2]
        let labels: Vec<u32> = batch.examples.iter().map(|&index| label(&self.data.train, index)).collect();
        let judged = logits.argmax(1)?.to_vec1::<u32>()?;
        let right = judged.iter().zip(&labels).filter(|(judged, label)| judged == label).count();
        step.loss(&cross_entropy(&logits, &labels)?.sum_all()?, labels.len(), right)
    }

    fn validate(&self) -> Result<Measures> {
        let how = Evaluation::of_run(&self.recipe, &self.device);
        measure_and_predict(&self.model, &self.data.validation, self.place(), how, None, &ProgressBar::hidden())
    }

    fn test(&self, folder: &Path, predictions: &Path, bar: &ProgressBar) -> Result<Measures> {
        let best = Pretrained::open(folder)?.judging(&self.device)?;
        let how = Evaluation::of_run(&self.recipe, &self.device);
        measure_and_predict(&best, &self.data.test, self.place(), how, Some(predictions), bar)
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            // No class of transformers has a head over two images. The trunk opens in this one, which finds every key of its
            // own and reports the head's six, `answer_head.logit_fc.{0,2,3}.{weight,bias}`, as unexpected.
            architecture: "LxmertModel",
            preprocessing: self.recipe.preprocessing(&self.data.store),
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
            data: self.data.table(),
            losses: "Cross entropy of false and true.".into(),
        }
    }
}

impl Statements {
    fn place(&self) -> (&FeatureStore, usize) {
        (&self.data.store, self.data.regions)
    }
}

/// Measures over a set of statements; the model's judgements go into the folder `predictions`. `place`: the store, and
/// regions per image.
fn measure_and_predict(
    model: &PairModel,
    set: &StatementSet,
    place: (&FeatureStore, usize),
    how: Evaluation,
    predictions: Option<&Path>,
    bar: &ProgressBar,
) -> Result<Measures> {
    bar.set_length(set.len() as u64);
    let mut judged = vec![false; set.len()];
    let mut loss = 0.0;
    let packed = PrepackedWeights::new();
    let run = how.forward(&packed);
    let found = judge_all(set, place, how, bar, |statements, inputs| {
        let logits = model.forward(&inputs.inputs(how.device)?, &run)?;
        let labels: Vec<u32> = statements.iter().map(|&index| label(set, index)).collect();
        let losses = cross_entropy(&logits, &labels)?.to_vec1::<f32>()?;
        let judgements = logits.argmax(1)?.to_vec1::<u32>()?;
        Ok(judgements.into_iter().zip(losses).flat_map(|(judgement, loss)| [judgement.into(), loss.into()]).collect())
    })?;
    for (index, made) in found {
        judged[index] = made[0] == 1.0;
        if set.examples()[index].label.is_some() {
            loss += made[1];
        }
    }
    let found = statement_accuracy(set.examples(), judged.iter().copied());
    let mut measures = Measures::default();
    measures.set("all", "statements", set.len() as f64);
    if found.accuracy.count > 0 {
        let (accuracy, consistency) = (found.accuracy.mean(), found.consistency.mean());
        let loss = loss / found.accuracy.count as f64;
        measures.extend("all", [("accuracy", accuracy), ("consistency", consistency), ("loss", loss)]);
    }
    if let Some(folder) = predictions.filter(|_| world().is_first()) {
        write_predictions(folder, set, &judged)?;
    }
    Ok(measures)
}

/// Writes what NLVR2's evaluation takes into `folder`: `nlvr2.csv`. Nothing for no statement.
fn write_predictions(folder: &Path, set: &StatementSet, judged: &[bool]) -> Result<()> {
    if set.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let identifiers = set.examples().iter().map(|statement| statement.identifier.as_str());
    write_judgements(&folder.join("nlvr2.csv"), identifiers.zip(judged.iter().copied()))
}
