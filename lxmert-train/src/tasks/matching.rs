//! Image-text matching: does this sentence describe this image?
//!
//! The loss is the binary cross entropy of the match logit, which equals LXMERT's two-way cross
//! entropy (Tan & Bansal 2019, §3.1) over the logit's two halves.

use super::losses::binary_cross_entropy;
use super::masked_words::{MaskedWords, WordIds};
use super::{Exam, Reads, Step, Task, Tested, alignment, refuse_predictions, warn_of_few};
use crate::Result;
use crate::data::batches::{self, Batch};
use crate::data::pairs::{Pair, PairSource};
use crate::data::per_example::{self, Record};
use crate::data::splits::Split;
use crate::data::{Dataset, LoadOptions};
use crate::evaluate::{self, Evaluation};
use crate::job::Job;
use crate::log::card::Description;
use crate::measures::Measures;
use crate::metrics::{Metrics, cross_entropy};
use crate::origin::Origin;
use crate::ranks::world;
use crate::readings::{BatchLoss, Unread};
use crate::recalls::recalls;
use crate::recipe::{NamedRecipe, Recipe, Suits};
use crate::run_folder::{CheckpointParts, open_checkpoint};
use crate::sums::{Part, Seen};
use crate::trainable;
use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use indicatif::ProgressBar;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{MatchingModel, Pass, WordHead};
use lxmert_core::pretrained::Pretrained;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Matching on captioned images, with optional auxiliary losses.
pub struct Matching {
    pub(super) dataset: Dataset,
    config: LxmertConfig,
    pub(super) model: MatchingModel,
    word_head: Option<WordHead>,
    word_ids: WordIds,
    pub(super) recipe: Recipe,
    device: Device,
    train: PairSource,
    validation: Vec<Pair>,
    validation_hard: Vec<Pair>,
}

/// A batch of pairs.
pub struct PairBatch {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// Their images and sentences.
    pub inputs: Batch,
}

impl PairBatch {
    /// The matched rows, each with its image.
    fn matched(&self) -> Vec<(u32, usize)> {
        let rows = self.pairs.iter().enumerate().filter(|(_, pair)| pair.matched());
        rows.map(|(row, pair)| (row as u32, pair.image)).collect()
    }

    /// `[pairs]`: 1 for matched pairs, 0 for the others.
    fn targets(&self, device: &Device) -> Result<Tensor> {
        let targets: Vec<f32> = self.pairs.iter().map(|pair| f32::from(u8::from(pair.matched()))).collect();
        Ok(Tensor::from_vec(targets, self.pairs.len(), device)?)
    }
}

