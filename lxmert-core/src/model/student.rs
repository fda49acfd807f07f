//! The student project's model (durakalon/LXMERT_Flickr), under its own key names, so that its
//! checkpoints load: regions and boxes projected, summed, one layer norm; torch's
//! `TransformerEncoderLayer` (post-norm, ReLU) for both encoders; cross layers with a separate
//! attention per direction, the image attending to the already updated text; no self-attention.

use super::attention::MultiHead;
use super::embeddings::WordTables;
use super::encoder::{Encoded, EncoderLayer};
use super::layers::{LayerNorm, Linear};
use super::{AttentionMap, Attentions, Capture, CrossAttentions, Forward, LxmertOutput, MatchingOutput};
use crate::config::LxmertConfig;
use crate::ops::blocks::FeedForwardBlock;
use crate::ops::{self, KeyMask, Packing};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// torch's default, which the student project keeps.
const LAYER_NORM_EPS: f64 = 1e-5;

/// `nn.MultiheadAttention`: query, key and value rows in one matrix.
#[derive(Debug, Clone)]
struct TorchAttention {
    attention: MultiHead,
    out: Linear,
}

impl TorchAttention {
    fn new(config: &LxmertConfig, dropout: f32, vb: VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let weight = vb.get((3 * hidden, hidden), "in_proj_weight")?;
        let bias = vb.get(3 * hidden, "in_proj_bias")?;
        Ok(Self {
            attention: MultiHead::from_joint(weight, bias, config.num_attention_heads, dropout)?,
            out: Linear::new(hidden, hidden, vb.pp("out_proj"))?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: Option<&KeyMask>,
        run: &Forward,
    ) -> Result<(Tensor, Option<AttentionMap>)> {
        let (x, map) = self.attention.forward(x, context, mask, run)?;
        Ok((self.out.run(&x, run)?, map))
    }

    /// Packed rows, with dropout, residual and `norm` after.
    fn packed(
        &self,
        x: (&Tensor, &Packing),
        context: (&Tensor, &Packing),
        norm: &LayerNorm,
        dropout: f32,
        run: &Forward,
    ) -> Result<Tensor> {
        self.attention.packed(x, context, &self.out, norm, dropout, run)
    }
}

/// torch's `TransformerEncoderLayer` with its defaults.
#[derive(Debug, Clone)]
struct TorchEncoderLayer {
    attention: TorchAttention,
    first: Linear,
    second: Linear,
    norms: [LayerNorm; 2],
    dropout: f32,
}

impl TorchEncoderLayer {
    fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            attention: TorchAttention::new(config, config.attention_probs_dropout_prob, vb.pp("self_attn"))?,
            first: Linear::new(hidden, inner, vb.pp("linear1"))?,
            second: Linear::new(inner, hidden, vb.pp("linear2"))?,
            norms: [
                LayerNorm::new(hidden, LAYER_NORM_EPS, vb.pp("norm1"))?,
                LayerNorm::new(hidden, LAYER_NORM_EPS, vb.pp("norm2"))?,
            ],
            dropout: config.hidden_dropout_prob,
        })
    }
}

impl EncoderLayer for TorchEncoderLayer {
    fn packed(&self, x: &Tensor, packing: &Packing, run: &Forward) -> Result<Tensor> {
        let x = self.attention.packed((x, packing), (x, packing), &self.norms[0], self.dropout, run)?;
        let block = FeedForwardBlock {
            first: self.first.weights(),
            activation: ops::Activation::Relu,
            second: self.second.weights(),
            norm: self.norms[1].norm(),
            dropout: [self.dropout; 2],
            precision: run.precision,
            packed: run.packed,
        };
        block.forward(&x, packing, run.rng)
    }

    fn forward(&self, x: &Tensor, mask: Option<&KeyMask>, run: &Forward) -> Result<(Tensor, Option<AttentionMap>)> {
        let (attended, map) = self.attention.forward(x, x, mask, run)?;
        let x = self.norms[0].forward(&(x + ops::dropout(&attended, self.dropout, run.rng)?)?)?;
        let inner = ops::dropout(&self.first.run(&x, run)?.relu()?, self.dropout, run.rng)?;
        let fed = ops::dropout(&self.second.run(&inner, run)?, self.dropout, run.rng)?;
        Ok((self.norms[1].forward(&(x + fed)?)?, map))
    }
}

