//! Words with positions, regions with boxes (Tan & Bansal 2019, §2.1).

use super::layers::{LayerNorm, Linear};
use super::{Pass, Stream};
use crate::config::LxmertConfig;
use crate::ops::{self, Ragged};
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

/// The language stream's input: the sum of word, position and segment embeddings, then layer norm and dropout. Every
/// segment is 0, as in all of LXMERT's tasks.
#[derive(Debug, Clone)]
pub(super) struct LanguageEmbeddings {
    pub words: Tensor,
    positions: Tensor,
    segments: Tensor,
    layer_norm: LayerNorm,
    dropout: f32,
}

impl LanguageEmbeddings {
    /// The tables under `vb`.
    pub fn new(config: &LxmertConfig, layer_norm: LayerNorm, dropout: f32, vb: VarBuilder) -> Result<Self> {
        let table = |rows: usize, name: &str| {
            let init = Init::Randn { mean: 0.0, stdev: config.initializer_range };
            vb.pp(name).get_with_hints((rows, config.hidden_size), "weight", init)
        };
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.max_position_embeddings, "position_embeddings")?,
            segments: table(config.type_vocab_size, "token_type_embeddings")?,
            layer_norm,
            dropout,
        })
    }

    /// `ids`: `[batch, words]`.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>, pass: &Pass) -> Result<Stream> {
        let rows = rows_of(ids, mask)?;
        let (length, longest) = (rows.length(), self.positions.dim(0)?);
        if length > longest {
            candle_core::bail!("sentences of {length} WordPieces; the model has {longest} positions");
        }
        let words = ops::embedding(&self.words, &rows.gather(ids)?)?;
        let places = self.positions.narrow(0, 0, length)?.broadcast_add(&self.segments.narrow(0, 0, 1)?)?;
        let sum = (words + ops::embedding(&places, &rows.places(ids.device())?)?)?; // [rows, hidden]
        let normed = self.layer_norm.forward(&sum)?;
        Ok(Stream::new(ops::dropout_rows(&normed, &rows, self.dropout, pass.rng)?, rows))
    }
}

/// The vision stream's input: projected features and projected boxes, fused.
#[derive(Debug, Clone)]
pub(super) struct RegionEmbeddings {
    pub features: Linear,
    pub boxes: Linear,
    pub fusion: Fusion,
}

/// How to fuse a region's projected features and projected box.
#[derive(Debug, Clone)]
pub(super) enum Fusion {
    /// Average them, each after its own layer norm, with dropout (`lxmert.encoder.visn_fc`).
    Average { features_norm: LayerNorm, boxes_norm: LayerNorm, dropout: f32 },
    /// Add them, then apply one layer norm (the student project's).
    Sum(LayerNorm),
}

impl RegionEmbeddings {
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            features: Linear::new(config.visual_feat_dim, hidden, vb.pp("visn_fc"))?,
            boxes: Linear::new(config.visual_pos_dim, hidden, vb.pp("box_fc"))?,
            fusion: Fusion::Average {
                features_norm: LayerNorm::new(hidden, eps, vb.pp("visn_layer_norm"))?,
                boxes_norm: LayerNorm::new(hidden, eps, vb.pp("box_layer_norm"))?,
                dropout: config.hidden_dropout_prob,
            },
        })
    }

    /// `features`: `[batch, regions, visual_feat_dim]`; `boxes`: `[batch, regions, 4]`.
    pub fn forward(&self, features: &Tensor, boxes: &Tensor, mask: Option<&Tensor>, pass: &Pass) -> Result<Stream> {
        let rows = rows_of(features, mask)?;
        let features = self.features.forward(&rows.gather(features)?)?;
        let boxes = self.boxes.forward(&rows.gather(boxes)?)?;
        let states = match &self.fusion {
            Fusion::Average { features_norm, boxes_norm, dropout } => {
                let states = ((features_norm.forward(&features)? + boxes_norm.forward(&boxes)?)? / 2.0)?;
                ops::dropout_rows(&states, &rows, *dropout, pass.rng)?
            }
            Fusion::Sum(norm) => norm.forward(&(features + boxes)?)?,
        };
        Ok(Stream::new(states, rows))
    }
}

/// The positions of the real rows of `x`, `[batch, length, …]`. `mask`: `[batch, length]`.
fn rows_of(x: &Tensor, mask: Option<&Tensor>) -> Result<Ragged> {
    match mask {
        Some(mask) => Ragged::of_mask(mask),
        None => Ok(Ragged::dense(x.dim(0)?, x.dim(1)?)),
    }
}
