//! Every knob of a run in one place, and the recipes that a bare command uses.

use crate::data::paths::Data;
use crate::optim::AdamWConfig;
use crate::tasks::TaskKind;
use crate::tasks::pretraining::data::TaskWeights;
use crate::tasks::pretraining::regions::RegionLosses;
use crate::{Error, Result};
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::ops::Precision;
use serde::{Deserialize, Serialize};

/// The optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Optimiser {
    /// With bias correction; biases and norms do not decay.
    #[value(name = "adamw")]
    AdamW,
    /// The original's: no bias correction, everything decays, the first step has a rate of 0.
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
}

/// What an answer to a question is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AnswerLoss {
    /// Every answer's score: binary cross entropy, as the original does.
    #[default]
    Scores,
    /// The best answer alone: cross entropy, the original's option for GQA.
    One,
}

/// The recipes that `--recipe` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum NamedRecipe {
    /// Matching on the generated scenes
    Scenes,
    /// Matching on captioned photos, small model
    Photos,
    /// The paper's pre-training: 20 epochs of batches of 256 at 1e-4
    PaperPretrain,
    /// The original's VQA: 4 epochs of batches of 32 at 5e-5
    PaperVqa,
    /// The original's GQA: 4 epochs of batches of 32 at 1e-5
    PaperGqa,
    /// The original's NLVR2: 4 epochs of batches of 32 at 5e-5
    PaperNlvr2,
    /// ViLBERT's four-way retrieval: 20 epochs of 64 groups of four pairs at 2e-5
    PaperRetrieval,
}

impl NamedRecipe {
    /// Its numbers.
    pub fn recipe(self) -> Recipe {
        match self {
            Self::Scenes => Recipe::scenes(),
            Self::Photos => Recipe::photos(),
            Self::PaperPretrain => Recipe::paper_pretraining(),
            Self::PaperVqa => Recipe::fine_tuning(TaskKind::Questions),
            Self::PaperGqa => Recipe { learning_rate: 1e-5, ..Recipe::fine_tuning(TaskKind::Questions) },
            Self::PaperNlvr2 => Recipe::fine_tuning(TaskKind::Statements),
            Self::PaperRetrieval => Recipe {
                epochs: 20,
                batch_size: 64,
                learning_rate: 2e-5,
                optimiser: Optimiser::AdamW,
                clip: 1.0,
                max_length: 36,
                ..Recipe::fine_tuning(TaskKind::Retrieval)
            },
        }
    }
}

/// What is trained and how; two runs with equal recipes, data and thread counts end with equal
/// weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What is trained.
    pub task: TaskKind,
    /// The model's size: `tiny`, `small` or `base`.
    pub preset: String,
    /// How the two streams meet.
    pub cross_layer: CrossLayer,
    /// A checkpoint to start from; none starts from random weights.
    pub init: Option<String>,
    /// Weights that this checkpoint may lack, by patterns (`*` any characters, `?` one); they start fresh.
    #[serde(default)]
    pub allow_missing: Vec<String>,
    /// Dropout of hidden states and of attention probabilities.
    pub dropout: f32,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included.
    pub max_length: usize,
    /// Regions per image, best first; none for all that the store holds.
    pub regions: Option<usize>,
    /// Pairs per batch.
    pub batch_size: usize,
    /// Batches per optimiser step.
    pub accumulate: usize,
    /// Passes over the training captions.
    pub epochs: u64,
    /// Optimiser steps instead of epochs.
    pub steps: Option<u64>,
    /// Which optimiser.
    pub optimiser: Optimiser,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the steps over which the rate rises to its peak.
    pub warmup: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether biases and norms decay too.
    pub decay_all: bool,
    /// Largest global gradient norm; 0 does not clip.
    pub clip: f64,
    /// What the products of the encoders' layers round their operands to in training; weights, optimiser and evaluation are
    /// f32.
    #[serde(default)]
    pub precision: Precision,
    /// Whether row 0 of the position and segment tables gets no gradient, as in the original, where it is torch's padding
    /// row, though it is `[CLS]`'s position and the only segment.
    pub freeze_padding_rows: bool,
    /// Share of the mismatched training pairs that are hard.
    pub hard_negatives: f64,
    /// Weight of the masked-word loss beside the matching loss; 0 leaves it out.
    pub masked_words: f64,
    /// Weight of the word-region alignment loss beside the matching loss; 0 leaves it out.
    pub alignment: f64,
    /// Weights of the pre-training tasks.
    pub task_weights: TaskWeights,
    /// Over which regions pre-training's object and attribute losses run.
    pub region_losses: RegionLosses,
    /// The epoch, from 0, in which pre-training begins to learn answers.
    pub answers_from_epoch: u64,
    /// What answers to questions are compared with.
    pub answer_loss: AnswerLoss,
    /// The validation measure that chooses the best epoch, as `set/measure`.
    pub metric: String,
    /// Stop after this many epochs without a better one.
    pub patience: Option<u64>,
    /// Test images that take part in retrieval; 0 leaves it out.
    pub recall_images: usize,
    /// Seed of weights, pairs, order and dropout.
    pub seed: u64,
}