/// One stream's half of a cross layer: attend to the other stream, then feed forward.
#[derive(Debug, Clone)]
struct CrossHalf {
    attention: TorchAttention,
    first: Linear,
    second: Linear,
    norms: [LayerNorm; 2],
}

impl CrossHalf {
    fn new(config: &LxmertConfig, attention: &str, stream: &str, vb: &VarBuilder) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let feed_forward = vb.pp(format!("ffn_{stream}"));
        Ok(Self {
            attention: TorchAttention::new(config, 0.0, vb.pp(attention))?,
            first: Linear::new(hidden, inner, feed_forward.pp(0))?,
            second: Linear::new(inner, hidden, feed_forward.pp(2))?,
            norms: [
                LayerNorm::new(hidden, LAYER_NORM_EPS, vb.pp(format!("ln_{stream}1")))?,
                LayerNorm::new(hidden, LAYER_NORM_EPS, vb.pp(format!("ln_{stream}2")))?,
            ],
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        other: &Tensor,
        mask: Option<&KeyMask>,
        run: &Forward,
    ) -> Result<(Tensor, Option<AttentionMap>)> {
        let (attended, map) = self.attention.forward(x, other, mask, run)?;
        let x = self.norms[0].forward(&(x + attended)?)?;
        let fed = self.second.run(&ops::gelu(&self.first.run(&x, run)?)?, run)?;
        Ok((self.norms[1].forward(&(x + fed)?)?, map))
    }

    /// The same of packed rows.
    fn packed(&self, x: (&Tensor, &Packing), other: (&Tensor, &Packing), run: &Forward) -> Result<Tensor> {
        let attended = self.attention.packed(x, other, &self.norms[0], 0.0, run)?;
        let block = FeedForwardBlock {
            first: self.first.weights(),
            activation: ops::Activation::Gelu,
            second: self.second.weights(),
            norm: self.norms[1].norm(),
            dropout: [0.0; 2],
            precision: run.precision,
            packed: run.packed,
        };
        block.forward(&attended, x.1, run.rng)
    }
}

/// The whole variant, matching head (`pooler.0`, tanh, `pooler.2`) included.
#[derive(Debug, Clone)]
pub struct StudentModel {
    words: WordTables,
    text_norm: LayerNorm,
    features: Linear,
    boxes: Linear,
    image_norm: LayerNorm,
    language_layers: Vec<TorchEncoderLayer>,
    vision_layers: Vec<TorchEncoderLayer>,
    cross_layers: Vec<(CrossHalf, CrossHalf)>,
    pooler: Linear,
    head: Linear,
}

impl StudentModel {
    /// Reads (or creates) the weights at the root of `vb`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let embeddings = vb.pp("embeddings");
        let layers = |count: usize, name: &str| -> Result<Vec<TorchEncoderLayer>> {
            (0..count).map(|i| TorchEncoderLayer::new(config, vb.pp(name).pp("layers").pp(i))).collect()
        };
        let cross = |i: usize| -> Result<(CrossHalf, CrossHalf)> {
            let vb = vb.pp("cross_layers").pp(i);
            let text = CrossHalf::new(config, "attn_text_image", "text", &vb)?;
            Ok((text, CrossHalf::new(config, "attn_image_text", "image", &vb)?))
        };
        Ok(Self {
            words: WordTables::new(config, embeddings.clone())?,
            text_norm: LayerNorm::new(hidden, LAYER_NORM_EPS, embeddings.pp("layer_norm_text"))?,
            features: Linear::new(config.visual_feat_dim, hidden, embeddings.pp("visual_proj"))?,
            boxes: Linear::new(config.visual_pos_dim, hidden, embeddings.pp("pos_proj"))?,
            image_norm: LayerNorm::new(hidden, LAYER_NORM_EPS, embeddings.pp("layer_norm_image"))?,
            language_layers: layers(config.l_layers, "lang_encoder")?,
            vision_layers: layers(config.r_layers, "obj_encoder")?,
            cross_layers: (0..config.x_layers).map(cross).collect::<Result<_>>()?,
            pooler: Linear::new(hidden, hidden, vb.pp("pooler.0"))?,
            head: Linear::new(hidden, 1, vb.pp("pooler.2"))?,
        })
    }

