//! Flags that change single settings of a recipe.

use crate::recipe::{AnswerLoss, Optimiser, Recipe, RegionLosses};
use crate::task_weights::WeightChanges;
use crate::trainable::RateScale;
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::ops::Precision;
use lxmert_core::optim::Decay;

/// Flags that change a recipe. Without a flag the recipe's value stays.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RecipeArgs {
    /// The model's configuration: a config.json in the hub's format, or a checkpoint with one (folder, run folder,
    /// hf:owner/repo) [default: that of --init, otherwise the recipe's]
    #[arg(long, value_name = "FILE|CHECKPOINT", help_heading = "Model")]
    pub config: Option<String>,
    /// A configuration by name: tiny, small or base
    #[arg(long, conflicts_with = "config", value_parser = clap::builder::PossibleValuesParser::new(LxmertConfig::PRESETS), help_heading = "Model")]
    pub preset: Option<String>,
    /// Cross-modality layer: lxmert (shared, parallel) or student (separate, sequential)
    #[arg(long, value_parser = parse_cross_layer, value_name = "KIND", help_heading = "Model")]
    pub cross_layer: Option<CrossLayer>,
    /// Start from this checkpoint, with its own configuration and vocabulary: a folder, a run folder or a file, of ours, of the
    /// hub's or of the original's, or hf:owner/repo or hf:owner/repo@revision; BERT's weights start the language encoder
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Model")]
    pub init: Option<String>,
    /// Let weights with this name start fresh if the --init checkpoint lacks them (* is any characters); may be
    /// repeated
    #[arg(long, value_name = "PATTERN", requires = "init", help_heading = "Model")]
    pub allow_missing: Vec<String>,
    /// Dropout of hidden states and attention probabilities
    #[arg(long, help_heading = "Model")]
    pub dropout: Option<f32>,
    /// Standard deviation of newly initialised weights
    #[arg(long, help_heading = "Model")]
    pub initializer_range: Option<f64>,
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included
    #[arg(long, help_heading = "Model")]
    pub max_length: Option<usize>,
    /// Use the first N regions of each image, best first [default: all in the store]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub regions: Option<usize>,
    /// Examples per batch, on whichever rank; without --accumulate those of a step, which the ranks share
    #[arg(long, help_heading = "Optimisation")]
    pub batch_size: Option<usize>,
    /// Batches per optimiser step (gradient accumulation), shared by the ranks; equal results on any number of ranks
    /// [default: the ranks]
    #[arg(long, value_name = "N", help_heading = "Optimisation")]
    pub accumulate: Option<usize>,
    /// Passes over the training examples
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
    /// Fraction of the steps during which the learning rate rises to its peak; then it falls by --schedule
    #[arg(long, help_heading = "Optimisation")]
    pub warmup: Option<f64>,
    /// How the learning rate changes after the warm-up: to 0 in a straight line, to 0 along half a cosine, or not at all
    #[arg(long, value_parser = parse_schedule, value_name = "linear|cosine|constant", help_heading = "Optimisation")]
    pub schedule: Option<Decay>,
    /// Freeze the weights whose names match PATTERN: no gradient, no decay (* matches any characters); may be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "Optimisation")]
    pub freeze: Vec<String>,
    /// Multiply the learning rate of the weights whose names match, as in lxmert.encoder.layer.*=0.5; may be repeated, and the
    /// last match counts
    #[arg(long, value_name = "PATTERN=FACTOR", help_heading = "Optimisation")]
    pub lr_scale: Vec<RateScale>,
    /// Evaluate and save an exponential moving average of the weights with this decay, for example 0.999
    #[arg(long, value_name = "DECAY", help_heading = "Optimisation")]
    pub ema: Option<f64>,
    /// Weight decay
    #[arg(long, help_heading = "Optimisation")]
    pub weight_decay: Option<f64>,
    /// Decay biases and norms too; =false turns it off [default: the recipe's; with --optimiser, true for bert-adam]
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimisation")]
    pub decay_all: Option<bool>,
    /// Limit of the global gradient norm; 0 for no limit
    #[arg(long, help_heading = "Optimisation")]
    pub clip: Option<f64>,
    /// Products of the encoders' layers in f32, or mixed precision: operands rounded to bf16, sums, weights and optimiser f32; or
    /// operands of all products, validation's too, rounded to tf32, on a GPU alone [default: the recipe's, f32]
    #[arg(long, value_name = "f32|tf32|bf16", help_heading = "Optimisation")]
    pub precision: Option<Precision>,
    /// No gradient for row 0 of the position and segment tables, as in the original; =false turns it off
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Optimisation")]
    pub freeze_padding_rows: Option<bool>,
    /// Fraction of the mismatched training pairs taken from hard_negatives.csv, if there is one
    #[arg(long, value_name = "FRACTION", help_heading = "Optimisation")]
    pub hard_negatives: Option<f64>,
    /// Weight of a masked-word loss beside the matching loss: predict 15 % of the words from the rest and the image
    #[arg(long, value_name = "WEIGHT", help_heading = "Optimisation")]
    pub masked_words: Option<f64>,
    /// Weight of a contrastive loss that aligns words with regions before the streams meet
    #[arg(long, value_name = "WEIGHT", help_heading = "Optimisation")]
    pub alignment: Option<f64>,
    /// Weights of the pre-training tasks words, matching, objects, attributes, features and answers, such as
    /// answers=0,words=2; a task that is not named keeps the recipe's weight, weight 0 switches it off
    #[arg(long, value_name = "TASK=WEIGHT,…", help_heading = "Pre-training")]
    pub task_weights: Option<WeightChanges>,
    /// Object and attribute losses over the masked regions (the paper), over all regions (the released code), or as the
    /// mean over masked regions
    #[arg(long, value_enum, value_name = "masked|original|per-masked", help_heading = "Pre-training")]
    pub losses: Option<RegionLosses>,
    /// Learn answers from this epoch on, counted from 0; in the paper, in the last ten of twenty
    #[arg(long, value_name = "EPOCH", help_heading = "Pre-training")]
    pub answers_from_epoch: Option<u64>,
    /// Train on every answer's score, or on the best answer only (the original's --mceLoss for GQA)
    #[arg(long, value_enum, value_name = "scores|one", help_heading = "Optimisation")]
    pub answer_loss: Option<AnswerLoss>,
    /// Validation measure that chooses the best epoch, such as random/loss or hard/accuracy
    #[arg(long, value_name = "SET/MEASURE", help_heading = "Evaluation")]
    pub metric: Option<String>,
    /// Stop early after N epochs without improvement [default: never]
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub patience: Option<u64>,
    /// Keep the checkpoint of every Nth epoch, as epoch-N in the run folder, beside best and last
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub keep_every: Option<u64>,
    /// Number of test images in retrieval, each with each caption; 0 to omit it
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub recall_images: Option<usize>,
}