impl Task for Matching {
    const NAME: &'static str = "matching";
    const ABOUT: &'static str = "Does the sentence describe the image? Measured by accuracy and retrieval";
    const READS: Reads = Reads::Captions;
    const RECIPES: &'static [NamedRecipe] = &[
        NamedRecipe { name: "scenes", about: "Matching on the generated scenes", recipe: Recipe::scenes },
        NamedRecipe { name: "photos", about: "Matching on captioned photos, small model", recipe: Recipe::photos },
    ];

    type Example = Pair;
    type Batch = PairBatch;

    fn recipe(suits: Suits) -> Recipe {
        match suits {
            Suits::Scenes => Recipe::scenes(),
            Suits::Photos | Suits::Benchmark => Recipe::photos(),
        }
    }

    fn evaluate(exam: &Exam) -> Result<Measures> {
        refuse_predictions(exam, Self::NAME)?;
        let checkpoint = open_checkpoint(exam.checkpoint, Self::NAME)?;
        let model = checkpoint.matching(exam.how.device)?;
        let options = LoadOptions {
            max_length: checkpoint.preprocessing.max_length,
            regions: Some(checkpoint.preprocessing.regions),
            seed: exam.seed,
            allow_missing_images: exam.allow_missing_images,
            needed: vec![exam.split],
        };
        let dataset = Dataset::load(exam.data.captions()?, &checkpoint.text, &options)?;
        checkpoint.check_features(dataset.feature_dim())?;
        let tested = test(&model, &dataset, (exam.split, exam.recall_images), exam.how, exam.per_example, exam.bar)?;
        Ok(tested.measures)
    }

    fn new(job: &Job, origin: &Origin, variables: &VarMap) -> Result<Self> {
        let recipe = job.recipe.clone();
        let dataset = Dataset::load(job.data.captions()?, &origin.text, &job.load_options())?;
        let config = origin.config(dataset.feature_dim())?;
        let vb = || trainable::builder(&recipe, variables, &job.device);
        let model = MatchingModel::new(&config, vb())?;
        let word_head = (recipe.masked_words > 0.0)
            .then(|| WordHead::new(&config, model.trunk.word_embeddings(), vb()))
            .transpose()?;
        let validation = dataset.pairs(Split::Val);
        Ok(Self {
            train: dataset.pairs(Split::Train),
            validation: validation.fixed(),
            validation_hard: validation.hard(),
            device: job.device.clone(),
            dataset,
            config,
            model,
            word_head,
            word_ids: WordIds::from(&origin.text),
            recipe,
        })
    }

    fn starting_weights(&self, checkpoint: &Pretrained) -> Result<BTreeMap<String, Tensor>> {
        let fresh = [vec!["cls.seq_relationship.*".into()], self.recipe.allow_missing.clone()].concat();
        Ok(checkpoint.weights(&MatchingModel::expected(&self.config)?, &fresh)?)
    }

    fn introduction(&self) -> Vec<String> {
        let count = |split| self.dataset.splits.images(split).count();
        vec![
            format!(
                "{} training images with {} captions, {} to validate, {} to test ({})",
                count(Split::Train),
                self.train.len(),
                count(Split::Val),
                count(Split::Test),
                self.dataset.splits.source
            ),
            format!("{} regions of {} numbers", self.dataset.regions(), self.dataset.feature_dim()),
        ]
    }

    fn batches_per_epoch(&self) -> usize {
        self.train.len().div_ceil(self.recipe.batch_size)
    }

    fn epoch(&self, epoch: u64) -> Vec<Vec<Pair>> {
        let Recipe { seed, hard_negatives, batch_size, .. } = self.recipe;
        let pairs = self.train.epoch(seed, epoch, hard_negatives);
        batches::plan(&pairs, |pair| self.dataset.tokens(pair).len(), batch_size, seed, epoch)
    }

    fn read(&self, pairs: Vec<Pair>) -> Result<PairBatch> {
        Ok(PairBatch { inputs: self.dataset.read(&pairs)?, pairs })
    }

    fn loss(&self, mut batch: PairBatch, step: &Step) -> Result<BatchLoss<'_>> {
        let words = self.word_head.as_ref().map(|head| {
            let matched = |row: usize| batch.pairs[row].matched();
            (head, MaskedWords::draw(&mut batch.inputs, matched, self.word_ids, self.recipe.seed, step.number))
        });
        // Only the prediction of masked words needs the streams after they have met.
        let run = Pass { pooled_only: words.is_none(), ..step.forward() };
        let inputs = batch.inputs.inputs(step.device)?;
        let language = self.model.trunk.encode_language(&inputs.input_ids, inputs.attention_mask.as_ref(), &run)?;
        let mask = inputs.visual_attention_mask.as_ref();
        let vision = self.model.trunk.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, mask, &run)?;
        let output = self.model.match_encoded(&language, &vision, &run)?;
        let targets = batch.targets(step.device)?;
        let mut loss = (binary_cross_entropy(&output.logits, &targets)?.sum_all()? / step.divisor.max(1) as f64)?;

        // Auxiliary losses, each a mean weighted by the batch's share of the optimiser step.
        let share = batch.pairs.len() as f64 / step.divisor as f64;
        let guesses = match &words {
            Some((head, words)) => words.loss(head, &output.trunk.language)?,
            None => None,
        };
        let aligned = match self.recipe.alignment > 0.0 {
            true => alignment::loss(&batch.matched(), &batch.inputs, &language.padded()?, &vision.padded()?)?,
            false => None,
        };
        let guesses = guesses.map(|guesses| (guesses.loss, Some(guesses.right), guesses.count));
        let aligned = aligned.map(|loss| (loss, None, 0));
        let (mut numbers, mut parts) = (Vec::new(), Vec::new());
        for (name, beside, weight) in
            [("words", guesses, self.recipe.masked_words), ("alignment", aligned, self.recipe.alignment)]
        {
            if let Some((beside, right, count)) = beside {
                loss = (loss + (&beside * (weight * share))?)?;
                numbers.extend([right.map_or_else(|| beside.zeros_like(), Ok)?, beside]);
                parts.push((name, count));
            }
        }
        numbers.push(output.logits);
        let matched: Vec<bool> = batch.pairs.iter().map(Pair::matched).collect();
        let seen = move |numbers: &[f32]| {
            let (beside, logits) = numbers.split_at(2 * parts.len());
            let part = |((name, count), &[right, loss]): ((_, _), &[f32; 2])| Part {
                name,
                loss: f64::from(loss),
                right: (right as usize, count),
            };
            Seen {
                examples: matched.len(),
                sum: logits.iter().zip(&matched).map(|(&logit, &matched)| cross_entropy(logit, matched)).sum(),
                right: (logits.iter().zip(&matched).filter(|(logit, m)| (**logit > 0.0) == **m).count(), matched.len()),
                parts: parts.into_iter().zip(beside.as_chunks::<2>().0).map(part).collect(),
            }
        };
        Ok(BatchLoss { loss, unread: Unread::new(&numbers.iter().collect::<Vec<_>>(), seen) })
    }

    fn validate(&self) -> Result<Measures> {
        let mut measures = Measures::default();
        let (how, quiet) = (Evaluation::of_run(&self.recipe, &self.device), ProgressBar::hidden());
        for (set, pairs) in [("random", &self.validation), ("hard", &self.validation_hard)] {
            if !pairs.is_empty() {
                let logits = evaluate::logits(&self.model, &self.dataset, pairs, how, &quiet)?;
                Metrics::of_pairs(&logits, pairs).add_to(&mut measures, set);
            }
        }
        Ok(measures)
    }

    fn test(&self, folder: &Path, _predictions: &Path, bar: &ProgressBar) -> Result<Tested> {
        let best = Pretrained::open(folder)?.matching(&self.device)?;
        let how = Evaluation::of_run(&self.recipe, &self.device);
        test(&best, &self.dataset, (Split::Test, self.recipe.recall_images), how, None, bar)
    }

    fn checkpoint(&self) -> CheckpointParts {
        CheckpointParts {
            config: self.config.clone(),
            architecture: "LxmertForPreTraining",
            preprocessing: self.recipe.preprocessing(&self.dataset.store),
            answers: Vec::new(),
        }
    }

    fn description(&self) -> Description {
        let dataset = &self.dataset;
        let mut data = String::from("| split | images | captions |\n| --- | ---: | ---: |\n");
        for split in Split::ALL {
            let captions = dataset.splits.captions(&dataset.captions, split).len();
            data.push_str(&format!("| {split} | {} | {captions} |\n", dataset.splits.images(split).count()));
        }
        data.push_str(&format!(
            "\nSplit by image ({}). Half of the pairs are mismatched; {:.0} % of the mismatched training pairs are hard \
             (one word changed) if the data has hard negatives.",
            dataset.splits.source,
            100.0 * self.recipe.hard_negatives
        ));
        let beside = [
            ("a contrastive word-region alignment loss", self.recipe.alignment),
            ("a masked-word loss", self.recipe.masked_words),
        ];
        let beside = beside.iter().filter(|(_, weight)| *weight > 0.0);
        Description {
            title: "image-text matching".into(),
            pipeline_tag: "image-text-to-text",
            does: "Says whether a sentence describes an image, from the image's regions and the sentence's words."
                .into(),
            data,
            losses: beside.map(|(what, weight)| format!("Beside matching: {what}, weight {weight}.")).collect(),
        }
    }
}

