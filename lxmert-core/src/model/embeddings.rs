//! Words with positions, regions with boxes (Tan & Bansal 2019, §2.1).

use super::Forward;
use super::layers::{LayerNorm, Linear};
use crate::config::LxmertConfig;
use crate::ops;
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

/// One embedding table.
fn table(rows: usize, config: &LxmertConfig, vb: VarBuilder) -> Result<Tensor> {
    let init = Init::Randn { mean: 0.0, stdev: config.initializer_range };
    vb.get_with_hints((rows, config.hidden_size), "weight", init)
}

/// Word, position and segment embeddings summed, before their layer norm. `ids`: `[batch, words]`.
/// Every segment is 0, as in all of LXMERT's tasks.
#[derive(Debug, Clone)]
pub(crate) struct WordTables {
    pub(crate) words: Tensor,
    positions: Tensor,
    segments: Tensor,
}

impl WordTables {
    pub(crate) fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            words: table(config.vocab_size, config, vb.pp("word_embeddings"))?,
            positions: table(config.max_position_embeddings, config, vb.pp("position_embeddings"))?,
            segments: table(config.type_vocab_size, config, vb.pp("token_type_embeddings"))?,
        })
    }

    pub(crate) fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (_, length) = ids.dims2()?;
        let longest = self.positions.dim(0)?;
        if length > longest {
            candle_core::bail!("sentences of {length} WordPieces; the model has {longest} positions");
        }
        let words = ops::embedding(&self.words, ids)?;
        let places = self.positions.narrow(0, 0, length)?.broadcast_add(&self.segments.narrow(0, 0, 1)?)?;
        words.broadcast_add(&places)
    }
}

/// The language stream's input (`lxmert.embeddings`).
#[derive(Debug, Clone)]
pub(crate) struct LanguageEmbeddings {
    pub(crate) tables: WordTables,
    layer_norm: LayerNorm,
    dropout: f32,
}

impl LanguageEmbeddings {
    pub(crate) fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, vb.pp("LayerNorm"))?,
            tables: WordTables::new(config, vb)?,
            dropout: config.hidden_dropout_prob,
        })
    }

    pub(crate) fn forward(&self, ids: &Tensor, run: &Forward) -> Result<Tensor> {
        let normed = self.layer_norm.forward(&self.tables.forward(ids)?)?;
        ops::dropout(&normed, self.dropout, run.rng)
    }
}

/// Average of projected features and projected boxes, each after its own layer norm
/// (`lxmert.encoder.visn_fc`).
#[derive(Debug, Clone)]
pub(crate) struct RegionEmbeddings {
    features: Linear,
    features_norm: LayerNorm,
    boxes: Linear,
    boxes_norm: LayerNorm,
    dropout: f32,
}

impl RegionEmbeddings {
    pub(crate) fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            features: Linear::new(config.visual_feat_dim, hidden, vb.pp("visn_fc"))?,
            features_norm: LayerNorm::new(hidden, eps, vb.pp("visn_layer_norm"))?,
            boxes: Linear::new(config.visual_pos_dim, hidden, vb.pp("box_fc"))?,
            boxes_norm: LayerNorm::new(hidden, eps, vb.pp("box_layer_norm"))?,
            dropout: config.hidden_dropout_prob,
        })
    }

    /// `features`: `[batch, regions, visual_feat_dim]`; `boxes`: `[batch, regions, 4]`.
    pub(crate) fn forward(&self, features: &Tensor, boxes: &Tensor, run: &Forward) -> Result<Tensor> {
        let features = self.features_norm.forward(&self.features.forward(features)?)?;
        let boxes = self.boxes_norm.forward(&self.boxes.forward(boxes)?)?;
        ops::dropout(&((features + boxes)? / 2.0)?, self.dropout, run.rng)
    }
}