    /// The word embedding table, `[vocab_size, hidden]`.
    pub fn word_embeddings(&self) -> &Tensor {
        &self.words.words
    }

    /// See [`super::LxmertModel::encode_language`].
    ///
    /// # Errors
    /// When a sentence is longer than the model's positions.
    pub fn encode_language(&self, ids: &Tensor, mask: Option<&Tensor>, run: &Forward) -> Result<Encoded> {
        ops::in_pool(|| {
            let states = self.text_norm.forward(&self.words.forward(ids)?)?;
            Encoded::through(states, mask, &self.language_layers, run)
        })
    }

    /// See [`super::LxmertModel::encode_vision`].
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn encode_vision(
        &self,
        features: &Tensor,
        boxes: &Tensor,
        mask: Option<&Tensor>,
        run: &Forward,
    ) -> Result<Encoded> {
        ops::in_pool(|| {
            let states = (self.features.forward(features)? + self.boxes.forward(boxes)?)?;
            Encoded::through(self.image_norm.forward(&states)?, mask, &self.vision_layers, run)
        })
    }

    /// Both encoded streams through the cross layers and the head.
    ///
    /// # Errors
    /// When the batches differ.
    pub fn match_encoded(&self, language: &Encoded, vision: &Encoded, run: &Forward) -> Result<MatchingOutput> {
        ops::in_pool(|| self.match_streams(language, vision, run))
    }

    fn match_streams(&self, language: &Encoded, vision: &Encoded, run: &Forward) -> Result<MatchingOutput> {
        if let (Some(words), Some(regions)) = (language.packing(run)?, vision.packing(run)?) {
            return self.match_packed(
                (&words.pack(&language.states)?, &words),
                (&regions.pack(&vision.states)?, &regions),
                run,
            );
        }
        let (mut text, mut image) = (language.states.clone(), vision.states.clone());
        let mut maps = Vec::new();
        for (text_half, image_half) in &self.cross_layers {
            let (to_image, to_text);
            (text, to_image) = text_half.forward(&text, &image, vision.mask.as_ref(), run)?;
            (image, to_text) = image_half.forward(&image, &text, language.mask.as_ref(), run)?;
            maps.extend(to_image.zip(to_text).map(|(language_to_vision, vision_to_language)| CrossAttentions {
                language_to_vision,
                vision_to_language,
                language_self: None,
                vision_self: None,
            }));
        }
        let (pooled, logits) = self.pool(&text.narrow(1, 0, 1)?.squeeze(1)?)?;
        let attentions = (run.capture != Capture::None).then(|| Attentions {
            language: language.maps.clone(),
            vision: vision.maps.clone(),
            cross: maps,
        });
        Ok(MatchingOutput { logits, trunk: LxmertOutput { language: text, vision: image, pooled, attentions } })
    }

    /// Pooled output and logit of each sentence's first word, `[batch, hidden]`.
    fn pool(&self, first: &Tensor) -> Result<(Tensor, Tensor)> {
        let pooled = self.pooler.forward(first)?.tanh()?;
        let logits = self.head.forward(&pooled)?.squeeze(1)?;
        Ok((pooled, logits))
    }

    fn match_packed(
        &self,
        (text, words): (&Tensor, &Packing),
        (image, regions): (&Tensor, &Packing),
        run: &Forward,
    ) -> Result<MatchingOutput> {
        let (mut text, mut image) = (text.clone(), image.clone());
        let (last, before) = match self.cross_layers.split_last() {
            Some((last, before)) if run.pooled_only => (Some(last), before),
            _ => (None, self.cross_layers.as_slice()),
        };
        for (text_half, image_half) in before {
            text = text_half.packed((&text, words), (&image, regions), run)?;
            image = image_half.packed((&image, regions), (&text, words), run)?;
        }
        let mut first = words.pick_first(&text)?;
        let (language, vision) = match last {
            Some((text_half, _)) => {
                first = text_half.packed((&first, &words.first_rows()), (&image, regions), run)?;
                (first.unsqueeze(1)?, regions.unpack(&image)?.narrow(1, 0, 0)?)
            }
            None => (words.unpack(&text)?, regions.unpack(&image)?),
        };
        let (pooled, logits) = self.pool(&first)?;
        Ok(MatchingOutput { logits, trunk: LxmertOutput { language, vision, pooled, attentions: None } })
    }
}