/// All measures of a matching model on a split: pairs, hard pairs, retrieval over the first `recall_images`. Writes a line for
/// each pair to `per_example`.
///
/// # Errors
/// Returns an error if the data does not fit the model, the file cannot be written, or Ctrl-C was pressed.
pub fn test(
    model: &MatchingModel,
    dataset: &Dataset,
    (split, recall_images): (Split, usize),
    how: Evaluation,
    per_example: Option<&Path>,
    bar: &ProgressBar,
) -> Result<Tested> {
    let source = dataset.pairs(split);
    let mut measures = Measures::default();
    let (pairs, hard) = (source.fixed(), source.hard());
    let mut records = Vec::new();
    bar.set_length((pairs.len() + hard.len()) as u64);
    for (set, pairs) in [("random", pairs), ("hard", hard)] {
        if !pairs.is_empty() {
            let logits = evaluate::logits(model, dataset, &pairs, how, bar)?;
            let metrics = Metrics::of_pairs(&logits, &pairs);
            metrics.add_to(&mut measures, set);
            warn_of_few(&format!("{split}, {set} pairs"), (metrics.right(), pairs.len()));
            // Both sets hold the matched pairs, which are written once.
            let new = pairs.iter().zip(&logits).filter(|(pair, _)| set == "random" || !pair.matched());
            if per_example.is_some() {
                records.extend(new.map(|(pair, &logit)| record(dataset, pair, logit)));
            }
        }
    }
    if let Some(path) = per_example.filter(|_| world().is_first()) {
        per_example::write(path, &records)?;
    }
    let mut tested = Tested::from(measures);
    if recall_images > 0 && dataset.splits.images(split).nth(1).is_none() {
        log::warn!("{split}: no retrieval, which needs two images at least; the only one would rank first");
    } else if recall_images > 0 {
        bar.reset();
        bar.set_prefix("recall");
        let recalls = recalls(model, dataset, split, recall_images, how, bar)?;
        recalls.add_to(&mut tested.measures);
        tested.retrieval_seconds = recalls.seconds;
    }
    Ok(tested)
}