impl Recipe {
    /// For real photos: the student project's size, batch and epochs, with a rate that suits
    /// training from random weights.
    pub fn photos() -> Self {
        Self {
            task: TaskKind::Matching,
            preset: "small".into(),
            cross_layer: CrossLayer::Lxmert,
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
            recall_images: 1000,
            seed: 0,
        }
    }

    /// For the generated scenes: minutes on two cores (measurements in the model card).
    pub fn scenes() -> Self {
        Self {
            preset: "tiny".into(),
            dropout: 0.0,
            initializer_range: 0.05,
            batch_size: 64,
            learning_rate: 1e-3,
            alignment: 1.0,
            metric: "hard/accuracy".into(),
            ..Self::photos()
        }
    }

    /// The generated scenes' recipe for a task. The rate of questions and statements is half of matching's: with that, a
    /// checkpoint to start from loses what it knows in the first epoch.
    #[must_use]
    pub fn scenes_for(task: TaskKind) -> Self {
        let scenes = Self::scenes().for_task(task);
        match task {
            TaskKind::Questions | TaskKind::Statements | TaskKind::Retrieval => Self { learning_rate: 5e-4, ..scenes },
            _ => scenes,
        }
    }

    /// The original's recipe for a task on real photos (Tan & Bansal 2019, §4.2; VQA and NLVR2, for GQA with a rate of
    /// 1e-5): the published size, to be started from a pre-trained checkpoint by `--init`.
    #[must_use]
    pub fn fine_tuning(task: TaskKind) -> Self {
        Self {
            preset: "base".into(),
            max_length: 20,
            epochs: 4,
            optimiser: Optimiser::BertAdam,
            learning_rate: 5e-5,
            clip: 5.0,
            ..Self::photos()
        }
        .for_task(task)
    }

    /// The paper's pre-training (§4.2 and appendix): the published size from random weights, 20 epochs of batches of 256,
    /// answers learnt in the last ten with twice the weight.
    pub fn paper_pretraining() -> Self {
        Self {
            preset: "base".into(),
            max_length: 20,
            batch_size: 256,
            epochs: 20,
            optimiser: Optimiser::BertAdam,
            learning_rate: 1e-4,
            warmup: 0.05,
            freeze_padding_rows: true,
            task_weights: TaskWeights { answers: 2.0, ..TaskWeights::default() },
            answers_from_epoch: 10,
            ..Self::photos()
        }
        .for_task(TaskKind::Pretraining)
    }

    /// The same recipe for another task: its measure chooses the best epoch, and what learns beside matching is left out.
    #[must_use]
    pub fn for_task(self, task: TaskKind) -> Self {
        match task {
            TaskKind::Matching => self,
            TaskKind::Retrieval => Self { task, masked_words: 0.0, alignment: 0.0, ..self },
            TaskKind::Pretraining => Self { task, metric: "all/loss".into(), ..self },
            TaskKind::Questions | TaskKind::Statements => Self {
                task,
                hard_negatives: 0.0,
                masked_words: 0.0,
                alignment: 0.0,
                metric: "all/accuracy".into(),
                ..self
            },
        }
    }

