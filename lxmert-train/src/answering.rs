//! Models with an answer head: reading one, starting one from another's weights, and asking it.

use crate::data::answers::AnswerTable;
use crate::run_folder::{CheckpointFiles, Preprocessing};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::checkpoint::{names, read_tensors, take_weights};
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::Regions;
use lxmert_core::model::{AnswerModel, Forward, LxmertInputs};
use lxmert_core::text::WordPiece;
use lxmert_core::workspace::Workspace;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The first layer of an answer head: `[2·hidden, hidden]`.
const FIRST_LAYER: &str = "answer_head.logit_fc.0.weight";

/// Where the last layer of an answer head lies: a row for each answer.
const LAST_LAYER: [&str; 2] = ["answer_head.logit_fc.3.weight", "answer_head.logit_fc.3.bias"];

/// The published tables that ship, by their number of answers.
const PUBLISHED: [(usize, &str); 3] = [(9500, "pretraining.json"), (3129, "vqa.json"), (1842, "gqa.json")];

/// A checkpoint that answers questions.
pub struct AnswerCheckpoint {
    /// The model's configuration.
    pub config: LxmertConfig,
    /// How to put data before it.
    pub preprocessing: Preprocessing,
    /// Its tokeniser.
    pub text: WordPiece,
    /// Its answers.
    pub answers: AnswerTable,
    /// The model.
    pub model: AnswerModel,
}

/// An answer with its probability.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Answer {
    /// The answer.
    pub answer: String,
    /// The sigmoid of its logit: the score it is expected to get. Answers do not share a sum of 1. Of a head trained with
    /// `--answer-loss one` only the order means something.
    pub probability: f32,
}

impl AnswerCheckpoint {
    /// Reads a checkpoint of ours or of the hub; `place`: any form that
    /// [`Place::find`](lxmert_core::checkpoint::Place::find) takes.
    ///
    /// # Errors
    /// When a file is missing, the weights do not fit the configuration, or nothing says what its answers are.
    pub fn open(place: &Path, device: &Device) -> Result<Self> {
        let CheckpointFiles { place, config, preprocessing, text } = CheckpointFiles::open(place, "questions")?;
        let path = place.weights;
        let tensors = names::lxmert(&path, read_tensors(&path)?)?;
        let rows = answer_rows(&tensors).ok_or_else(|| {
            Error::file(&path, "has no answer head; name a checkpoint that was trained on questions (--task questions)")
        })?;
        // NLVR2's head, over two pooled outputs, has the names of an answer head.
        if tensors.get(FIRST_LAYER).is_some_and(|layer| layer.dims().last() != Some(&config.hidden_size)) {
            let reason =
                "judges statements about two images and answers no questions; name a checkpoint of --task questions";
            return Err(Error::file(&path, reason));
        }
        let config = LxmertConfig { num_qa_labels: rows, ..config };
        let answers = table_of(&place.folder, rows)?;
        let weights: HashMap<String, Tensor> = take_weights(&path, tensors, &AnswerModel::expected(&config)?, &[])?
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_device(device)?)))
            .collect::<Result<_>>()?;
        let model = AnswerModel::new(&config, VarBuilder::from_tensors(weights, DType::F32, device))?;
        Ok(Self { config, preprocessing, text, answers, model })
    }

    /// The `top` best answers to a question about an image's regions, the best first.
    ///
    /// # Errors
    /// When the regions' features are not as long as the model takes, or a computation fails.
    pub fn ask(&self, regions: &Regions, question: &str, top: usize, device: &Device) -> Result<Vec<Answer>> {
        if question.trim().is_empty() {
            return Err(Error::Argument("the question is empty".into()));
        }
        self.check_features(regions.feature_dim)?;
        let count = regions.num_regions().min(self.preprocessing.regions);
        if count == 0 {
            return Err(Error::Argument("the detector found no region in the photo".into()));
        }
        let ids = self.text.encode(question, self.preprocessing.max_length)?.ids;
        let boxes: Vec<f32> = regions.boxes[..count].iter().flatten().copied().collect();
        let width = regions.feature_dim;
        let inputs = LxmertInputs {
            input_ids: Tensor::from_slice(&ids, (1, ids.len()), device)?,
            attention_mask: None,
            visual_feats: Tensor::from_slice(&regions.features[..count * width], (1, count, width), device)?,
            visual_boxes: Tensor::from_vec(boxes, (1, count, 4), device)?,
            visual_attention_mask: None,
        };
        let logits = self.model.forward(&inputs, &Forward::eval())?.logits.squeeze(0)?.to_vec1::<f32>()?;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let answer = |label: usize| Answer {
            answer: self.answers.answer(label as u32).unwrap_or("").to_string(),
            probability: 1.0 / (1.0 + (-logits[label]).exp()),
        };
        Ok(order.into_iter().take(top).map(answer).collect())
    }

    /// Whether features of this length fit the model.
    ///
    /// # Errors
    /// When they do not, with both lengths and the detector that fits.
    pub fn check_features(&self, feature_dim: usize) -> Result<()> {
        check_features(&self.config, &self.preprocessing, feature_dim)
    }
}

