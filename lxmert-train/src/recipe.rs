//! All settings of a run, and the recipes that tasks start from.

use crate::task_weights::TaskWeights;
use crate::trainable::RateScale;
use crate::{Error, Result};
use lxmert_core::config::CrossLayer;
use lxmert_core::features::FeatureStore;
use lxmert_core::ops::Precision;
use lxmert_core::pretrained::Preprocessing;
use lxmert_extract::detector::selection::RegionCount;
use serde::{Deserialize, Serialize};

use lxmert_core::optim::{AdamWConfig, Decay};

/// The optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Optimiser {
    /// With bias correction; biases and norms do not decay.
    #[value(name = "adamw")]
    AdamW,
    /// The original's: no bias correction, everything decays, and the first step has a rate of 0.
    #[value(name = "bert-adam")]
    BertAdam,
}

impl Optimiser {
    /// The name in prose.
    pub fn title(self) -> &'static str {
        match self {
            Self::AdamW => "AdamW",
            Self::BertAdam => "BertAdam",
        }
    }

    /// Whether the first step has a rate of 0.
    pub fn idle_start(self) -> bool {
        self == Self::BertAdam
    }

    /// Whether biases and norms decay too, unless a recipe says otherwise.
    pub fn decays_all(self) -> bool {
        self == Self::BertAdam
    }
}

/// The target of the answer loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AnswerLoss {
    /// Every answer's score, by binary cross entropy, as in the original.
    #[default]
    Scores,
    /// Only the best answer, by cross entropy; the original's option for GQA.
    One,
}

/// Which regions the object and attribute losses cover, and how they are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RegionLosses {
    /// The masked regions, weighted by the detector's confidence: their sum divided by the number of all regions, times
    /// 1/0.15 (the paper).
    #[default]
    Masked,
    /// All regions, masked or not, for objects and attributes (the released code; airsplay/lxmert#41).
    Original,
    /// The mean over the masked regions, without confidences (volta).
    PerMasked,
}

/// The kind of data that a task's default recipe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suits {
    /// The generated scenes.
    Scenes,
    /// Captioned photos, from random weights.
    Photos,
    /// The published benchmark's files, with the paper's settings.
    Benchmark,
}

/// A recipe that `--recipe` can name.
#[derive(Debug, Clone, Copy)]
pub struct NamedRecipe {
    /// Its name.
    pub name: &'static str,
    /// A one-line description for the help.
    pub about: &'static str,
    /// Its settings.
    pub recipe: fn() -> Recipe,
}

/// What to train and how. Two runs with equal recipes, data and thread counts end with equal weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The task's name.
    pub task: String,
    /// The model's configuration: a preset, a `config.json`, or a checkpoint with one; `None` to use that of `init`.
    pub config: Option<String>,
    /// How the two streams attend to each other; `None` to follow the configuration.
    pub cross_layer: Option<CrossLayer>,
    /// The initial checkpoint; `None` to start from random weights.
    pub init: Option<String>,
    /// Patterns of weights that this checkpoint may lack (`*` any characters, `?` one character); they start fresh.
    pub allow_missing: Vec<String>,
    /// Dropout of hidden states and of attention probabilities.
    pub dropout: f32,
    /// Standard deviation of newly initialised weights.
    pub initializer_range: f64,
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included.
    pub max_length: usize,
    /// Regions per image, best first; `None` for all in the store.
    pub regions: Option<usize>,
    /// Examples per batch.
    pub batch_size: usize,
    /// Batches per optimiser step.
    pub accumulate: usize,
    /// Passes over the training examples.
    pub epochs: u64,
    /// Optimiser steps, instead of epochs.
    pub steps: Option<u64>,
    /// Which optimiser.
    pub optimiser: Optimiser,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Fraction of the steps during which the rate rises to its peak.
    pub warmup: f64,
    /// How the rate falls after its peak.
    pub schedule: Decay,
    /// Patterns of weights that stay as they are.
    pub freeze: Vec<String>,
    /// Factors on the learning rate of some weights; the last pattern that matches a name counts.
    pub lr_scale: Vec<RateScale>,
    /// Decay of the exponential moving average of the weights, which is then what is measured and saved; `None` for the
    /// weights themselves.
    pub ema: Option<f64>,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether biases and norms decay too.
    pub decay_all: bool,
    /// Limit of the global gradient norm; 0 for no limit.
    pub clip: f64,
    /// Precision to which the encoder layers' products round their operands in training; weights, optimiser and
    /// evaluation are f32 (in a run in TF32 evaluation is, too).
    pub precision: Precision,
    /// Whether row 0 of the position and segment tables gets no gradient. So it is in the original, where it is torch's
    /// padding row, although it is `[CLS]`'s position and the only segment.
    pub freeze_padding_rows: bool,
    /// Fraction of the mismatched training pairs that are hard.
    pub hard_negatives: f64,
    /// Weight of the masked-word loss beside the matching loss; 0 to omit it.
    pub masked_words: f64,
    /// Weight of the word-region alignment loss beside the matching loss; 0 to omit it.
    pub alignment: f64,
    /// Weights of the pre-training tasks.
    pub task_weights: TaskWeights,
    /// Which regions pre-training's object and attribute losses cover.
    pub region_losses: RegionLosses,
    /// The epoch, counted from 0, in which pre-training begins to learn answers.
    pub answers_from_epoch: u64,
    /// The target of the answer loss.
    pub answer_loss: AnswerLoss,
    /// The validation measure that chooses the best epoch, as `set/measure`.
    pub metric: String,
    /// Stop after this many epochs without improvement.
    pub patience: Option<u64>,
    /// Keep the checkpoint of every so many epochs.
    pub keep_every: Option<u64>,
    /// Number of test images in retrieval; 0 to omit it.
    pub recall_images: usize,
    /// Seed of weights, pairs, order and dropout.
    pub seed: u64,
}