    /// The model of this recipe for regions of width `feature_dim`.
    ///
    /// # Errors
    /// When the preset is unknown or a value does not fit.
    pub fn model(&self, feature_dim: usize) -> Result<LxmertConfig> {
        let config = LxmertConfig {
            visual_feat_dim: feature_dim,
            hidden_dropout_prob: self.dropout,
            attention_probs_dropout_prob: self.dropout,
            initializer_range: self.initializer_range,
            cross_layer: self.cross_layer,
            ..LxmertConfig::preset(&self.preset)?
        };
        config.check()?;
        Ok(config)
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> AdamWConfig {
        let base = match self.optimiser {
            Optimiser::AdamW => AdamWConfig { decay_all: self.decay_all, ..AdamWConfig::default() },
            Optimiser::BertAdam => AdamWConfig::bert_adam(),
        };
        AdamWConfig { weight_decay: self.weight_decay, ..base }
    }

    /// How many of the `stored` regions of an image are used, best first.
    pub fn regions_of(&self, stored: usize) -> usize {
        self.regions.map_or(stored, |count| count.min(stored))
    }

    /// Examples per batch without gradients, which need no room for them.
    pub fn evaluation_batch(&self) -> usize {
        self.batch_size.max(64)
    }

    /// Whether the numbers can be used.
    ///
    /// # Errors
    /// With the option's name and value.
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str, value: String, wanted: &str| Err(Error::Argument(format!("--{what} {value}: {wanted}")));
        for (name, value) in [("batch-size", self.batch_size), ("accumulate", self.accumulate)] {
            if value == 0 {
                return bad(name, "0".into(), "at least 1 is needed");
            }
        }
        for (name, value) in [("warmup", self.warmup), ("hard-negatives", self.hard_negatives)] {
            if !(0.0..=1.0).contains(&value) {
                return bad(name, value.to_string(), "a share from 0 to 1 is needed");
            }
        }
        for (name, value) in
            [("learning-rate", self.learning_rate), ("weight-decay", self.weight_decay), ("clip", self.clip)]
        {
            if !value.is_finite() || value < 0.0 {
                return bad(name, value.to_string(), "a number of at least 0 is needed");
            }
        }
        if self.epochs == 0 && self.steps.is_none() || self.steps == Some(0) {
            return Err(Error::Argument("at least one epoch or step is needed".into()));
        }
        if self.max_length < 3 {
            return bad("max-length", self.max_length.to_string(), "at least 3 is needed: [CLS], a word, [SEP]");
        }
        if self.regions == Some(0) {
            return bad("regions", "0".into(), "at least 1 is needed");
        }
        Ok(())
    }
}