/// Whether features of this length fit a model.
///
/// # Errors
/// When they do not, with both lengths and the detector that fits.
pub fn check_features(config: &LxmertConfig, preprocessing: &Preprocessing, feature_dim: usize) -> Result<()> {
    let wanted = config.visual_feat_dim;
    if feature_dim == wanted {
        return Ok(());
    }
    Err(Error::Argument(format!(
        "the regions have {feature_dim} numbers each, but the checkpoint takes {wanted}; {}",
        detector_for(wanted, &preprocessing.detector)
    )))
}

/// In words, which detector gives features of this length.
pub fn detector_for(feature_dim: usize, trained_on: &str) -> String {
    match (feature_dim, trained_on) {
        (2048, _) => "that is bottom-up attention's: give its features by --features STORE (see `lxmert-extract import bottom-up`)".into(),
        (1024, "unknown" | "coco") => "that is the coco detector's".into(),
        (256, "unknown" | "scenes") => "that is the scenes detector's".into(),
        (_, name) => format!("use the detector that it was trained on, '{name}'"),
    }
}

/// The weights of an answering model out of a checkpoint of another task or of other answers, and how many answers have a
/// row there. The head's last layer is taken over answer by answer, by the normalised words, and answers that the
/// checkpoint lacks start at zero (the original's `load_lxmert_qa`); names that `allow_missing` covers may be absent. Without a head in the checkpoint, or without a table
/// that says what its answers are, the head is left to start at random.
///
/// # Errors
/// When the file cannot be read, or with every name that is missing, unexpected or misshapen.
pub fn starting_weights(
    path: &Path,
    config: &LxmertConfig,
    answers: &AnswerTable,
    allow_missing: &[String],
) -> Result<(BTreeMap<String, Tensor>, Option<usize>)> {
    let mut tensors = names::lxmert(path, read_tensors(path)?)?;
    let mut matched = None;
    match answer_rows(&tensors) {
        None => {}
        Some(rows) => match table_of(path.parent().unwrap_or(Path::new(".")), rows) {
            Ok(table) => {
                let rows = answers.match_rows(&table);
                for name in LAST_LAYER {
                    if let Some(tensor) = tensors.get_mut(name) {
                        *tensor = take_rows(tensor, &rows)?;
                    }
                }
                matched = Some(rows.iter().flatten().count());
            }
            Err(reason) => {
                log::warn!("{reason}; the answer head starts from random weights");
                tensors.retain(|name, _| !name.starts_with("answer_head."));
            }
        },
    }
    let mut fresh = allow_missing.to_vec();
    if matched.is_none() {
        fresh.push("answer_head.*".into());
    }
    Ok((take_weights(path, tensors, &AnswerModel::expected(config)?, &fresh)?, matched))
}

/// How many answers a checkpoint's head has.
fn answer_rows(tensors: &BTreeMap<String, Tensor>) -> Option<usize> {
    tensors.get(LAST_LAYER[1])?.dims().first().copied()
}

/// The answers of a checkpoint in `folder`: its `answers.json`, else the published table of as many answers.
fn table_of(folder: &Path, count: usize) -> Result<AnswerTable> {
    let own = folder.join("answers.json");
    let path = if own.is_file() { own } else { published(count, folder)? };
    let table = AnswerTable::read(&path)?;
    if table.len() != count {
        return Err(Error::file(&path, format!("{} answers, but the checkpoint's head has {count}", table.len())));
    }
    Ok(table)
}

