//! A checkpoint of any origin, opened: its configuration, vocabulary, preprocessing, answers and weights.
//!
//! [`Pretrained::open`] takes a checkpoint's place in any form that [`Place::find`] takes. To run the checkpoint, ask it for
//! a model: [`matching`](Pretrained::matching), [`answering`](Pretrained::answering), [`judging`](Pretrained::judging), or
//! [`model`](Pretrained::model) for any other. To train another model from it, take [`start`](Pretrained::start),
//! [`text`](Pretrained::text) and [`weights`](Pretrained::weights).
//!
//! | file beside the weights | what it gives | without it |
//! | --- | --- | --- |
//! | `config.json` | the configuration, of LXMERT or BERT | sizes from the weights' shapes, to start from; a model cannot be run |
//! | `vocab.txt`, `tokenizer.json` | the tokeniser | the bundled vocabulary, where the sizes agree |
//! | `preprocessor_config.json` | lengths, regions, detector | what the published checkpoints were trained with |
//! | `answers.json` | the answers | `id2label` of `config.json`, else the published table of that size |

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

/// The first layer of an answer head, `[2·hidden, width of the pooled output]`: NLVR2's is over two of them.
const FIRST_LAYER: &str = "answer_head.logit_fc.0.weight";

/// The last layer of an answer head: a row for each answer.
const LAST_LAYER: &str = "answer_head.logit_fc.3.bias";

/// A checkpoint, opened.
#[derive(Debug, Clone)]
pub struct Pretrained {
    /// Where its files lie.
    pub place: Place,
    /// The configuration of the model: the checkpoint's own, or the one that BERT starts. The numbers of answers, objects
    /// and attributes are those of the weights; 0 for a head that they lack.
    pub config: LxmertConfig,
    /// The tokeniser.
    pub text: WordPiece,
    /// How to put data before the model.
    pub preprocessing: Preprocessing,
    /// Whether the weights are BERT's: a language encoder alone.
    pub is_bert: bool,
    /// Whether a `config.json` lies beside the weights.
    described: bool,
    /// Whether word embeddings are missing, which tell the sizes: `config` then means nothing.
    partial: bool,
    labels: Vec<String>,
    tensors: BTreeMap<String, Tensor>,
}

const NO_WORDS: &str = "holds no word embeddings of LXMERT or BERT; is this another network's?";

/// How sentences and regions are to be put before a model; `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Preprocessing {
    /// Longest sentence in WordPieces.
    pub max_length: usize,
    /// Regions per image, best first.
    pub regions: usize,
    /// The detector whose features the model was trained on.
    pub detector: String,
    /// How its regions were chosen, as the feature store said it: `detections`, `grid:8`, `cells:8`, `patches:7x7`.
    pub select: String,
}

impl Default for Preprocessing {
    /// What the published checkpoints, which do not say, were trained with.
    fn default() -> Self {
        Self { max_length: 20, regions: 36, detector: "unknown".into(), select: "detections".into() }
    }
}

impl Pretrained {
    /// Opens the checkpoint at `place`, in any form that [`Place::find`] takes.
    ///
    /// # Errors
    /// When there is none, a file is damaged, or its files contradict each other: a size in `config.json` that the weights
    /// do not have, or a vocabulary larger than their embeddings.
    pub fn open(place: impl AsRef<Path>) -> Result<Self> {
        Self::at(Place::find(place)?)
    }

