//! The model's configuration, read from and written to the hub's `config.json`.

use crate::files::{Fields, read_json};
use crate::{Error, Result};
use candle_nn::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// How the two streams attend to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrossLayer {
    /// Tan & Bansal (2019), §3.2: one cross-attention, shared by both directions and applied to the layer's inputs,
    /// then self-attention, then feed-forward.
    #[default]
    Lxmert,
    /// The student project's: separate cross-attentions, text first; the image attends to the updated text; no
    /// self-attention.
    Student,
}

/// The model's configuration. Field names and defaults are the hub's (`transformers` `LxmertConfig`); the fields that
/// this crate adds (`cross_layer`, `layer_norm_eps`) default to the published model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LxmertConfig {
    /// Always `lxmert`.
    pub model_type: String,
    /// Number of WordPiece entries.
    pub vocab_size: usize,
    /// Width of both streams.
    pub hidden_size: usize,
    /// Heads of every attention; must divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Number of answers of the question-answering head.
    pub num_qa_labels: usize,
    /// Number of object classes of the masked-object head.
    pub num_object_labels: usize,
    /// Number of attribute classes of the masked-object head.
    pub num_attr_labels: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Activation of the feed-forward layers and head transforms; `gelu` is the exact (erf) one.
    pub hidden_act: Activation,
    /// Dropout after embeddings, attention outputs and feed-forwards.
    pub hidden_dropout_prob: f32,
    /// Dropout of attention probabilities.
    pub attention_probs_dropout_prob: f32,
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included.
    pub max_position_embeddings: usize,
    /// Number of segment ids.
    pub type_vocab_size: usize,
    /// Standard deviation of newly initialised weights.
    pub initializer_range: f64,
    /// Number of language layers.
    pub l_layers: usize,
    /// Number of cross-modality layers.
    pub x_layers: usize,
    /// Number of object-relationship (vision) layers.
    pub r_layers: usize,
    /// Width of a region's feature vector.
    pub visual_feat_dim: usize,
    /// Numbers that describe a region's box.
    pub visual_pos_dim: usize,
    /// Weight of the masked-object losses.
    pub visual_loss_normalizer: f64,
    /// Epsilon of every layer norm; the hub's code hard-codes 1e-12.
    pub layer_norm_eps: f64,
    /// How the two streams attend to each other.
    pub cross_layer: CrossLayer,
}

/// Limits of the widths, vocabulary and classes, and of an encoder's layers: far beyond any model, so that a typo is an
/// error and not a huge allocation.
const MOST_ROWS: usize = 1 << 24;
const MOST_LAYERS: usize = 1000;

/// What LXMERT's language encoder takes from BERT's `config.json`; the keys are the same in both.
const BERT_KEYS: [&str; 8] = [
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
];

