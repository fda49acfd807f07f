//! The student project's model (durakalon/LXMERT_Flickr), under its own key names, so that its
//! checkpoints load: regions and boxes projected, summed, one layer norm; torch's
//! `TransformerEncoderLayer` (post-norm, ReLU) for both encoders; cross layers with a separate
//! attention per direction, the image attending to the already updated text; no self-attention. It is an [`LxmertModel`] of other
//! parts.

use super::LxmertModel;
use super::attention::Attention;
use super::embeddings::{Fusion, LanguageEmbeddings, RegionEmbeddings, WordTables};
use super::layers::{CrossModalityLayer, FeedForward, Layer, LayerNorm, Linear};
use crate::config::LxmertConfig;
use candle_core::Result;
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

impl LxmertModel {
    /// The student project's trunk, with its weights at the root of `vb`.
    pub(super) fn student(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let (hidden, embeddings) = (config.hidden_size, vb.pp("embeddings"));
        let layers = |count: usize, name: &str| -> Result<Vec<Layer>> {
            (0..count).map(|i| encoder_layer(config, vb.pp(name).pp("layers").pp(i))).collect()
        };
        let cross = |i: usize| -> Result<CrossModalityLayer> {
            let vb = vb.pp("cross_layers").pp(i);
            Ok(CrossModalityLayer::Separate {
                language: cross_half(config, "attn_text_image", "text", &vb)?,
                vision: cross_half(config, "attn_image_text", "image", &vb)?,
            })
        };
        Ok(Self {
            embeddings: LanguageEmbeddings {
                tables: WordTables::new(config, embeddings.clone())?,
                layer_norm: norm(config, embeddings.pp("layer_norm_text"))?,
                dropout: 0.0,
            },
            regions: RegionEmbeddings {
                features: Linear::new(config.visual_feat_dim, hidden, embeddings.pp("visual_proj"))?,
                boxes: Linear::new(config.visual_pos_dim, hidden, embeddings.pp("pos_proj"))?,
                fusion: Fusion::Sum(norm(config, embeddings.pp("layer_norm_image"))?),
            },
            language_layers: layers(config.l_layers, "lang_encoder")?,
            vision_layers: layers(config.r_layers, "obj_encoder")?,
            cross_layers: (0..config.x_layers).map(cross).collect::<Result<_>>()?,
            pooler: Linear::new(hidden, hidden, vb.pp("pooler.0"))?,
        })
    }
}
