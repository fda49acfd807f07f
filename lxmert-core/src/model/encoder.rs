//! The trunk: embeddings, the two single-modality encoders, the cross-modality encoder, the pooler
//! (Tan & Bansal 2019, §2.2).

use super::embeddings::{LanguageEmbeddings, RegionEmbeddings};
use super::layers::{CrossModalityLayer, Layer, LayerNorm, Linear};
use super::{Attentions, Capture, LxmertInputs, LxmertOutput, Pass, Stream};
use crate::config::LxmertConfig;
use crate::ops::in_pool;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// The trunk: embeddings, both encoders, the cross-modality encoder, the pooler.
#[derive(Debug, Clone)]
pub struct LxmertModel {
    pub(super) embeddings: LanguageEmbeddings,
    pub(super) regions: RegionEmbeddings,
    pub(super) language_layers: Vec<Layer>,
    pub(super) vision_layers: Vec<Layer>,
    pub(super) cross_layers: Vec<CrossModalityLayer>,
    pub(super) pooler: Linear,
}

impl LxmertModel {
    /// Reads (or creates) the weights under `vb`, whose keys are those of the hub below `lxmert.`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let (encoder, embeddings) = (vb.pp("encoder"), vb.pp("embeddings"));
        let norm = LayerNorm::new(config.hidden_size, config.layer_norm_eps, embeddings.pp("LayerNorm"))?;
        let layers = |count: usize, name: &str| -> Result<Vec<Layer>> {
            (0..count).map(|i| Layer::new(config, encoder.pp(name).pp(i))).collect()
        };
        Ok(Self {
            embeddings: LanguageEmbeddings::new(config, norm, config.hidden_dropout_prob, embeddings)?,
            regions: RegionEmbeddings::new(config, encoder.pp("visn_fc"))?,
            language_layers: layers(config.l_layers, "layer")?,
            vision_layers: layers(config.r_layers, "r_layers")?,
            cross_layers: (0..config.x_layers)
                .map(|i| CrossModalityLayer::new(config, encoder.pp("x_layers").pp(i)))
                .collect::<Result<_>>()?,
            pooler: Linear::new(config.hidden_size, config.hidden_size, vb.pp("pooler").pp("dense"))?,
        })
    }

    /// Runs the whole trunk.
    ///
    /// # Errors
    /// Returns an error if the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<LxmertOutput> {
        let language = self.encode_language(&inputs.input_ids, inputs.attention_mask.as_ref(), pass)?;
        let mask = inputs.visual_attention_mask.as_ref();
        let vision = self.encode_vision(&inputs.visual_feats, &inputs.visual_boxes, mask, pass)?;
        self.cross(&language, &vision, pass)
    }

    /// Runs only the language encoder. `ids`, `mask`: `[batch, words]`.
    ///
    /// # Errors
    /// Returns an error if a sentence is longer than the model's positions.
    pub fn encode_language(&self, ids: &Tensor, mask: Option<&Tensor>, pass: &Pass) -> Result<Stream> {
        in_pool(ids.device(), || Layer::encode(&self.language_layers, self.embeddings.forward(ids, mask, pass)?, pass))
    }

    /// Runs only the vision encoder. `features`: `[batch, regions, visual_feat_dim]`; `boxes`: `[batch, regions, 4]`;
    /// `mask`: `[batch, regions]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn encode_vision(
        &self,
        features: &Tensor,
        boxes: &Tensor,
        mask: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Stream> {
        in_pool(features.device(), || {
            Layer::encode(&self.vision_layers, self.regions.forward(features, boxes, mask, pass)?, pass)
        })
    }

    /// Runs the cross-modality encoder and the pooler over two encoded streams with the same batch.
    ///
    /// # Errors
    /// Returns an error if the batches differ.
    pub fn cross(&self, language: &Stream, vision: &Stream, pass: &Pass) -> Result<LxmertOutput> {
        in_pool(language.states.device(), || {
            let (mut l, mut v) = (language.clone(), vision.clone());
            let (whole, last) = match self.cross_layers.split_last() {
                // Maps need whole layers.
                Some((last, whole)) if pass.pooled_only && pass.capture == Capture::None => (whole, Some(last)),
                _ => (self.cross_layers.as_slice(), None),
            };
            for layer in whole {
                (l, v) = layer.forward(&l, &v, pass)?;
            }
            if let Some(last) = last {
                l = last.forward_first(&l, &v, pass)?;
            }
            let first = l.first()?.states; // [batch, hidden]
            let maps = pass.capture != Capture::None;
            Ok(LxmertOutput {
                pooled: self.pooler.forward(&first)?.tanh()?,
                language: if last.is_some() { first.unsqueeze(1)? } else { l.padded()? },
                vision: if last.is_some() { v.padded()?.narrow(1, 0, 0)? } else { v.padded()? },
                attentions: maps.then(|| Attentions::new(language, vision, &l, &v, self.cross_layers.len())),
            })
        })
    }

    /// The word embedding table, `[vocab_size, hidden]`; the masked-word decoder shares it.
    pub fn word_embeddings(&self) -> &Tensor {
        &self.embeddings.words
    }
}