fn published(count: usize, folder: &Path) -> Result<PathBuf> {
    let known = PUBLISHED.iter().find(|(rows, _)| *rows == count).map(|(_, name)| *name);
    let name = known.ok_or_else(|| {
        Error::file(
            folder,
            format!(
                "no answers.json here, and no published table has {count} answers, as the head does; put the list of its answers there"
            ),
        )
    })?;
    Ok(Workspace::locate()?.data("answers").join(name))
}

/// Row `rows[i]` of `table` as row `i`; zeros for none. `table`: `[rows, …]`.
fn take_rows(table: &Tensor, rows: &[Option<usize>]) -> Result<Tensor> {
    let zero = table.narrow(0, 0, 1)?.zeros_like()?;
    let with_zero = Tensor::cat(&[table, &zero], 0)?;
    let last = table.dim(0)? as u32;
    let index: Vec<u32> = rows.iter().map(|row| row.map_or(last, |row| row as u32)).collect();
    Ok(with_zero.index_select(&Tensor::from_vec(index, rows.len(), table.device())?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_nn::VarMap;
    use lxmert_core::checkpoint::save_safetensors;
    use lxmert_core::model::init::seed_weights;

    fn table(answers: &[&str]) -> AnswerTable {
        AnswerTable::new(answers.iter().map(ToString::to_string).collect()).unwrap()
    }

    fn tiny(answers: usize) -> LxmertConfig {
        let config = LxmertConfig::preset("tiny").unwrap();
        LxmertConfig { num_qa_labels: answers, visual_feat_dim: 12, vocab_size: 50, ..config }
    }

    fn weights_of(config: &LxmertConfig) -> Vec<(String, Tensor)> {
        let variables = VarMap::new();
        AnswerModel::new(config, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu)).unwrap();
        seed_weights(&variables, 7, 0.02).unwrap();
        let data = variables.data().lock().unwrap();
        let mut all: Vec<_> = data.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    #[test]
    fn a_new_head_takes_its_rows_by_the_answer_s_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let old = tiny(4);
        let mut weights = weights_of(&old);
        let row = |weights: &BTreeMap<String, Tensor>, row: usize| -> Vec<f32> {
            weights[LAST_LAYER[0]].get(row).unwrap().to_vec1().unwrap()
        };
        let before: BTreeMap<String, Tensor> = weights.iter().cloned().collect();
        weights.push(("cls.seq_relationship.bias".into(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()));
        save_safetensors(&path, &weights, &BTreeMap::new()).unwrap();
        let answers = table(&["The man", "dog", "two"]);

        // Nothing says what the four answers are: the head is left to chance, the trunk is taken.
        let (found, matched) = starting_weights(&path, &tiny(3), &answers, &[]).unwrap();
        assert!(matched.is_none() && found.keys().all(|name| name.starts_with("lxmert.")) && found.len() > 50);

        std::fs::write(folder.path().join("answers.json"), r#"["2", "cat", "man", "yes"]"#).unwrap();
        let (found, matched) = starting_weights(&path, &tiny(3), &answers, &[]).unwrap();
        assert_eq!((matched, found.len()), (Some(2), before.len()));
        assert_eq!(row(&found, 0), row(&before, 2));
        assert!(row(&found, 1).iter().all(|&value| value == 0.0));
        assert_eq!(row(&found, 2), row(&before, 0));
        assert_eq!(found[LAST_LAYER[1]].dims(), [3]);

        std::fs::write(folder.path().join("answers.json"), r#"["2", "cat"]"#).unwrap();
        assert!(starting_weights(&path, &tiny(3), &answers, &[]).unwrap().1.is_none());
        let wider = LxmertConfig { visual_feat_dim: 24, ..tiny(3) };
        let error = starting_weights(&path, &wider, &answers, &[]).unwrap_err().to_string();
        assert!(error.contains("visn_fc"), "{error}");
    }

    #[test]
    fn the_norm_of_a_fresh_answer_head_starts_as_a_norm() {
        let weights: BTreeMap<String, Tensor> = weights_of(&tiny(4)).into_iter().collect();
        let norm: Vec<f32> = weights["answer_head.logit_fc.2.weight"].to_vec1().unwrap();
        assert!(norm.iter().all(|&value| value == 1.0));
    }

    #[test]
    fn a_mismatch_says_which_detector_fits() {
        assert!(detector_for(2048, "unknown").contains("bottom-up"));
        assert!(detector_for(256, "scenes").contains("scenes detector"));
        assert!(detector_for(77, "mine").contains("'mine'"));
    }
}
