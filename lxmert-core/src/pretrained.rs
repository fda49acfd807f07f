//! Opens a checkpoint of any origin: its configuration, vocabulary, preprocessing, answers and weights.
//!
//! [`Pretrained::open`] accepts every form of a place that [`Place::find`] does. To run the checkpoint, ask it for a
//! model: [`matching`](Pretrained::matching), [`answering`](Pretrained::answering), [`judging`](Pretrained::judging),
//! or [`model`](Pretrained::model) for any other. To train another model from it, use [`start`](Pretrained::start),
//! [`text`](Pretrained::text) and [`weights`](Pretrained::weights).
//!
//! | file beside the weights | provides | if it is missing |
//! | --- | --- | --- |
//! | `config.json` | the configuration, of LXMERT or BERT | sizes come from the weights' shapes: enough to train from, not to run |
//! | `vocab.txt`, `tokenizer.json` | the tokeniser | the bundled vocabulary, if its size fits |
//! | `preprocessor_config.json` | lengths, regions, detector | the settings of the published checkpoints |
//! | `answers.json` | the answers | `id2label` of `config.json`, otherwise the published table of that size |

use crate::answers::AnswerTable;
use crate::checkpoint::{Place, is_bert, names, read_tensors, sizes, take_weights};
use crate::config::{self, LxmertConfig};
use crate::files::{Fields, read_json};
use crate::model::{AnswerModel, MatchingModel, PairModel, init};
use crate::text::WordPiece;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The first layer of an answer head, `[2·hidden, width of its input]`; NLVR2's takes two pooled outputs.
const FIRST_LAYER: &str = "answer_head.logit_fc.0.weight";

/// The last layer of an answer head, one row per answer.
const LAST_LAYER: &str = "answer_head.logit_fc.3.bias";

/// An opened checkpoint.
#[derive(Debug, Clone)]
pub struct Pretrained {
    /// Where its files are.
    pub place: Place,
    /// The model's configuration: the checkpoint's own, or the one derived from BERT's. The numbers of answers, objects
    /// and attributes come from the weights; 0 for a missing head.
    pub config: LxmertConfig,
    /// The tokeniser.
    pub text: WordPiece,
    /// How to prepare data for the model.
    pub preprocessing: Preprocessing,
    /// Whether the weights are BERT's, that is, only a language encoder.
    pub is_bert: bool,
    /// Whether there is a `config.json` beside the weights.
    described: bool,
    /// Whether word embeddings, which show the sizes, are missing; `config` is then meaningless.
    partial: bool,
    labels: Vec<String>,
    tensors: BTreeMap<String, Tensor>,
}

const NO_WORDS: &str = "no word embeddings of LXMERT or BERT in it; is this another network?";

/// How to prepare sentences and regions for a model: `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preprocessing {
    /// Longest sentence in WordPieces.
    pub max_length: usize,
    /// The most regions per image; of more, the first are used.
    pub regions: usize,
    /// The fewest that the detector was asked for, if the feature store states a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_regions: Option<usize>,
    /// The detector whose features the model was trained on.
    pub detector: String,
    /// How its regions were chosen, as the feature store said it: `detections`, `grid:8`, `cells:8`, `patches:7x7`.
    pub select: String,
}

impl Default for Preprocessing {
    /// The settings of the published checkpoints, which do not state them.
    fn default() -> Self {
        Self { max_length: 20, regions: 36, min_regions: None, detector: "unknown".into(), select: "detections".into() }
    }
}

impl Pretrained {
    /// Opens the checkpoint at `place`, in any form that [`Place::find`] accepts.
    ///
    /// # Errors
    /// Returns an error if there is none, a file is damaged, or its files contradict each other: a size in
    /// `config.json` differs from the weights', or the vocabulary is larger than their embeddings.
    pub fn open(place: impl AsRef<Path>) -> Result<Self> {
        Self::at(Place::find(place)?)
    }

