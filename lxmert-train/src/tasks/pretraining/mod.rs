//! Pre-training (Tan & Bansal 2019, §3.1): the weighted sum of masked words, masked objects, cross-modality matching
//! and image question answering; each can be switched off.

pub mod data;
pub mod regions;
pub mod terms;

use super::masked_words::{MaskedWords, WordIds};
use super::{Exam, Reads, Step, Task, Tested, alignment};
use crate::data::batches;
use crate::data::pretraining::PretrainingSentences;
use crate::evaluate::{Evaluation, share_out};
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::origin::Origin;
use crate::readings::{BatchLoss, Unread, read};
use crate::recipe::{NamedRecipe, Optimiser, Recipe, Suits};
use crate::run_folder::CheckpointParts;
use crate::sums::{Part, Seen};
use crate::task_weights::TaskWeights;
use crate::trainable;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use data::{Example, PretrainingBatch, PretrainingData};
use indicatif::ProgressBar;
use lxmert_core::answers::AnswerTable;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{Pass, PretrainingModel};
use lxmert_core::ops::PrepackedWeights;
use lxmert_core::pretrained::Pretrained;
use lxmert_core::procedural::splitmix64;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;
use terms::{Targets, Term};

/// Pre-training on sentences with images.
pub struct Pretraining {
    data: PretrainingData,
    weights: TaskWeights,
    config: LxmertConfig,
    model: PretrainingModel,
    word_ids: WordIds,
    recipe: Recipe,
    device: Device,
}

/// The names of all terms.
const TERMS: [&str; 7] = ["words", "matching", "objects", "attributes", "features", "answers", "alignment"];

/// Mixed into the seed, so that masks, mismatches and dropout are drawn independently.
const MASKS: u64 = 0x6d61_736b;
const MISMATCHES: u64 = 0x6d69_736d;

