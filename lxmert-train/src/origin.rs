//! What a run's model is made of before its data is known: the configuration, the vocabulary, and the checkpoint that it
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
    /// The tokeniser: that of the checkpoint to start from, or the one beside the `config.json`, else the bundled one.
    pub text: WordPiece,
    /// The checkpoint to start from; none for fresh weights.
    pub checkpoint: Option<Pretrained>,
    config: LxmertConfig,
}

impl Origin {
    /// The origin of a run by `recipe`. A resumed run takes the configuration and the vocabulary of its own `last`
    /// checkpoint; the one that it started from need not exist any more.
    ///
    /// # Errors
    /// When a file is missing or damaged, `--config` and `--init` disagree, or the model cannot take a sentence as long as
    /// the recipe's.
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
                        "--init {error}; without --config and --preset the model is the checkpoint's"
                    ))
                })?;
                (config, checkpoint.text.clone())
            }
            (None, Some(asked)) => asked,
            (None, None) => {
                return Err(Error::Argument("--config: name a preset, a config.json or a checkpoint with one".into()));
            }
        };
        if recipe.cross_layer.is_some_and(|asked| asked != config.cross_layer) {
            return Err(Error::Argument(
                "--cross-layer: the checkpoint of --init has the other kind; leave this out".into(),
            ));
        }
        let positions = config.max_position_embeddings;
        if recipe.max_length > positions {
            let longest = recipe.max_length;
            return Err(Error::Argument(format!(
                "--max-length {longest}: the model has {positions} positions at most"
            )));
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
    /// When its numbers do not fit together.
    pub fn config(&self, feature_dim: usize) -> Result<LxmertConfig> {
        let config = LxmertConfig { visual_feat_dim: feature_dim, ..self.config.clone() };
        config.check()?;
        Ok(config)
    }

    /// [`Origin::config`] for a task whose head the student project's variant lacks: that variant has a matching head alone.
    ///
    /// # Errors
    /// As [`Origin::config`], and for that variant.
    pub fn lxmert_config(&self, feature_dim: usize, task: &str) -> Result<LxmertConfig> {
        match self.config.cross_layer {
            CrossLayer::Lxmert => self.config(feature_dim),
            CrossLayer::Student => Err(Error::Argument(format!(
                "--cross-layer student: this variant has a matching head alone and cannot train {task}"
            ))),
        }
    }
}