    /// [`Pretrained::open`] for a place that is already found.
    ///
    /// # Errors
    /// See [`Pretrained::open`].
    pub fn at(place: Place) -> Result<Self> {
        let tensors = names::lxmert(&place.weights, read_tensors(&place.weights)?)?;
        let is_bert = is_bert(&tensors);
        let path = place.folder.join("config.json");
        let described = path.is_file();
        let found = match sizes(&tensors) {
            Some(found) => found,
            // Other parts of LXMERT, such as a pooler, can start a model if the caller gives its size.
            None if !described && tensors.keys().any(|name| name.starts_with("lxmert.")) => {
                return Self::partial(place, tensors);
            }
            None => return Err(Error::format(&place.weights, NO_WORDS)),
        };
        let (mut config, labels) = match described {
            true => {
                let fields: Fields = read_json(&path)?;
                (described_by(&fields, &found, is_bert, (&path, &place.weights))?, labels(&fields))
            }
            false => (shaped_by(&found, is_bert, &place.weights)?, Vec::new()),
        };
        // The heads are those in the file; a task uses some and ignores others.
        let rows = |key: &str| found.get(key).and_then(Value::as_u64).map_or(0, |rows| rows as usize);
        config.num_qa_labels = rows("num_qa_labels");
        config.num_object_labels = rows("num_object_labels");
        config.num_attr_labels = rows("num_attr_labels");
        let text = vocabulary(&place.folder, &config)?;
        let preprocessing = Preprocessing::beside(&place.folder, &config)?;
        Ok(Self { place, config, text, preprocessing, is_bert, described, partial: false, labels, tensors })
    }

    /// Some weights of a model of unknown size: enough to start a model if the caller gives its size.
    fn partial(place: Place, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let config = LxmertConfig::default();
        let (text, preprocessing) = (WordPiece::bundled()?, Preprocessing::beside(&place.folder, &config)?);
        let (is_bert, described, labels) = (false, false, Vec::new());
        Ok(Self { place, config, text, preprocessing, is_bert, described, partial: true, labels, tensors })
    }

