//! Where a run's model comes from, before its data is known: the configuration, the vocabulary, and the checkpoint it
//! starts from.

use crate::recipe::Recipe;
use crate::{Error, Result};
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::pretrained::{Pretrained, configuration};
use lxmert_core::text::WordPiece;
use std::path::Path;

/// Where a run's model comes from.
#[derive(Debug)]
pub struct Origin {
    /// The tokeniser: the initial checkpoint's, otherwise the one beside the `config.json`, otherwise the bundled one.
    pub text: WordPiece,
    /// The initial checkpoint; `None` for fresh weights.
    pub checkpoint: Option<Pretrained>,
    config: LxmertConfig,
}

impl Origin {
    /// The origin of a run by `recipe`. A resumed run uses the configuration and the vocabulary of its own `last`
    /// checkpoint; its initial checkpoint need not exist any more.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged, `--config` and `--init` disagree, or the recipe's sentences
    /// are too long for the model.
    pub fn open(recipe: &Recipe, last: Option<&Path>) -> Result<Self> {
        let place = last.or(recipe.init.as_deref().map(Path::new));
        let checkpoint = place.map(Pretrained::open).transpose()?;
        let asked = recipe.config.as_deref().map(configuration).transpose()?.map(|(config, text)| {
            let cross_layer = recipe.cross_layer.unwrap_or(config.cross_layer);
            (LxmertConfig { cross_layer, ..config }, text)
        });
        let (config, text) = match (&checkpoint, asked) {
            (Some(checkpoint), asked) => {
                let config = checkpoint.start(asked.map(|(config, _)| config)).map_err(|error| {
                    Error::Argument(format!(
                        "--init {error}; without --config and --preset the model takes the checkpoint's configuration"
                    ))
                })?;
                (config, checkpoint.text.clone())
            }
            (None, Some(asked)) => asked,
            (None, None) => {
                return Err(Error::Argument("--config: pass a preset, a config.json or a checkpoint with one".into()));
            }
        };
        if recipe.cross_layer.is_some_and(|asked| asked != config.cross_layer) {
            return Err(Error::Argument(
                "--cross-layer: the checkpoint of --init has the other kind; omit this option".into(),
            ));
        }
        let positions = config.max_position_embeddings;
        if recipe.max_length > positions {
            let longest = recipe.max_length;
            return Err(Error::Argument(format!("--max-length {longest}: the model has only {positions} positions")));
        }
        let config = LxmertConfig {
            hidden_dropout_prob: recipe.dropout,
            attention_probs_dropout_prob: recipe.dropout,
            initializer_range: recipe.initializer_range,
            ..config
        };
        Ok(Self { text, checkpoint, config })
    }

    /// The configuration of the model for regions of width `feature_dim`.
    ///
    /// # Errors
    /// Returns an error if its numbers do not fit together.
    pub fn config(&self, feature_dim: usize) -> Result<LxmertConfig> {
        let config = LxmertConfig { visual_feat_dim: feature_dim, ..self.config.clone() };
        config.check()?;
        Ok(config)
    }

    /// [`Origin::config`] for a task that needs a head other than matching, which the student project's variant does
    /// not have.
    ///
    /// # Errors
    /// As [`Origin::config`]; also for that variant.
    pub fn lxmert_config(&self, feature_dim: usize, task: &str) -> Result<LxmertConfig> {
        match self.config.cross_layer {
            CrossLayer::Lxmert => self.config(feature_dim),
            CrossLayer::Student => Err(Error::Argument(format!(
                "--cross-layer student: this variant has only a matching head and cannot train {task}"
            ))),
        }
    }
}
