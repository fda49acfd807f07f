//! The student project's model (durakalon/LXMERT_Flickr), under its own key names, so that its checkpoints load.
//! Regions and boxes are projected and added, with one layer norm. Both encoders are torch's `TransformerEncoderLayer`
//! (post-norm, ReLU). The cross layers have a separate attention per direction, with the image attending to the already
//! updated text, and no self-attention. It is an [`LxmertModel`] built from other parts.

use super::LxmertModel;
use super::attention::Attention;
use super::embeddings::{Fusion, LanguageEmbeddings, RegionEmbeddings};
use super::layers::{CrossModalityLayer, FeedForward, Layer, LayerNorm, Linear};
use crate::config::LxmertConfig;
use candle_core::Result;
use candle_nn::{Activation, VarBuilder};

/// torch's default, which the student project keeps.
const LAYER_NORM_EPS: f64 = 1e-5;

fn norm(config: &LxmertConfig, vb: VarBuilder) -> Result<LayerNorm> {
    LayerNorm::new(config.hidden_size, LAYER_NORM_EPS, vb)
}

/// A layer with parts of these names under `vb`: the attention, its norm, both linear maps, and their norm. `dropout`:
/// of the probabilities, and of everything else.
fn layer(
    config: &LxmertConfig,
    [attention, attention_norm, first, second, output_norm]: [&str; 5],
    activation: Activation,
    dropout: [f32; 2],
    vb: &VarBuilder,
) -> Result<Layer> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let attention_norm = norm(config, vb.pp(attention_norm))?;
    Ok(Layer {
        attention: Attention::torch(config, attention_norm, dropout, vb.pp(attention))?,
        feed_forward: FeedForward {
            first: Linear::new(hidden, inner, vb.pp(first))?,
            activation,
            second: Linear::new(inner, hidden, vb.pp(second))?,
            layer_norm: norm(config, vb.pp(output_norm))?,
            dropout: [dropout[1]; 2],
        },
    })
}

impl LxmertModel {
    /// The student project's trunk, with its weights at the root of `vb`.
    pub(super) fn student(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let (hidden, embeddings) = (config.hidden_size, vb.pp("embeddings"));
        let text_norm = norm(config, embeddings.pp("layer_norm_text"))?;
        // torch's `TransformerEncoderLayer` with its defaults.
        let dropout = [config.attention_probs_dropout_prob, config.hidden_dropout_prob];
        let encoder_names = ["self_attn", "norm1", "linear1", "linear2", "norm2"];
        let layers = |count: usize, name: &str| -> Result<Vec<Layer>> {
            let vb = vb.pp(name).pp("layers");
            (0..count).map(|i| layer(config, encoder_names, Activation::Relu, dropout, &vb.pp(i))).collect()
        };
        // Each half attends to the other stream, then feeds forward, without dropout.
        let cross = |i: usize| -> Result<CrossModalityLayer> {
            let half = |names| layer(config, names, Activation::Gelu, [0.0; 2], &vb.pp("cross_layers").pp(i));
            Ok(CrossModalityLayer::Separate {
                language: half(["attn_text_image", "ln_text1", "ffn_text.0", "ffn_text.2", "ln_text2"])?,
                vision: half(["attn_image_text", "ln_image1", "ffn_image.0", "ffn_image.2", "ln_image2"])?,
            })
        };
        Ok(Self {
            embeddings: LanguageEmbeddings::new(config, text_norm, 0.0, embeddings.clone())?,
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