impl Recipe {
    /// For real photos: the student project's size, batch and epochs, with a learning rate for random initial weights.
    pub fn photos() -> Self {
        Self {
            task: "matching".into(),
            config: Some("small".into()),
            cross_layer: None,
            init: None,
            allow_missing: Vec::new(),
            dropout: 0.1,
            initializer_range: 0.02,
            max_length: 50,
            regions: None,
            batch_size: 32,
            accumulate: 1,
            epochs: 10,
            steps: None,
            optimiser: Optimiser::AdamW,
            learning_rate: 1e-4,
            warmup: 0.1,
            schedule: Decay::Linear,
            freeze: Vec::new(),
            lr_scale: Vec::new(),
            ema: None,
            weight_decay: 0.01,
            decay_all: false,
            clip: 1.0,
            precision: Precision::F32,
            freeze_padding_rows: false,
            hard_negatives: 0.5,
            masked_words: 0.0,
            alignment: 0.0,
            task_weights: TaskWeights::default(),
            region_losses: RegionLosses::Masked,
            answers_from_epoch: 0,
            answer_loss: AnswerLoss::Scores,
            metric: "random/accuracy".into(),
            patience: None,
            keep_every: None,
            recall_images: 1000,
            seed: 0,
        }
    }

    /// For the generated scenes: trains in minutes on two cores (results in the model card).
    pub fn scenes() -> Self {
        Self {
            config: Some("tiny".into()),
            dropout: 0.0,
            initializer_range: 0.05,
            batch_size: 64,
            learning_rate: 1e-3,
            epochs: 13,
            alignment: 1.0,
            metric: "hard/accuracy".into(),
            ..Self::photos()
        }
    }

    /// The original's settings for fine-tuning on real photos (Tan & Bansal 2019, §4.2): the published size, meant to
    /// start from a pre-trained checkpoint with `--init`.
    pub fn fine_tuning() -> Self {
        Self {
            config: Some("base".into()),
            max_length: 20,
            epochs: 4,
            optimiser: Optimiser::BertAdam,
            decay_all: true,
            learning_rate: 5e-5,
            clip: 5.0,
            ..Self::photos()
        }
    }

    /// The recipe that most fine-tuning tasks start from: [`Recipe::fine_tuning`], or the scenes' at half of matching's
    /// rate. At matching's own rate, a pre-trained checkpoint forgets what it has learnt in the first epoch.
    pub fn fine_tuning_for(suits: Suits) -> Self {
        match suits {
            Suits::Scenes => Self { learning_rate: 5e-4, epochs: 10, ..Self::scenes() },
            Suits::Photos => Self::photos(),
            Suits::Benchmark => Self::fine_tuning(),
        }
    }