    /// [`Pretrained::open`] for a place that was found already.
    ///
    /// # Errors
    /// As [`Pretrained::open`].
    pub fn at(place: Place) -> Result<Self> {
        let tensors = names::lxmert(&place.weights, read_tensors(&place.weights)?)?;
        let is_bert = is_bert(&tensors);
        let path = place.folder.join("config.json");
        let described = path.is_file();
        let found = match sizes(&tensors) {
            Some(found) => found,
            // Other parts of LXMERT, such as a pooler, are a start for a model of a size that is asked for.
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
        // The heads are those that are there: a task takes some and leaves others.
        let rows = |key: &str| found.get(key).and_then(Value::as_u64).map_or(0, |rows| rows as usize);
        config.num_qa_labels = rows("num_qa_labels");
        config.num_object_labels = rows("num_object_labels");
        config.num_attr_labels = rows("num_attr_labels");
        let text = vocabulary(&place.folder, &config)?;
        let preprocessing = Preprocessing::beside(&place.folder, &config)?;
        Ok(Self { place, config, text, preprocessing, is_bert, described, partial: false, labels, tensors })
    }

    /// Some weights of a model whose sizes nothing tells: enough to start from, for a model of a size that is asked for.
    fn partial(place: Place, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let config = LxmertConfig::default();
        let (text, preprocessing) = (WordPiece::bundled()?, Preprocessing::beside(&place.folder, &config)?);
        let (is_bert, described, labels) = (false, false, Vec::new());
        Ok(Self { place, config, text, preprocessing, is_bert, described, partial: true, labels, tensors })
    }

    /// The tensors by the hub's names, in the file's element types.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The weights named in `expected`; see [`take_weights`].
    ///
    /// # Errors
    /// As [`take_weights`].
    pub fn weights(
        &self,
        expected: &[(String, Vec<usize>)],
        allow_missing: &[String],
    ) -> Result<BTreeMap<String, Tensor>> {
        take_weights(&self.place.weights, self.tensors.clone(), expected, allow_missing)
    }

    /// The configuration of a model that starts from this checkpoint: `asked`, or the checkpoint's own. They must agree in
    /// everything that the weights were trained with; the number of layers may differ for BERT, and the length of a region's
    /// features and the heads are the task's.
    ///
    /// # Errors
    /// When they do not agree, with the key and both values.
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

    /// The model that `new` makes of this configuration, with these weights on `device`.
    ///
    /// # Errors
    /// When no `config.json` describes the model, or the weights do not fit it.
    pub fn model<M>(
        &self,
        device: &Device,
        new: impl Fn(&LxmertConfig, VarBuilder) -> candle_core::Result<M>,
    ) -> Result<M> {
        if !self.described {
            let reason = "no config.json beside it, which says what model it is; put the checkpoint's own there";
            return Err(Error::format(&self.place.weights, reason));
        }
        if self.is_bert {
            let reason = "these are BERT's weights; train a model from them (--init), and name that";
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
    /// As [`Pretrained::model`].
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
    /// When it has no answer head; as [`Pretrained::model`].
    pub fn answering(&self, device: &Device) -> Result<AnswerModel> {
        self.answer_head()?;
        self.model(device, AnswerModel::new)
    }

    /// The model that judges statements about two images.
    ///
    /// # Errors
    /// As [`Pretrained::model`].
    pub fn judging(&self, device: &Device) -> Result<PairModel> {
        self.model(device, PairModel::new).map_err(|error| {
            error.for_lacking_head("answer_head.", "no head over two images; name a checkpoint of --task statements")
        })
    }

    /// The answers of its answer head: those of `answers.json`, else of `id2label` in `config.json`, else the published table
    /// of as many answers.
    ///
    /// # Errors
    /// When it has no answer head, or nothing says what its answers are.
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
                "no answers.json here, and no published table has {count} answers, as the head does; put the list of its answers there"
            );
            return Err(Error::format(folder, reason));
        };
        if table.len() != count {
            let reason = format!("{} answers, but the checkpoint's head has {count}", table.len());
            return Err(Error::format(path, reason));
        }
        Ok(table)
    }

    /// How many answers its answer head has.
    fn answer_head(&self) -> Result<usize> {
        let reason = match self.tensors.get(LAST_LAYER).map(|rows| rows.elem_count()) {
            None => "has no answer head; name a checkpoint that was trained on questions (--task questions)",
            // NLVR2's head has the names of an answer head.
            Some(_)
                if self.tensors.get(FIRST_LAYER).is_some_and(|w| w.dims().last() != Some(&self.config.hidden_size)) =>
            {
                "judges statements about two images and answers no questions; name a checkpoint of --task questions"
            }
            Some(rows) => return Ok(rows),
        };
        Err(Error::format(&self.place.weights, reason))
    }

    /// Checks that regions with this many features fit the model.
    ///
    /// # Errors
    /// When they do not, with both numbers and the detector that fits.
    pub fn check_features(&self, feature_dim: usize) -> Result<()> {
        self.preprocessing.check_features(&self.config, feature_dim)
    }
}

