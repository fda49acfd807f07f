//! The student project's model (durakalon/LXMERT_Flickr), under its own key names, so that its
//! checkpoints load: regions and boxes projected, summed, one layer norm; torch's
//! `TransformerEncoderLayer` (post-norm, ReLU) for both encoders; cross layers with a separate
//! attention per direction, the image attending to the already updated text; no self-attention.

use super::attention::Attention;
use super::embeddings::{LanguageEmbeddings, WordTables, rows_of};
use super::encoder::{CrossLayer, cross_streams};
use super::layers::{FeedForward, Layer, LayerNorm, Linear};
use super::{MatchingOutput, Pass, Stream};
use crate::config::LxmertConfig;
use crate::ops::in_pool;
use candle_core::{Result, Tensor};
use candle_nn::{Activation, VarBuilder};

/// torch's default, which the student project keeps.
const LAYER_NORM_EPS: f64 = 1e-5;

fn norm(config: &LxmertConfig, vb: VarBuilder) -> Result<LayerNorm> {
    LayerNorm::new(config.hidden_size, LAYER_NORM_EPS, vb)
}

/// torch's `TransformerEncoderLayer` with its defaults.
fn encoder_layer(config: &LxmertConfig, vb: VarBuilder) -> Result<Layer> {
    let (hidden, inner, dropout) = (config.hidden_size, config.intermediate_size, config.hidden_dropout_prob);
    let probabilities = config.attention_probs_dropout_prob;
    let attention_norm = norm(config, vb.pp("norm1"))?;
    Ok(Layer {
        attention: Attention::torch(config, attention_norm, [probabilities, dropout], vb.pp("self_attn"))?,
        feed_forward: FeedForward {
            first: Linear::new(hidden, inner, vb.pp("linear1"))?,
            activation: Activation::Relu,
            second: Linear::new(inner, hidden, vb.pp("linear2"))?,
            layer_norm: norm(config, vb.pp("norm2"))?,
            dropout: [dropout; 2],
        },
    })
}

/// One stream's half of a cross layer: attend to the other stream, then feed forward. Without dropout.
fn cross_half(config: &LxmertConfig, attention: &str, stream: &str, vb: &VarBuilder) -> Result<Layer> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let feed_forward = vb.pp(format!("ffn_{stream}"));
    let attention_norm = norm(config, vb.pp(format!("ln_{stream}1")))?;
    Ok(Layer {
        attention: Attention::torch(config, attention_norm, [0.0; 2], vb.pp(attention))?,
        feed_forward: FeedForward {
            first: Linear::new(hidden, inner, feed_forward.pp(0))?,
            activation: Activation::Gelu,
            second: Linear::new(inner, hidden, feed_forward.pp(2))?,
            layer_norm: norm(config, vb.pp(format!("ln_{stream}2")))?,
            dropout: [0.0; 2],
        },
    })
}

/// A cross layer: the image attends to the text that has already seen it.
#[derive(Debug, Clone)]
struct StudentCrossLayer {
    text: Layer,
    image: Layer,
}

impl CrossLayer for StudentCrossLayer {
    fn forward(&self, text: &Stream, image: &Stream, pass: &Pass) -> Result<(Stream, Stream)> {
        let text = self.text.forward(text, image, pass)?;
        let image = self.image.forward(image, &text, pass)?;
        Ok((text, image))
    }

    fn forward_first(&self, text: &Stream, image: &Stream, pass: &Pass) -> Result<Stream> {
        self.text.forward(&text.first()?, image, pass)
    }
}

/// The whole variant, matching head (`pooler.0`, tanh, `pooler.2`) included.
#[derive(Debug, Clone)]
pub struct StudentModel {
    text: LanguageEmbeddings,
    features: Linear,
    boxes: Linear,
    image_norm: LayerNorm,
    language_layers: Vec<Layer>,
    vision_layers: Vec<Layer>,
    cross_layers: Vec<StudentCrossLayer>,
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
        let layers = |count: usize, name: &str| -> Result<Vec<Layer>> {
            (0..count).map(|i| encoder_layer(config, vb.pp(name).pp("layers").pp(i))).collect()
        };
        let cross = |i: usize| -> Result<StudentCrossLayer> {
            let vb = vb.pp("cross_layers").pp(i);
            let text = cross_half(config, "attn_text_image", "text", &vb)?;
            Ok(StudentCrossLayer { text, image: cross_half(config, "attn_image_text", "image", &vb)? })
        };
        Ok(Self {
            text: LanguageEmbeddings {
                tables: WordTables::new(config, embeddings.clone())?,
                layer_norm: norm(config, embeddings.pp("layer_norm_text"))?,
                dropout: 0.0,
            },
            features: Linear::new(config.visual_feat_dim, hidden, embeddings.pp("visual_proj"))?,
            boxes: Linear::new(config.visual_pos_dim, hidden, embeddings.pp("pos_proj"))?,
            image_norm: norm(config, embeddings.pp("layer_norm_image"))?,
            language_layers: layers(config.l_layers, "lang_encoder")?,
            vision_layers: layers(config.r_layers, "obj_encoder")?,
            cross_layers: (0..config.x_layers).map(cross).collect::<Result<_>>()?,
            pooler: Linear::new(hidden, hidden, vb.pp("pooler.0"))?,
            head: Linear::new(hidden, 1, vb.pp("pooler.2"))?,
        })
    }

    /// The word embedding table, `[vocab_size, hidden]`.
    pub fn word_embeddings(&self) -> &Tensor {
        &self.text.tables.words
    }

    /// See [`super::LxmertModel::encode_language`].
    ///
    /// # Errors
    /// When a sentence is longer than the model's positions.
    pub fn encode_language(&self, ids: &Tensor, mask: Option<&Tensor>, pass: &Pass) -> Result<Stream> {
        in_pool(|| Layer::encode(&self.language_layers, self.text.forward(ids, mask, pass)?, pass))
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
        pass: &Pass,
    ) -> Result<Stream> {
        in_pool(|| {
            let rows = rows_of(features, mask)?;
            let features = self.features.forward(&rows.gather(features)?)?;
            let states = self.image_norm.forward(&(features + self.boxes.forward(&rows.gather(boxes)?)?)?)?;
            Layer::encode(&self.vision_layers, Stream::new(states, rows), pass)
        })
    }

    /// Both encoded streams through the cross layers and the head.
    ///
    /// # Errors
    /// When the batches differ.
    pub fn match_encoded(&self, language: &Stream, vision: &Stream, pass: &Pass) -> Result<MatchingOutput> {
        in_pool(|| {
            let pool = |first: &Tensor| self.pooler.forward(first)?.tanh();
            let trunk = cross_streams(&self.cross_layers, language, vision, pool, pass)?;
            Ok(MatchingOutput { logits: self.head.forward(&trunk.pooled)?.squeeze(1)?, trunk })
        })
    }
}