impl Task for Pretraining {
    const NAME: &'static str = "pretraining";
    const ABOUT: &'static str =
        "The paper's pre-training: masked words and objects, matching, image question answering";
    const READS: Reads = Reads::Either("pretrain");
    const RECIPES: &'static [NamedRecipe] = &[NamedRecipe {
        name: "paper-pretrain",
        about: "The paper's pre-training: 20 epochs of batches of 256 at 1e-4",
        recipe: || Self::recipe(Suits::Benchmark),
    }];

    type Example = Example;
    type Batch = PretrainingBatch;

    /// The paper's recipe (§4.2 and appendix): the published size from random weights, 20 epochs of batches of 256,
    /// answers learnt in the last ten with twice the weight.
    fn recipe(suits: Suits) -> Recipe {
        let base = match suits {
            // Three of five sentences are questions, most of which fit other scenes too. With equal weights the little that
            // matching learns from the captions drowns in the other losses, and it stays at chance.
            Suits::Scenes => Recipe {
                epochs: 10,
                alignment: 10.0,
                task_weights: TaskWeights { matching: 10.0, ..TaskWeights::default() },
                ..Recipe::scenes()
            },
            Suits::Photos => Recipe::photos(),
            Suits::Benchmark => Recipe {
                config: Some("base".into()),
                max_length: 20,
                batch_size: 256,
                epochs: 20,
                optimiser: Optimiser::BertAdam,
                decay_all: true,
                warmup: 0.05,
                freeze_padding_rows: true,
                task_weights: TaskWeights { answers: 2.0, ..TaskWeights::default() },
                answers_from_epoch: 10,
                ..Recipe::photos()
            },
        };
        Recipe { task: Self::NAME.into(), metric: "all/loss".into(), ..base }
    }

    fn evaluate(_: &Exam) -> Result<Measures> {
        Err(Error::Argument(
            "--task pretraining: its losses are measured at the end of its own run (report.json); measure the checkpoint with --task matching".into(),
        ))
    }

    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let data = PretrainingData::load(job, &origin.text)?;
        let weights = data.supported(&recipe.task_weights);
        if weights.all_zero() {
            return Err(Error::Argument("--task-weights: the data supports none of the remaining tasks".into()));
        }
        let info = data.store.info();
        let count = |weight: f64, classes: usize| if weight > 0.0 { classes } else { 0 };
        let config = LxmertConfig {
            num_object_labels: count(weights.objects, info.label_names.len()),
            num_attr_labels: count(weights.attributes, info.attribute_names.len()),
            num_qa_labels: count(weights.answers, data.answers.as_ref().map_or(0, AnswerTable::len)),
            ..origin.lxmert_config(info.feature_dim, Self::NAME)?
        };
        let model = PretrainingModel::new(&config, trainable::builder(&recipe, variables, &job.device))?;
        let word_ids = WordIds::from(&origin.text);
        Ok(Self { data, weights, config, model, word_ids, recipe, device: job.device.clone() })
    }

    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>> {
        let heads = ["cls.*", "obj_predict_head.*", "answer_head.*"].map(String::from);
        let fresh = [&heads, self.recipe.allow_missing.as_slice()].concat();
        Ok(checkpoint.weights(&PretrainingModel::expected(&self.config)?, &fresh)?)
    }

    fn introduction(&self) -> Vec<String> {
        let mut lines = self.data.introduction();
        lines.push(format!("learns {}", self.weights));
        let left_out = self.weights.left_out(&self.recipe.task_weights);
        if !left_out.is_empty() {
            lines.push(format!("the data does not support {}", left_out.join(", ")));
        }
        lines
    }

    fn batches_per_epoch(&self) -> usize {
        self.data.train.len().div_ceil(self.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<Example>> {
        let Recipe { seed, batch_size, .. } = self.recipe;
        let all: Vec<usize> = (0..self.data.train.len()).collect();
        let order = batches::shuffled(&all, seed, epoch);
        let examples = self.draw(&self.data.train, &order, splitmix64(seed ^ splitmix64(epoch ^ MISMATCHES)));
        batches::plan(&examples, |example| self.data.train.tokens(example.sentence).len(), batch_size, seed, epoch)
    }

    fn read(&self, examples: Vec<Example>) -> Result<PretrainingBatch> {
        self.data.read(&self.data.train, examples, self.regions())
    }

    fn loss(&self, batch: PretrainingBatch, step: &Step) -> Result<BatchLoss<'_>> {
        let examples = batch.examples.len();
        let epoch = step.number / self.batches_per_epoch().max(1) as u64;
        let weights = self.weights.in_epoch(epoch, self.recipe.answers_from_epoch);
        let seed = splitmix64(self.recipe.seed ^ splitmix64(step.number ^ MASKS));
        let terms = self.terms(&self.model, batch, &weights, seed, &step.forward())?;
        let share = examples as f64 / step.divisor.max(1) as f64;
        let mut loss = Tensor::zeros((), DType::F32, &self.device)?;
        let weighted = |term: &Term| (weights.of(term.name).unwrap_or(self.recipe.alignment), term.name, term.guesses);
        let named: Vec<(f64, &str, usize)> = terms.iter().map(weighted).collect();
        for (term, (weight, ..)) in terms.iter().zip(&named) {
            loss = (loss + (&term.loss * (weight * share))?)?;
        }
        let numbers: Vec<&Tensor> = terms.iter().flat_map(|term| [&term.loss, &term.right]).collect();
        let seen = move |numbers: &[f32]| {
            let mut seen = Seen { examples, sum: 0.0, right: (0, 0), parts: Vec::new() };
            for ((weight, name, guesses), &[loss, right]) in named.into_iter().zip(numbers.as_chunks::<2>().0) {
                let (loss, right) = (f64::from(loss), (right as usize, guesses));
                seen.parts.push(Part { name, loss, right });
                seen.sum += weight * loss * examples as f64;
                if name == "matching" {
                    seen.right = right;
                }
            }
            seen
        };
        Ok(BatchLoss { loss, unread: Unread::new(&numbers, seen) })
    }

    fn validate(&self) -> Result<Measures> {
        self.measure(&self.model, &self.data.validation, &ProgressBar::hidden())
    }

    fn test(&self, folder: &Path, _predictions: &Path, bar: &ProgressBar) -> Result<Tested> {
        let model = Pretrained::open(folder)?.model(&self.device, PretrainingModel::new)?;
        bar.set_length(self.data.test.len() as u64);
        Ok(self.measure(&model, &self.data.test, bar)?.into())
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            architecture: "LxmertForPreTraining",
            preprocessing: self.recipe.preprocessing(&self.data.store),
            answers: match (&self.data.answers, self.config.num_qa_labels) {
                (Some(table), 1..) => table.answers().to_vec(),
                _ => Vec::new(),
            },
        }
    }

    fn description(&self) -> Description {
        Description {
            title: "pre-training".into(),
            pipeline_tag: "feature-extraction",
            does: "Encodes a sentence and an image's regions together; a start for fine-tuning.".into(),
            data: self.data.table(),
            losses: format!("Learns {}; region losses: {:?}.", self.weights, self.recipe.region_losses),
        }
    }
}

impl Pretraining {
    fn regions(&self) -> usize {
        self.recipe.regions_of(self.data.store.info().regions)
    }