fn parse_cross_layer(text: &str) -> Result<CrossLayer, String> {
    match text {
        "lxmert" => Ok(CrossLayer::Lxmert),
        "student" => Ok(CrossLayer::Student),
        _ => Err("expected lxmert or student".into()),
    }
}

fn parse_schedule(text: &str) -> Result<Decay, String> {
    match text {
        "linear" => Ok(Decay::Linear),
        "cosine" => Ok(Decay::Cosine),
        "constant" => Ok(Decay::Constant),
        _ => Err("expected linear, cosine or constant".into()),
    }
}

impl RecipeArgs {
    /// Applies the given flags to `base`.
    pub fn apply(&self, base: Recipe) -> Recipe {
        let a = self.clone();
        Recipe {
            task: base.task,
            // A recipe's own size is for fresh weights: an initial checkpoint brings its own configuration.
            config: a.config.or(a.preset).or(if a.init.is_some() { None } else { base.config }),
            cross_layer: a.cross_layer.or(base.cross_layer),
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
            schedule: a.schedule.unwrap_or(base.schedule),
            freeze: if a.freeze.is_empty() { base.freeze } else { a.freeze },
            lr_scale: if a.lr_scale.is_empty() { base.lr_scale } else { a.lr_scale },
            ema: a.ema.or(base.ema),
            weight_decay: a.weight_decay.unwrap_or(base.weight_decay),
            // Another optimiser brings its own convention, unless the flag overrides it.
            decay_all: a.decay_all.unwrap_or(a.optimiser.map_or(base.decay_all, Optimiser::decays_all)),
            clip: a.clip.unwrap_or(base.clip),
            precision: a.precision.unwrap_or(base.precision),
            freeze_padding_rows: a.freeze_padding_rows.unwrap_or(base.freeze_padding_rows),
            hard_negatives: a.hard_negatives.unwrap_or(base.hard_negatives),
            masked_words: a.masked_words.unwrap_or(base.masked_words),
            alignment: a.alignment.unwrap_or(base.alignment),
            task_weights: a.task_weights.map_or(base.task_weights, |changes| base.task_weights.changed(&changes)),
            region_losses: a.losses.unwrap_or(base.region_losses),
            answers_from_epoch: a.answers_from_epoch.unwrap_or(base.answers_from_epoch),
            answer_loss: a.answer_loss.unwrap_or(base.answer_loss),
            metric: a.metric.unwrap_or(base.metric),
            patience: a.patience.or(base.patience),
            keep_every: a.keep_every.or(base.keep_every),
            recall_images: a.recall_images.unwrap_or(base.recall_images),
            seed: base.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        recipe: RecipeArgs,
    }

    fn applied(flags: &[&str], base: Recipe) -> Recipe {
        let flags = ["train"].iter().chain(flags).copied();
        Flags::try_parse_from(flags).unwrap().recipe.apply(base)
    }

    #[test]
    fn flags_change_only_what_they_name() {
        assert_eq!(applied(&["--epochs", "3"], Recipe::scenes()), Recipe { epochs: 3, ..Recipe::scenes() });
    }

    #[test]
    fn an_initial_checkpoint_replaces_the_recipes_size_but_not_an_explicit_one() {
        let config = |flags: &[&str]| applied(flags, Recipe::scenes()).config;
        assert_eq!(config(&[]).as_deref(), Some("tiny"));
        assert_eq!(config(&["--init", "x"]), None);
        assert_eq!(config(&["--init", "x", "--preset", "small"]).as_deref(), Some("small"));
        assert_eq!(config(&["--init", "x", "--config", "c.json"]).as_deref(), Some("c.json"));
        assert!(Flags::try_parse_from(["train", "--preset", "tiny", "--config", "c.json"]).is_err());
    }

    #[test]
    fn switches_turn_on_and_off() {
        let on = Recipe { decay_all: true, freeze_padding_rows: true, ..Recipe::scenes() };
        let switches = |flags: &[&str], base: &Recipe| {
            let recipe = applied(flags, base.clone());
            (recipe.decay_all, recipe.freeze_padding_rows)
        };
        assert_eq!(switches(&[], &on), (true, true));
        assert_eq!(switches(&["--decay-all=false", "--freeze-padding-rows=false"], &on), (false, false));
        assert_eq!(switches(&["--decay-all", "--freeze-padding-rows"], &Recipe::scenes()), (true, true));
        // A chosen optimiser brings its own convention.
        assert_eq!(switches(&["--optimiser", "bert-adam"], &Recipe::scenes()), (true, false));
        assert_eq!(switches(&["--optimiser", "bert-adam", "--decay-all=false"], &Recipe::scenes()), (false, false));
        assert_eq!(switches(&["--optimiser", "adamw"], &Recipe::fine_tuning()), (false, false));
    }
}