/// Flags that change a recipe; what is not given keeps the recipe's value.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RecipeArgs {
    /// Model size: tiny, small or base
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(LxmertConfig::PRESETS), help_heading = "Model")]
    pub preset: Option<String>,
    /// Cross-modality layer: lxmert (shared, parallel) or student (separate, sequential)
    #[arg(long, value_parser = parse_cross_layer, value_name = "KIND", help_heading = "Model")]
    pub cross_layer: Option<CrossLayer>,
    /// Start from this checkpoint: a folder, a run folder or a file, of ours, of the hub's or of the original's, or
    /// hf:owner/repo or hf:owner/repo@revision; BERT's weights start the language encoder
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Model")]
    pub init: Option<String>,
    /// Let weights of this name start fresh if the --init checkpoint lacks them (* is any characters); may be repeated
    #[arg(long, value_name = "PATTERN", requires = "init", help_heading = "Model")]
    pub allow_missing: Vec<String>,
    /// Dropout of hidden states and attention probabilities
    #[arg(long, help_heading = "Model")]
    pub dropout: Option<f32>,
    /// Standard deviation of fresh weights
    #[arg(long, help_heading = "Model")]
    pub initializer_range: Option<f64>,
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included
    #[arg(long, help_heading = "Model")]
    pub max_length: Option<usize>,
    /// Use the first N regions of each image, best first [default: all in the store]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub regions: Option<usize>,
    /// Pairs per batch
    #[arg(long, help_heading = "Optimisation")]
    pub batch_size: Option<usize>,
    /// Batches per optimiser step (gradient accumulation)
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub accumulate: Option<usize>,
    /// Passes over the training captions
    #[arg(long, help_heading = "Optimisation")]
    pub epochs: Option<u64>,
    /// Optimiser steps, instead of epochs
    #[arg(long, conflicts_with = "epochs", help_heading = "Optimisation")]
    pub steps: Option<u64>,
    /// Optimiser: adamw, or the original's bert-adam
    #[arg(long, value_enum, help_heading = "Optimisation")]
    pub optimiser: Option<Optimiser>,
    /// Peak learning rate
    #[arg(long, visible_alias = "lr", help_heading = "Optimisation")]
    pub learning_rate: Option<f64>,
    /// Share of the steps over which the learning rate rises to its peak, before it falls to 0
    #[arg(long, help_heading = "Optimisation")]
    pub warmup: Option<f64>,
    /// Weight decay
    #[arg(long, help_heading = "Optimisation")]
    pub weight_decay: Option<f64>,
    /// Decay biases and norms too
    #[arg(long, help_heading = "Optimisation")]
    pub decay_all: bool,
    /// Largest global gradient norm; 0 does not clip
    #[arg(long, help_heading = "Optimisation")]
    pub clip: Option<f64>,
    /// Products of the encoders' layers in f32, or mixed precision: operands rounded to bf16, sums, weights and optimiser f32
    #[arg(long, value_name = "f32|bf16", help_heading = "Optimisation")]
    pub precision: Option<Precision>,
    /// No gradient for row 0 of the position and segment tables, as in the original
    #[arg(long, help_heading = "Optimisation")]
    pub freeze_padding_rows: bool,
    /// Share of the mismatched training pairs taken from hard_negatives.csv, where there is one
    #[arg(long, value_name = "FRACTION", help_heading = "Optimisation")]
    pub hard_negatives: Option<f64>,
    /// Weight of a masked-word loss beside the matching loss: guess 15 % of the words from the rest
    /// and the image
    #[arg(long, value_name = "WEIGHT", help_heading = "Optimisation")]
    pub masked_words: Option<f64>,
    /// Weight of a contrastive loss that aligns words with regions before the streams meet
    #[arg(long, value_name = "WEIGHT", help_heading = "Optimisation")]
    pub alignment: Option<f64>,
    /// Weights of the pre-training tasks words, matching, objects, attributes, features and answers, such as
    /// answers=0,words=2; a task that is not named has weight 1, one of weight 0 is left out
    #[arg(long, value_name = "TASK=WEIGHT,…", help_heading = "Pre-training")]
    pub task_weights: Option<TaskWeights>,
    /// Object and attribute losses over the masked regions (the paper), over all as the released code, or the masked
    /// regions' mean
    #[arg(long, value_enum, value_name = "masked|original|per-masked", help_heading = "Pre-training")]
    pub losses: Option<RegionLosses>,
    /// Learn answers from this epoch on, counted from 0; the paper: the last ten of twenty
    #[arg(long, value_name = "EPOCH", help_heading = "Pre-training")]
    pub answers_from_epoch: Option<u64>,
    /// Compare answers with every answer's score, or with the best one alone (the original's --mceLoss for GQA)
    #[arg(long, value_enum, value_name = "scores|one", help_heading = "Optimisation")]
    pub answer_loss: Option<AnswerLoss>,
    /// Validation measure that chooses the best epoch, such as random/loss or hard/accuracy
    #[arg(long, value_name = "SET/MEASURE", help_heading = "Evaluation")]
    pub metric: Option<String>,
    /// Stop early after N epochs without a better one [default: never]
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub patience: Option<u64>,
    /// Test images that take part in retrieval, each with each caption; 0 leaves it out
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub recall_images: Option<usize>,
}

fn parse_cross_layer(text: &str) -> std::result::Result<CrossLayer, String> {
    match text {
        "lxmert" => Ok(CrossLayer::Lxmert),
        "student" => Ok(CrossLayer::Student),
        _ => Err("expected lxmert or student".into()),
    }
}