    /// The same settings for another task, without the losses beside matching. `metric` chooses the best epoch.
    #[must_use]
    pub fn for_task(self, task: &str, metric: &str) -> Self {
        let (hard_negatives, masked_words, alignment) = (0.0, 0.0, 0.0);
        Self { task: task.into(), metric: metric.into(), hard_negatives, masked_words, alignment, ..self }
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> AdamWConfig {
        let base = match self.optimiser {
            Optimiser::AdamW => AdamWConfig::default(),
            Optimiser::BertAdam => AdamWConfig::bert_adam(),
        };
        AdamWConfig { weight_decay: self.weight_decay, decay_all: self.decay_all, ..base }
    }

    /// How many of an image's `stored` regions are used, best first.
    pub fn regions_of(&self, stored: usize) -> usize {
        self.regions.map_or(stored, |count| count.min(stored))
    }

    /// How a run by this recipe on this store's features prepares data for its model.
    pub fn preprocessing(&self, store: &FeatureStore) -> Preprocessing {
        let info = store.info();
        let regions = self.regions_of(info.regions);
        let select = info.settings.get("select").cloned();
        // Stated where it is not always the same.
        let range = info.settings.get("regions").and_then(|range| range.parse::<RegionCount>().ok());
        Preprocessing {
            max_length: self.max_length,
            regions,
            min_regions: range.map(|range| range.min.min(regions)),
            detector: info.detector.clone(),
            select: select.unwrap_or_else(|| Preprocessing::default().select),
        }
    }

    /// Examples per batch in evaluation, which keeps no activations for gradients.
    pub fn evaluation_batch(&self) -> usize {
        self.batch_size.max(64)
    }

    /// Checks that the settings are usable.
    ///
    /// # Errors
    /// Returns an error with the option's name and value.
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str, value: String, wanted: &str| Err(Error::Argument(format!("--{what} {value}: {wanted}")));
        for (name, value) in [("batch-size", self.batch_size), ("accumulate", self.accumulate)] {
            if value == 0 {
                return bad(name, "0".into(), "must be at least 1");
            }
        }
        for (name, value) in [("warmup", self.warmup), ("hard-negatives", self.hard_negatives)] {
            if !(0.0..=1.0).contains(&value) {
                return bad(name, value.to_string(), "must be a share from 0 to 1");
            }
        }
        for (name, value) in
            [("learning-rate", self.learning_rate), ("weight-decay", self.weight_decay), ("clip", self.clip)]
        {
            if !value.is_finite() || value < 0.0 {
                return bad(name, value.to_string(), "must be a number of at least 0");
            }
        }
        if self.epochs == 0 && self.steps.is_none() || self.steps == Some(0) {
            return Err(Error::Argument("--epochs or --steps must be at least 1".into()));
        }
        if let Some(decay) = self.ema.filter(|decay| !(0.0..1.0).contains(decay)) {
            return bad("ema", decay.to_string(), "must be at least 0 and below 1");
        }
        if self.keep_every == Some(0) {
            return bad("keep-every", "0".into(), "must be at least 1");
        }
        if self.max_length < 3 {
            return bad("max-length", self.max_length.to_string(), "must be at least 3: [CLS], a word, [SEP]");
        }
        if self.regions == Some(0) {
            return bad("regions", "0".into(), "must be at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_unusable_numbers_by_option() {
        let bad = Recipe { warmup: 2.0, ..Recipe::scenes() };
        assert!(bad.check().unwrap_err().to_string().contains("--warmup 2"));
        let bad = Recipe { learning_rate: f64::NAN, ..Recipe::scenes() };
        assert!(bad.check().unwrap_err().to_string().contains("--learning-rate"));
    }

    #[test]
    fn bert_adam_decays_biases_only_where_the_recipe_says_so() {
        let bert_adam = Recipe::fine_tuning().adamw();
        assert!(bert_adam.decay_all && !bert_adam.bias_correction);
        assert!(!Recipe { decay_all: false, ..Recipe::fine_tuning() }.adamw().decay_all);
    }
}