    /// The tensors under the hub's names, in the file's element types.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The weights named in `expected`; see [`take_weights`].
    ///
    /// # Errors
    /// See [`take_weights`].
    pub fn weights(
        &self,
        expected: &[(String, Vec<usize>)],
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>> {
        take_weights(&self.place.weights, self.tensors.clone(), expected, allow_missing)
    }

    /// The configuration of a model that starts from this checkpoint: `asked`, or the checkpoint's own. They must agree
    /// in everything that the weights were trained with. BERT may differ in the number of layers; the task decides the
    /// length of a region's features and the heads.
    ///
    /// # Errors
    /// Returns an error with the key and both values if they do not agree.
    pub fn start(&self, asked: Option<LxmertConfig>) -> Result<LxmertConfig> {
        let Some(asked) = asked else {
            return match self.partial {
                true => Err(Error::format(&self.place.weights, NO_WORDS)),
                false => Ok(self.config.clone()),
            };
        };
        if self.partial {
            return Ok(asked);
        }
        let (own, wanted) = (fields_of(&self.config)?, fields_of(&asked)?);
        let differs = |key: &&&str| own.get(**key) != wanted.get(**key);
        let by_shape = ["hidden_size", "vocab_size", "intermediate_size", "max_position_embeddings", "type_vocab_size"];
        let by_file = ["num_attention_heads", "hidden_act", "layer_norm_eps"];
        let layers = ["l_layers", "r_layers", "x_layers", "cross_layer"];
        let by_file = by_file.iter().filter(|_| self.described);
        let layers = layers.iter().filter(|_| !self.is_bert);
        if let Some(key) = by_shape.iter().chain(by_file).chain(layers).find(differs) {
            let value = |fields: &Fields| fields.get(*key).map(Value::to_string).unwrap_or_default();
            let reason = format!("{key} is {}, not the {} that was asked for", value(&own), value(&wanted));
            return Err(Error::format(&self.place.weights, reason));
        }
        Ok(asked)
    }

    /// The model that `new` builds from this configuration, with these weights, on `device`.
    ///
    /// # Errors
    /// Returns an error if there is no `config.json`, or the weights do not fit the model.
    pub fn model<M>(
        &self,
        device: &Device,
        new: impl Fn(&LxmertConfig, VarBuilder) -> candle_core::Result<M>,
    ) -> Result<M> {
        if !self.described {
            let reason = "no config.json beside it, so the model is unknown; put the checkpoint's own there";
            return Err(Error::format(&self.place.weights, reason));
        }
        if self.is_bert {
            let reason = "these are BERT's weights; train a model from them (--init) and name that model instead";
            return Err(Error::format(&self.place.weights, reason));
        }
        let expected = init::expected(|vb| new(&self.config, vb).map(drop))?;
        let weights = self.weights(&expected, &[])?.into_iter();
        let weights: HashMap<String, Tensor> =
            weights.map(|(name, tensor)| Ok((name, tensor.to_device(device)?))).collect::<Result<_>>()?;
        Ok(new(&self.config, VarBuilder::from_tensors(weights, DType::F32, device))?)
    }

    /// The model that matches sentences with images.
    ///
    /// # Errors
    /// See [`Pretrained::model`].
    pub fn matching(&self, device: &Device) -> Result<MatchingModel> {
        self.model(device, MatchingModel::new).map_err(|error| {
            error.for_lacking_head(
                "cls.seq_relationship.",
                "no matching head; name a checkpoint of --task matching, retrieval or pretraining",
            )
        })
    }

    /// The model that answers questions; [`Pretrained::answers`] are its answers.
    ///
    /// # Errors
    /// Returns an error if the checkpoint has no answer head; otherwise as [`Pretrained::model`].
    pub fn answering(&self, device: &Device) -> Result<AnswerModel> {
        self.answer_head()?;
        self.model(device, AnswerModel::new)
    }

    /// The model that judges statements about two images.
    ///
    /// # Errors
    /// See [`Pretrained::model`].
    pub fn judging(&self, device: &Device) -> Result<PairModel> {
        self.model(device, PairModel::new).map_err(|error| {
            error.for_lacking_head("answer_head.", "no head over two images; name a checkpoint of --task statements")
        })
    }

    /// The answers of the answer head: from `answers.json`, otherwise from `id2label` in `config.json`, otherwise the
    /// published table of the same size.
    ///
    /// # Errors
    /// Returns an error if there is no answer head, or its answers are unknown.
    pub fn answers(&self) -> Result<AnswerTable> {
        let count = self.answer_head()?;
        let (folder, own) = (&self.place.folder, self.place.folder.join("answers.json"));
        let (path, table) = if own.is_file() {
            (own.clone(), AnswerTable::read(&own)?)
        } else if self.labels.len() == count {
            let path = folder.join("config.json");
            let table = AnswerTable::new(self.labels.clone());
            (path.clone(), table.map_err(|reason| Error::format(path, format!("id2label: {reason}")))?)
        } else if let Some(table) = AnswerTable::published(count)? {
            return Ok(table);
        } else {
            let reason = format!(
                "no answers.json here, and no published table has the head's {count} answers; put the list of its answers there"
            );
            return Err(Error::format(folder, reason));
        };
        if table.len() != count {
            let reason = format!("{} answers, but the checkpoint's head has {count}", table.len());
            return Err(Error::format(path, reason));
        }
        Ok(table)
    }

    /// How many answers the answer head has.
    fn answer_head(&self) -> Result<usize> {
        let reason = match self.tensors.get(LAST_LAYER).map(|rows| rows.elem_count()) {
            None => "has no answer head; name a checkpoint that was trained on questions (--task questions)",
            // NLVR2's head uses the names of an answer head.
            Some(_)
                if self.tensors.get(FIRST_LAYER).is_some_and(|w| w.dims().last() != Some(&self.config.hidden_size)) =>
            {
                "judges statements about two images and cannot answer questions; name a checkpoint of --task questions"
            }
            Some(rows) => return Ok(rows),
        };
        Err(Error::format(&self.place.weights, reason))
    }

    /// Checks that regions with features of this length fit the model.
    ///
    /// # Errors
    /// Returns an error with both lengths and the right detector if they do not.
    pub fn check_features(&self, feature_dim: usize) -> Result<()> {
        self.preprocessing.check_features(&self.config, feature_dim)
    }
}

/// The configuration called `name`, to train a model from fresh weights, with the tokeniser beside it. `name` is a
/// preset, a `config.json`, or a checkpoint with one in any form that [`Place::find`] accepts.
///
/// # Errors
/// Returns an error if there is none, it is not LXMERT's, or its numbers or its vocabulary do not fit together.
pub fn configuration(name: &str) -> Result<(LxmertConfig, WordPiece)> {
    if LxmertConfig::PRESETS.contains(&name) {
        return Ok((LxmertConfig::preset(name)?, WordPiece::bundled()?));
    }
    let path = match Path::new(name).extension().is_some_and(|end| end == "json") {
        true => Path::new(name).to_path_buf(),
        false => Place::find(name)?.folder.join("config.json"),
    };
    let config = LxmertConfig::from_file(&path)?;
    let text = vocabulary(path.parent().unwrap_or(Path::new("")), &config)?;
    Ok((config, text))
}

impl Preprocessing {
    /// Reads the preprocessing of the checkpoint in `folder` and checks it against the model's limits.
    fn beside(folder: &Path, config: &LxmertConfig) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let longest = config.max_position_embeddings;
        if !path.is_file() {
            let published = Self::default();
            return Ok(Self { max_length: published.max_length.min(longest), ..published });
        }
        let read: Self = read_json(&path)?;
        if !(3..=longest).contains(&read.max_length) {
            let reason = format!(
                "max_length is {}, but must be 3 to {longest}, the model's number of positions",
                read.max_length
            );
            return Err(Error::format(path, reason));
        }
        if read.regions == 0 {
            return Err(Error::format(path, "regions is 0; at least 1 is needed"));
        }
        Ok(read)
    }