impl RecipeArgs {
    /// `base` with the given flags put in.
    pub fn apply(&self, base: Recipe) -> Recipe {
        let a = self.clone();
        Recipe {
            task: base.task,
            preset: a.preset.unwrap_or(base.preset),
            cross_layer: a.cross_layer.unwrap_or(base.cross_layer),
            init: a.init.or(base.init),
            allow_missing: if a.allow_missing.is_empty() { base.allow_missing } else { a.allow_missing },
            dropout: a.dropout.unwrap_or(base.dropout),
            initializer_range: a.initializer_range.unwrap_or(base.initializer_range),
            max_length: a.max_length.unwrap_or(base.max_length),
            regions: a.regions.or(base.regions),
            batch_size: a.batch_size.unwrap_or(base.batch_size),
            accumulate: a.accumulate.unwrap_or(base.accumulate),
            epochs: a.epochs.unwrap_or(base.epochs),
            steps: if a.epochs.is_some() { None } else { a.steps.or(base.steps) },
            optimiser: a.optimiser.unwrap_or(base.optimiser),
            learning_rate: a.learning_rate.unwrap_or(base.learning_rate),
            warmup: a.warmup.unwrap_or(base.warmup),
            weight_decay: a.weight_decay.unwrap_or(base.weight_decay),
            decay_all: a.decay_all || base.decay_all,
            clip: a.clip.unwrap_or(base.clip),
            precision: a.precision.unwrap_or(base.precision),
            freeze_padding_rows: a.freeze_padding_rows || base.freeze_padding_rows,
            hard_negatives: a.hard_negatives.unwrap_or(base.hard_negatives),
            masked_words: a.masked_words.unwrap_or(base.masked_words),
            alignment: a.alignment.unwrap_or(base.alignment),
            task_weights: a.task_weights.unwrap_or(base.task_weights),
            region_losses: a.losses.unwrap_or(base.region_losses),
            answers_from_epoch: a.answers_from_epoch.unwrap_or(base.answers_from_epoch),
            answer_loss: a.answer_loss.unwrap_or(base.answer_loss),
            metric: a.metric.unwrap_or(base.metric),
            patience: a.patience.or(base.patience),
            recall_images: a.recall_images.unwrap_or(base.recall_images),
            seed: base.seed,
        }
    }
}

/// What a run folder was made with, kept in its `run.json`: a run goes on only with the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// What is trained and how.
    pub recipe: Recipe,
    /// The data.
    pub data: Data,
    /// sha256 of the caption, split and hard-negative files and of the store's index.
    pub data_sha256: String,
}

impl RunSettings {
    /// One line per setting in which a run (`self`) differs from what is now asked for.
    pub fn differences(&self, asked: &Self) -> Vec<String> {
        let (Ok(old), Ok(new)) = (serde_json::to_value(self), serde_json::to_value(asked)) else { return Vec::new() };
        let mut lines = Vec::new();
        compare("", &old, &new, &mut lines);
        lines
    }
}

fn compare(name: &str, old: &serde_json::Value, new: &serde_json::Value, lines: &mut Vec<String>) {
    match (old.as_object(), new.as_object()) {
        (Some(o), Some(n)) => {
            for (key, value) in o {
                compare(key, value, n.get(key).unwrap_or(&serde_json::Value::Null), lines);
            }
        }
        _ if old != new => {
            lines.push(format!("  {}: the run has {old}, the command says {new}", name.replace('_', "-")))
        }
        _ => {}
    }
}

/// sha256 over the files that say what the data is.
///
/// # Errors
/// When one cannot be read.
pub fn data_fingerprint(data: &Data) -> Result<String> {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    for path in data.files() {
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(lxmert_core::files::hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::paths::DataPaths;

    #[test]
    fn differing_settings_are_named_with_both_values() {
        let data = |features: &str| {
            Data::Captions(DataPaths {
                name: "x".into(),
                captions: "c".into(),
                splits: None,
                hard_negatives: None,
                features: features.into(),
            })
        };
        let run = RunSettings { recipe: Recipe::scenes(), data: data("f"), data_sha256: "0".into() };
        let mut asked = run.clone();
        assert!(run.differences(&asked).is_empty());
        asked.recipe.learning_rate = 0.25;
        asked.data = data("g");
        let lines = run.differences(&asked).join("\n");
        assert!(lines.contains("learning-rate: the run has 0.001, the command says 0.25"), "{lines}");
        assert!(lines.contains("features: the run has \"f\", the command says \"g\""), "{lines}");
    }

    #[test]
    fn flags_change_only_what_they_name() {
        let args = RecipeArgs { epochs: Some(3), ..Default::default() };
        assert_eq!(args.apply(Recipe::scenes()), Recipe { epochs: 3, ..Recipe::scenes() });
    }

    #[test]
    fn unusable_numbers_are_refused_by_option() {
        let bad = Recipe { warmup: 2.0, ..Recipe::scenes() };
        assert!(bad.check().unwrap_err().to_string().contains("--warmup 2"));
        let bad = Recipe { learning_rate: f64::NAN, ..Recipe::scenes() };
        assert!(bad.check().unwrap_err().to_string().contains("--learning-rate"));
    }
}