/// The configuration that `name` names, to train a model from fresh weights, with the tokeniser beside it: a preset, a
/// `config.json`, or a checkpoint with one, in any form that [`Place::find`] takes.
///
/// # Errors
/// When there is none, it is not LXMERT's, or its numbers or its vocabulary do not fit together.
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
    /// What the checkpoint in `folder` says, within what a model of this configuration can take.
    fn beside(folder: &Path, config: &LxmertConfig) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let longest = config.max_position_embeddings;
        if !path.is_file() {
            let published = Self::default();
            return Ok(Self { max_length: published.max_length.min(longest), ..published });
        }
        let read: Self = read_json(&path)?;
        if !(3..=longest).contains(&read.max_length) {
            let reason =
                format!("max_length is {}, but must be 3 to {longest}, the model's positions", read.max_length);
            return Err(Error::format(path, reason));
        }
        if read.regions == 0 {
            return Err(Error::format(path, "regions is 0; at least 1 is needed"));
        }
        Ok(read)
    }

    /// Checks that regions with this many features fit a model of this configuration.
    ///
    /// # Errors
    /// When they do not, with both numbers and the detector that fits.
    pub fn check_features(&self, config: &LxmertConfig, feature_dim: usize) -> Result<()> {
        let wanted = config.visual_feat_dim;
        if feature_dim == wanted {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "the regions have {feature_dim} numbers each, but the checkpoint takes {wanted}; {}",
            detector_for(wanted, &self.detector)
        )))
    }
}

/// In words, which detector gives features of this length.
fn detector_for(feature_dim: usize, trained_on: &str) -> String {
    match (feature_dim, trained_on) {
        (2048, _) => "that is bottom-up attention's: give its features by --features STORE (see `lxmert-extract import bottom-up`)".into(),
        (1024, "unknown" | "coco") => "that is the coco detector's".into(),
        (256, "unknown" | "scenes") => "that is the scenes detector's".into(),
        (_, name) => format!("use the detector that it was trained on, '{name}'"),
    }
}

/// The configuration of a `config.json`, after its numbers were compared with what the weights hold: nothing is allocated by
/// a number that only the text file claims. `files`: the `config.json` and the weights, for messages.
fn described_by(fields: &Fields, found: &Fields, is_bert: bool, files: (&Path, &Path)) -> Result<LxmertConfig> {
    let (path, weights) = files;
    if config::is_bert(fields) != is_bert {
        let name = |bert: bool| if bert { "BERT" } else { "LXMERT" };
        let (says, are) = (name(!is_bert), name(is_bert));
        let reason =
            format!("describes {says}, but {} holds {are}'s weights; is it another checkpoint's?", weights.display());
        return Err(Error::format(path, reason));
    }
    let config = match is_bert {
        true => LxmertConfig::from_bert_fields(fields, path)?,
        false => LxmertConfig::from_fields(fields.clone(), path)?,
    };
    let mut says = fields_of(&config)?;
    // Heads are taken from the weights. BERT has other layers than the LXMERT that it starts.
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
            let reason =
                format!("{key} is {said}, but {} holds {held}; is it another checkpoint's?", weights.display());
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

/// The configuration that the shapes of the weights show. They do not show the heads: a preset of the same width says how
/// many there are, else each is 64 wide, as BERT's are; nor the activation and the epsilon, which are the published ones.
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

/// The answers in `id2label` of a `config.json`, by label; none where there are no words but transformers' `LABEL_0`, ….
fn labels(config: &Fields) -> Vec<String> {
    let Some(words) = config.get("id2label").and_then(Value::as_object) else { return Vec::new() };
    let word = |label: usize| words.get(&label.to_string())?.as_str().map(String::from);
    let words: Vec<String> = (0..words.len()).map_while(word).collect();
    if words.iter().enumerate().all(|(label, word)| *word == format!("LABEL_{label}")) { Vec::new() } else { words }
}

/// The tokeniser in `folder`, else the bundled one, if a model of this configuration can read it.
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
            "no vocab.txt or tokenizer.json here; the model's vocabulary has {rows} entries, so it is not the bundled one of {entries}; put its own here"
        );
        return Err(Error::format(folder, reason));
    };
    // A table of embeddings may have more rows than the vocabulary has entries: some are padded to a round number.
    let entries = text.vocabulary().len();
    if entries > rows {
        let reason =
            format!("{entries} entries, but the model has embeddings for {rows} (vocab_size); is it another model's?");
        return Err(Error::format(path, reason));
    }
    Ok(text)
}