    /// Checks that regions with features of this length fit a model of this configuration.
    ///
    /// # Errors
    /// Returns an error with both lengths and the right detector if they do not.
    pub fn check_features(&self, config: &LxmertConfig, feature_dim: usize) -> Result<()> {
        let wanted = config.visual_feat_dim;
        if feature_dim == wanted {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "each region has {feature_dim} numbers, but the checkpoint needs {wanted}; {}",
            detector_for(wanted, &self.detector)
        )))
    }
}

/// Says which detector gives features of this length.
fn detector_for(feature_dim: usize, trained_on: &str) -> String {
    match (feature_dim, trained_on) {
        (2048, _) => {
            "use bottom-up attention's features: --features STORE (see `lxmert-extract import bottom-up`)".into()
        }
        (1024, "unknown" | "coco") => "use the coco detector".into(),
        (256, "unknown" | "scenes") => "use the scenes detector".into(),
        (_, name) => format!("use the detector that it was trained on, '{name}'"),
    }
}

/// The configuration of a `config.json`, after comparing its numbers with the weights: no allocation depends on a
/// number that only the text file claims. `files`: the `config.json` and the weights, for error messages.
fn described_by(fields: &Fields, found: &Fields, is_bert: bool, files: (&Path, &Path)) -> Result<LxmertConfig> {
    let (path, weights) = files;
    if config::is_bert(fields) != is_bert {
        let name = |bert: bool| if bert { "BERT" } else { "LXMERT" };
        let (says, are) = (name(!is_bert), name(is_bert));
        let reason = format!(
            "describes {says}, but {} holds {are}'s weights; does it belong to another checkpoint?",
            weights.display()
        );
        return Err(Error::format(path, reason));
    }
    let config = match is_bert {
        true => LxmertConfig::from_bert_fields(fields, path)?,
        false => LxmertConfig::from_fields(fields.clone(), path)?,
    };
    let mut says = fields_of(&config)?;
    // Heads follow the weights. BERT has other layers than the LXMERT that starts from it.
    let mut unchecked = vec!["num_qa_labels", "num_object_labels", "num_attr_labels"];
    let mut layers_key = "l_layers";
    if is_bert {
        unchecked.extend(["r_layers", "x_layers"]);
        layers_key = "num_hidden_layers";
        says.insert("l_layers".into(), fields.get(layers_key).cloned().unwrap_or(json!(12)));
    }
    for (key, held) in found.iter().filter(|(key, _)| !unchecked.contains(&key.as_str())) {
        let said = says.get(key).unwrap_or(&Value::Null);
        if said != held {
            let key = if key == "l_layers" { layers_key } else { key };
            let reason = format!(
                "{key} is {said}, but {} holds {held}; does it belong to another checkpoint?",
                weights.display()
            );
            return Err(Error::format(path, reason));
        }
    }
    Ok(config)
}