    /// Half of the sentences (each with probability 1/2, as in the original) get another image, if matching is trained.
    fn draw(&self, split: &PretrainingSentences, order: &[usize], key: u64) -> Vec<Example> {
        let mut rng = ChaCha8Rng::seed_from_u64(key);
        let example = |&sentence: &usize| {
            let other = if self.weights.matching > 0.0 && rng.random_bool(0.5) {
                split.mismatch(sentence, &mut rng)
            } else {
                None
            };
            Example { image: other.unwrap_or(sentence), sentence }
        };
        order.iter().map(example).collect()
    }

    /// Masks `batch` and returns the losses of the tasks that `weights` switches on.
    fn terms(
        &self,
        model: &PretrainingModel,
        mut batch: PretrainingBatch,
        weights: &TaskWeights,
        seed: u64,
        run: &Pass,
    ) -> Result<Vec<Term>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let answers = batch.answers.iter().map(|answers| terms::sample(answers, &mut rng)).collect();
        if weights.any_region() {
            batch.regions.mask(&mut batch.inputs, &self.data.store, &mut rng)?;
        }
        let words = match weights.words > 0.0 {
            true => MaskedWords::draw(&mut batch.inputs, |_| true, self.word_ids, seed, rng.random()),
            false => MaskedWords::default(),
        };
        let matched: Vec<bool> = batch.examples.iter().map(|example| example.matched()).collect();
        let targets = Targets { words, regions: batch.regions, matched, answers };
        let inputs = batch.inputs.inputs(&self.device)?;
        let losses = (self.recipe.region_losses, 1.0 / regions::CHOSEN);
        let (mut terms, language, vision) = terms::terms(model, &inputs, &targets, weights, losses, run)?;
        if self.recipe.alignment > 0.0 {
            let matched: Vec<(u32, usize)> = (batch.examples.iter().enumerate())
                .filter(|(_, example)| example.matched())
                .map(|(row, example)| (row as u32, example.image))
                .collect();
            if let Some(loss) = alignment::loss(&matched, &batch.inputs, &language.padded()?, &vision.padded()?)? {
                let (right, weight) = (loss.zeros_like()?, batch.examples.len() as f64);
                terms.push(Term { name: "alignment", loss, right, guesses: 0, weight });
            }
        }
        Ok(terms)
    }

    /// Every task's loss and accuracy on a split, with the same masks and mismatches each time.
    fn measure(&self, model: &PretrainingModel, split: &PretrainingSentences, bar: &ProgressBar) -> Result<Measures> {
        let all: Vec<usize> = (0..split.len()).collect();
        let examples = self.draw(split, &all, MISMATCHES);
        let length = |example: &Example| split.tokens(example.sentence).len();
        let how = Evaluation::of_run(&self.recipe, &self.device);
        let order = batches::plan_in_order(&examples, length, how.batch_size);
        let planned = order.into_iter().map(|batch| batch.into_iter().map(|i| examples[i]).collect()).collect();
        let prepacked = PrepackedWeights::new();
        let run = how.forward(&prepacked);
        let found = share_out(
            planned,
            |examples: Vec<Example>| self.data.read(split, examples, self.regions()),
            |number, batch| {
                let rows = batch.examples.len();
                let seed = splitmix64((number as u64 + 1) ^ MASKS);
                let terms = self.terms(model, batch, &self.weights, seed, &run)?;
                let read = read(&terms.iter().flat_map(|term| [&term.loss, &term.right]).collect::<Vec<_>>())?;
                let mut numbers = Vec::new();
                for (term, [loss, right]) in terms.iter().zip(read.as_chunks::<2>().0) {
                    let name = TERMS.iter().position(|name| *name == term.name).unwrap_or(TERMS.len());
                    let found = [f64::from(*loss), term.weight, f64::from(*right), term.guesses as f64];
                    numbers.extend([name as f64].into_iter().chain(found));
                }
                bar.inc(rows as u64);
                Ok(numbers)
            },
        )?;
        let mut sums: BTreeMap<&'static str, (f64, f64, usize, usize)> = BTreeMap::new();
        for &[name, loss, weight, right, guesses] in found.iter().flat_map(|numbers| numbers.as_chunks::<5>().0) {
            let Some(name) = TERMS.get(name as usize) else { continue };
            let sum = sums.entry(name).or_default();
            sum.0 += weight * loss;
            sum.1 += weight;
            sum.2 += right as usize;
            sum.3 += guesses as usize;
        }
        let mut measures = Measures::default();
        let mut total = 0.0;
        for (name, (loss, weight, right, guesses)) in sums {
            let loss = loss / weight.max(1.0);
            measures.set(name, "loss", loss);
            if guesses > 0 {
                measures.set(name, "accuracy", right as f64 / guesses as f64);
            }
            total += self.weights.of(name).unwrap_or(self.recipe.alignment) * loss;
        }
        measures.set("all", "loss", total);
        Ok(measures)
    }
}