/// A pair's line of `--per-example`.
fn record(dataset: &Dataset, pair: &Pair, logit: f32) -> Record {
    let probability = 1.0 / (1.0 + (-f64::from(logit)).exp());
    per_example::record([
        ("image", json!(dataset.image_name(pair))),
        ("sentence", json!(dataset.sentence(pair))),
        ("pair", json!(pair.kind)),
        ("label", json!(pair.matched())),
        ("probability", json!(probability)),
        ("right", json!((logit > 0.0) == pair.matched())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn loss_and_gradient_equal_the_cross_entropys() {
        let x = Var::new(&[0.3f32, -2.0, 40.0, -90.0, 0.0], &Device::Cpu).unwrap();
        let y = Tensor::new(&[1f32, 0.0, 0.0, 1.0, 0.0], &Device::Cpu).unwrap();
        let loss = binary_cross_entropy(x.as_tensor(), &y).unwrap().sum_all().unwrap();
        let want: f64 = [(0.3, true), (-2.0, false), (40.0, false), (-90.0, true), (0.0, false)]
            .iter()
            .map(|&(l, m)| cross_entropy(l, m))
            .sum();
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - want).abs() < 1e-4);
        let gradients = loss.backward().unwrap();
        let gradient: Vec<f32> = gradients.get(x.as_tensor()).unwrap().to_vec1().unwrap();
        // d/dx = sigmoid(x) - y; at exactly 0 the two pieces meet, and candle's subgradients decide.
        for (g, want) in gradient.iter().zip([-0.425_557_5, 0.119_202_92, 1.0, -1.0]) {
            assert!((g - want).abs() < 1e-5, "{gradient:?}");
        }
    }
}