/// The keys of a `config.json` with the values of `config`.
fn fields_of(config: &LxmertConfig) -> Result<Fields> {
    match serde_json::to_value(config).map_err(Error::json("config.json"))? {
        Value::Object(fields) => Ok(fields),
        _ => Ok(Fields::new()),
    }
}

/// The configuration that the weights' shapes show. They do not show the number of heads: a preset of the same width
/// gives it, otherwise each head is 64 wide, as BERT's. Nor do they show the activation and the epsilon, which default
/// to the published ones.
fn shaped_by(found: &Fields, is_bert: bool, weights: &Path) -> Result<LxmertConfig> {
    let hidden = found.get("hidden_size").and_then(Value::as_u64).unwrap_or(0) as usize;
    let preset = |name: &&str| LxmertConfig::preset(name).ok().filter(|preset| preset.hidden_size == hidden);
    let preset = LxmertConfig::PRESETS.iter().find_map(preset).filter(|_| !is_bert);
    let mut fields = found.clone();
    let heads = preset.map_or((hidden / 64).max(1), |preset| preset.num_attention_heads);
    fields.insert("num_attention_heads".into(), json!(heads));
    if is_bert {
        let layers = fields.remove("l_layers").unwrap_or(json!(0));
        fields.insert("num_hidden_layers".into(), layers);
        return LxmertConfig::from_bert_fields(&fields, weights);
    }
    LxmertConfig::from_fields(fields, weights)
}

/// The answers in `id2label` of a `config.json`, by label; empty if it holds only transformers' `LABEL_0`, ….
fn labels(config: &Fields) -> Vec<String> {
    let Some(words) = config.get("id2label").and_then(Value::as_object) else { return Vec::new() };
    let word = |label: usize| words.get(&label.to_string())?.as_str().map(String::from);
    let words: Vec<String> = (0..words.len()).map_while(word).collect();
    if words.iter().enumerate().all(|(label, word)| *word == format!("LABEL_{label}")) { Vec::new() } else { words }
}

/// The tokeniser in `folder`, otherwise the bundled one, if it fits this configuration.
fn vocabulary(folder: &Path, config: &LxmertConfig) -> Result<WordPiece> {
    let (vocab, tokenizer) = (folder.join("vocab.txt"), folder.join("tokenizer.json"));
    let rows = config.vocab_size;
    let (path, text) = if vocab.is_file() {
        (vocab.clone(), WordPiece::from_vocab(&vocab)?)
    } else if tokenizer.is_file() {
        (tokenizer.clone(), WordPiece::from_tokenizer_json(&tokenizer)?)
    } else {
        let bundled = WordPiece::bundled()?;
        let entries = bundled.vocabulary().len();
        if entries == rows {
            return Ok(bundled);
        }
        let reason = format!(
            "no vocab.txt or tokenizer.json here; the model's vocabulary has {rows} entries and the bundled one {entries}; put the model's own here"
        );
        return Err(Error::format(folder, reason));
    };
    // Some embedding tables are padded to a round number of rows, so they may have more rows than the vocabulary has
    // entries.
    let entries = text.vocabulary().len();
    if entries > rows {
        let reason = format!(
            "{entries} entries, but the model has embeddings for {rows} (vocab_size); does it belong to another model?"
        );
        return Err(Error::format(path, reason));
    }
    Ok(text)
}