/// Whether a `config.json` describes BERT: by `model_type`, or, in old files, by a single number of layers.
pub(crate) fn is_bert(fields: &Fields) -> bool {
    match fields.get("model_type") {
        Some(name) => name == "bert",
        None => fields.get("num_hidden_layers").is_some_and(Value::is_number),
    }
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
    /// The names that [`LxmertConfig::preset`] knows.
    pub const PRESETS: [&str; 3] = ["tiny", "small", "base"];

    /// A configuration by name: `base` is the published one (768 wide, 9/5/5 layers, 2048-d
    /// regions), `small` the student project's size (256 wide, 4 heads, 2/2/2, 1024-d regions),
    /// `tiny` (128 wide, 4 heads, 1/1/2) fits the generated scenes in minutes.
    ///
    /// # Errors
    /// Returns an error if no preset has that name.
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

    /// Reads and checks an LXMERT `config.json`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not JSON, describes another model, or its numbers do not fit
    /// together.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fields = read_json(path)?;
        if is_bert(&fields) {
            return Err(Error::format(
                path,
                "describes BERT, not LXMERT; to start from BERT's weights, pass them to --init",
            ));
        }
        Self::from_fields(fields, path)
    }

    /// The configuration with these values from an LXMERT `config.json`; `path` is for error messages.
    ///
    /// # Errors
    /// Returns an error if a value has the wrong type or the values do not fit together.
    pub(crate) fn from_fields(fields: Fields, path: &Path) -> Result<Self> {
        let parse = |fields: Fields| serde_json::from_value::<Self>(Value::Object(fields));
        let config = parse(fields.clone()).map_err(|error| {
            // Every key has a default, so parsing each key alone finds the wrong one.
            let alone = |(key, value): (&String, &Value)| {
                let error = parse(Fields::from_iter([(key.clone(), value.clone())])).err()?;
                Some(format!("{key}: {error}"))
            };
            Error::format(path, fields.iter().find_map(alone).unwrap_or_else(|| error.to_string()))
        })?;
        if config.model_type != "lxmert" {
            return Err(Error::format(path, format!("model_type is '{}', not 'lxmert'", config.model_type)));
        }
        config.check().map_err(|e| Error::format(path, e.to_string()))?;
        Ok(config)
    }

    /// The LXMERT configuration to start from a BERT with this `config.json`: BERT's sizes, activation and epsilon. It
    /// takes at most 9 of BERT's layers, as the original takes 9 of 12; the other two encoders keep the paper's
    /// proportion, 9 : 5 : 5.
    ///
    /// # Errors
    /// See [`LxmertConfig::from_fields`].
    pub(crate) fn from_bert_fields(bert: &Fields, path: &Path) -> Result<Self> {
        let published = Self::default();
        let wrong = || Error::format(path, "num_hidden_layers is not a number of layers");
        let layers = match bert.get("num_hidden_layers") {
            Some(layers) => layers.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?,
            None => 12,
        };
        let language = layers.min(published.l_layers);
        let others = (language * published.r_layers).div_ceil(published.l_layers);
        let mut fields: Fields =
            BERT_KEYS.iter().filter_map(|&key| Some((key.to_string(), bert.get(key)?.clone()))).collect();
        for (key, layers) in [("l_layers", language), ("r_layers", others), ("x_layers", others)] {
            fields.insert(key.into(), json!(layers));
        }
        Self::from_fields(fields, path)
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// Returns an error if the heads do not divide the width, a size is zero or implausibly large, or a dropout is not
    /// in 0..1.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
            ("visual_feat_dim", self.visual_feat_dim),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, value)| *value == 0) {
            return Err(Error::Argument(format!("{name} is 0")));
        }
        let labels = [
            ("num_qa_labels", self.num_qa_labels),
            ("num_object_labels", self.num_object_labels),
            ("num_attr_labels", self.num_attr_labels),
        ];
        let layers = [("l_layers", self.l_layers), ("r_layers", self.r_layers), ("x_layers", self.x_layers)];
        for (limit, counts) in [(MOST_ROWS, sizes.as_slice()), (MOST_ROWS, &labels), (MOST_LAYERS, &layers)] {
            if let Some((name, value)) = counts.iter().find(|(_, value)| *value > limit) {
                return Err(Error::Argument(format!("{name} is {value}; the largest allowed is {limit}")));
            }
        }
        if self.visual_pos_dim != 4 {
            return Err(Error::Argument(format!(
                "visual_pos_dim is {}, but boxes have 4 numbers",
                self.visual_pos_dim
            )));
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

    /// The text of a `config.json` that `transformers` opens. Heads with 0 classes are switched off with its own keys
    /// (`visual_attr_loss`, …); otherwise it would build them.
    pub fn to_json(&self, architecture: &str) -> String {
        let mut value = json!({
            "architectures": [architecture],
            "num_hidden_layers": {"vision": self.r_layers, "cross_encoder": self.x_layers, "language": self.l_layers},
            "task_qa": self.num_qa_labels > 0,
            "visual_obj_loss": self.num_object_labels > 0,
            "visual_attr_loss": self.num_attr_labels > 0,
        });
        if let (Some(all), Ok(Value::Object(fields))) = (value.as_object_mut(), serde_json::to_value(self)) {
            all.extend(fields);
        }
        format!("{value:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<LxmertConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        LxmertConfig::from_file(path)
    }

    #[test]
    fn reads_the_hubs_keys_and_ignores_unknown_ones() {
        let json = r#"{"architectures":["LxmertForPreTraining"],"model_type":"lxmert","hidden_size":24,"num_attention_heads":3,"hidden_act":"gelu","num_hidden_layers":{"vision":5,"cross_encoder":5,"language":9},"task_qa":true}"#;
        let config = read(json).unwrap();
        assert_eq!((config.hidden_size, config.num_attention_heads, config.l_layers), (24, 3, 9));
        assert_eq!(config.hidden_act, Activation::Gelu);
    }

    #[test]
    fn written_config_reads_back_equal() {
        let config = LxmertConfig::preset("small").unwrap();
        assert_eq!(read(&config.to_json("LxmertForPreTraining")).unwrap(), config);
    }

    #[test]
    fn rejects_numbers_that_do_not_fit() {
        for (json, part) in [
            (r#"{"num_attention_heads": 7}"#, "hidden_size 768 is not a multiple of num_attention_heads 7"),
            (r#"{"hidden_size": 0}"#, "hidden_size is 0"),
            (r#"{"x_layers": 4000000000}"#, "x_layers is 4000000000"),
            (r#"{"num_qa_labels": 1000000000000}"#, "num_qa_labels is 1000000000000"),
            (r#"{"l_layers": -1}"#, "l_layers: invalid value"),
            (r#"{"hidden_size": "wide"}"#, "hidden_size: invalid type"),
            (r#"{"hidden_act": "quick_gelu"}"#, "hidden_act: unknown variant `quick_gelu`"),
            (r#"{"model_type": "roberta"}"#, "model_type is 'roberta'"),
            (r#"{"model_type": "bert"}"#, "describes BERT"),
            (r#"{"num_hidden_layers": 12}"#, "describes BERT"),
            ("[1]", "config.json"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("config.json"), "{json}: {error}");
        }
        assert!(LxmertConfig::preset("huge").unwrap_err().to_string().contains("tiny, small, base"));
    }

    #[test]
    fn berts_layers_keep_the_papers_proportion() {
        let layers = |count: usize| {
            let bert = Fields::from_iter([("num_hidden_layers".to_string(), json!(count))]);
            let config = LxmertConfig::from_bert_fields(&bert, Path::new("config.json")).unwrap();
            [config.l_layers, config.r_layers, config.x_layers]
        };
        assert_eq!([layers(12), layers(4), layers(2), layers(1)], [[9, 5, 5], [4, 3, 3], [2, 2, 2], [1, 1, 1]]);
    }
}
