//! The model's configuration, read from and written to the hub's `config.json`.

use crate::{Error, Result};
use candle_nn::Activation;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How the two streams meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrossLayer {
    /// Tan & Bansal (2019), §3.2: one shared cross attention for both directions from the
    /// pre-layer inputs, then self-attention, then feed-forward.
    #[default]
    Lxmert,
    /// The student project's: separate cross attentions, text first, the image attends to the
    /// updated text, no self-attention.
    Student,
}

/// Field names and defaults are the hub's (`transformers` `LxmertConfig`); fields this crate adds
/// (`cross_layer`, `layer_norm_eps`) have defaults that describe the published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LxmertConfig {
    /// Always `lxmert`.
    pub model_type: String,
    /// WordPiece entries.
    pub vocab_size: usize,
    /// Width of every stream.
    pub hidden_size: usize,
    /// Heads of every attention; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Answers of the question-answering head.
    pub num_qa_labels: usize,
    /// Object classes of the masked-object head.
    pub num_object_labels: usize,
    /// Attribute classes of the masked-object head.
    pub num_attr_labels: usize,
    /// Inner width of the feed-forwards.
    pub intermediate_size: usize,
    /// Activation of the feed-forwards and head transforms: `gelu` is the exact (erf) one.
    pub hidden_act: Activation,
    /// Dropout after embeddings, attention outputs and feed-forwards.
    pub hidden_dropout_prob: f32,
    /// Dropout of attention probabilities.
    pub attention_probs_dropout_prob: f32,
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included.
    pub max_position_embeddings: usize,
    /// Segment ids.
    pub type_vocab_size: usize,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Language layers.
    pub l_layers: usize,
    /// Cross-modality layers.
    pub x_layers: usize,
    /// Object-relationship (vision) layers.
    pub r_layers: usize,
    /// Width of a region's feature vector.
    pub visual_feat_dim: usize,
    /// Numbers of a region's box.
    pub visual_pos_dim: usize,
    /// Factor of the masked-object losses.
    pub visual_loss_normalizer: f64,
    /// Epsilon of every layer norm; the hub's code has 1e-12 in place, without a field.
    pub layer_norm_eps: f64,
    /// How the two streams meet.
    pub cross_layer: CrossLayer,
}

impl Default for LxmertConfig {
    fn default() -> Self {
        Self {
            model_type: "lxmert".into(),
            vocab_size: 30522,
            hidden_size: 768,
            num_attention_heads: 12,
            num_qa_labels: 9500,
            num_object_labels: 1600,
            num_attr_labels: 400,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            l_layers: 9,
            x_layers: 5,
            r_layers: 5,
            visual_feat_dim: 2048,
            visual_pos_dim: 4,
            visual_loss_normalizer: 6.67,
            layer_norm_eps: 1e-12,
            cross_layer: CrossLayer::Lxmert,
        }
    }
}

impl LxmertConfig {
    /// The names [`LxmertConfig::preset`] knows.
    pub const PRESETS: [&str; 3] = ["tiny", "small", "base"];

    /// A configuration by name: `base` is the published one (768 wide, 9/5/5 layers, 2048-d
    /// regions), `small` the student project's size (256 wide, 4 heads, 2/2/2, 1024-d regions),
    /// `tiny` (128 wide, 4 heads, 1/1/2) fits the generated scenes in minutes.
    ///
    /// # Errors
    /// When no preset has that name.
    pub fn preset(name: &str) -> Result<Self> {
        let sized = |hidden_size, l_layers, r_layers, x_layers, visual_feat_dim| Self {
            hidden_size,
            num_attention_heads: 4,
            intermediate_size: 4 * hidden_size,
            l_layers,
            r_layers,
            x_layers,
            visual_feat_dim,
            ..Self::default()
        };
        match name {
            "base" => Ok(Self::default()),
            "small" => Ok(sized(256, 2, 2, 2, 1024)),
            "tiny" => Ok(sized(128, 1, 1, 2, 256)),
            _ => Err(Error::Argument(format!("no preset '{name}'; there are {}", Self::PRESETS.join(", ")))),
        }
    }

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON, describes another model, or its numbers do not
    /// fit together.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: Self = serde_json::from_str(&text).map_err(Error::json(path))?;
        if config.model_type != "lxmert" {
            return Err(Error::format(path, format!("model_type is '{}', not 'lxmert'", config.model_type)));
        }
        config.check().map_err(|e| Error::format(path, e.to_string()))?;
        Ok(config)
    }

    /// Whether the numbers fit together.
    ///
    /// # Errors
    /// When the heads do not divide the width, a size is zero, or a dropout is not in 0..1.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
            ("visual_feat_dim", self.visual_feat_dim),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Argument(format!("{name} is 0")));
        }
        if self.visual_pos_dim != 4 {
            return Err(Error::Argument(format!("visual_pos_dim is {}, boxes have 4 numbers", self.visual_pos_dim)));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::Argument(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        for (name, p) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
        ] {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::Argument(format!("{name} is {p}, not in 0..1")));
            }
        }
        Ok(())
    }

    /// The `config.json` text, as `transformers` opens it. Heads of 0 classes are switched off in its words
    /// (`visual_attr_loss`, …), since it would build them otherwise.
    pub fn to_json(&self, architecture: &str) -> String {
        let mut value = serde_json::json!({
            "architectures": [architecture],
            "num_hidden_layers": {"vision": self.r_layers, "cross_encoder": self.x_layers, "language": self.l_layers},
            "task_qa": self.num_qa_labels > 0,
            "visual_obj_loss": self.num_object_labels > 0,
            "visual_attr_loss": self.num_attr_labels > 0,
        });
        if let (Some(all), Ok(serde_json::Value::Object(fields))) = (value.as_object_mut(), serde_json::to_value(self))
        {
            all.extend(fields);
        }
        format!("{value:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_s_fields_are_read_and_unknown_ones_pass() {
        let json = r#"{"architectures":["LxmertForPreTraining"],"model_type":"lxmert","hidden_size":24,"num_attention_heads":3,"hidden_act":"gelu","num_hidden_layers":{"vision":5,"cross_encoder":5,"language":9},"task_qa":true}"#;
        let config: LxmertConfig = serde_json::from_str(json).unwrap();
        assert_eq!((config.hidden_size, config.num_attention_heads, config.l_layers), (24, 3, 9));
        assert_eq!(config.hidden_act, Activation::Gelu);
        config.check().unwrap();
    }

    #[test]
    fn a_written_config_reads_back_equal() {
        let config = LxmertConfig::preset("small").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_json("LxmertForPreTraining")).unwrap();
        assert_eq!(LxmertConfig::from_file(&path).unwrap(), config);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let heads = LxmertConfig { num_attention_heads: 7, ..LxmertConfig::default() };
        assert!(heads.check().unwrap_err().to_string().contains("multiple"));
        assert!(LxmertConfig::preset("huge").unwrap_err().to_string().contains("tiny, small, base"));
    }
}
