//! The answer head of a model that starts from other weights.

use crate::Result;
use candle_core::Tensor;
use lxmert_core::answers::AnswerTable;
use lxmert_core::checkpoint::take_weights;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::AnswerModel;
use lxmert_core::pretrained::Pretrained;
use std::collections::BTreeMap;

/// The last layer of an answer head, one row per answer.
const LAST_LAYER: [&str; 2] = ["answer_head.logit_fc.3.weight", "answer_head.logit_fc.3.bias"];

/// The weights of an answering model from a checkpoint of another task or with other answers, and how many answers have
/// a row there. The head's last layer is copied answer by answer, matched by normalised words; answers that the
/// checkpoint lacks start at zero (the original's `load_lxmert_qa`). If the checkpoint has no head, or no table that
/// says what its answers are, the head starts at random. Names that match `allow_missing` may be absent.
///
/// # Errors
/// Returns an error with every name that is missing, unexpected or misshapen.
pub fn starting_weights(
    checkpoint: &Pretrained,
    config: &LxmertConfig,
    answers: &AnswerTable,
    allow_missing: &[String],
) -> Result<(BTreeMap<String, Tensor>, Option<usize>)> {
    let mut tensors = checkpoint.tensors().clone();
    let mut fresh = allow_missing.to_vec();
    let mut matched = None;
    if LAST_LAYER.iter().all(|name| tensors.contains_key(*name)) {
        match checkpoint.answers() {
            Ok(table) => {
                let rows = answers.match_rows(&table);
                for name in LAST_LAYER {
                    if let Some(tensor) = tensors.get_mut(name) {
                        *tensor = take_rows(tensor, &rows)?;
                    }
                }
                matched = Some(rows.iter().flatten().count());
            }
            Err(reason) => log::warn!("{reason}; the answer head starts from random weights"),
        }
    }
    if matched.is_none() {
        tensors.retain(|name, _| !name.starts_with("answer_head."));
        fresh.push("answer_head.*".into());
    }
    let expected = AnswerModel::expected(config)?;
    Ok((take_weights(&checkpoint.place.weights, tensors, &expected, &fresh)?, matched))
}

/// Row `rows[i]` of `table` becomes row `i`; zeros for `None`. `table`: `[rows, …]`.
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
    use candle_core::{DType, Device};
    use candle_nn::{VarBuilder, VarMap};
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
    fn a_new_head_copies_the_rows_of_equal_answers() {
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
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].join("\n");
        std::fs::write(folder.path().join("vocab.txt"), special).unwrap();
        let start =
            |config: &LxmertConfig| starting_weights(&Pretrained::open(folder.path()).unwrap(), config, &answers, &[]);

        // The four answers are unknown: the trunk is used, and the head starts at random.
        let (found, matched) = start(&tiny(3)).unwrap();
        assert!(matched.is_none() && found.keys().all(|name| name.starts_with("lxmert.")) && found.len() > 50);

        std::fs::write(folder.path().join("answers.json"), r#"["2", "cat", "man", "yes"]"#).unwrap();
        let (found, matched) = start(&tiny(3)).unwrap();
        assert_eq!((matched, found.len()), (Some(2), before.len()));
        assert_eq!(row(&found, 0), row(&before, 2));
        assert!(row(&found, 1).iter().all(|&value| value == 0.0));
        assert_eq!(row(&found, 2), row(&before, 0));
        assert_eq!(found[LAST_LAYER[1]].dims(), [3]);

        std::fs::write(folder.path().join("answers.json"), r#"["2", "cat"]"#).unwrap();
        assert!(start(&tiny(3)).unwrap().1.is_none());
        let wider = LxmertConfig { visual_feat_dim: 24, ..tiny(3) };
        let error = start(&wider).unwrap_err().to_string();
        assert!(error.contains("visn_fc"), "{error}");
    }

    #[test]
    fn the_norm_of_a_fresh_answer_head_starts_at_one() {
        let weights: BTreeMap<String, Tensor> = weights_of(&tiny(4)).into_iter().collect();
        let norm: Vec<f32> = weights["answer_head.logit_fc.2.weight"].to_vec1().unwrap();
        assert!(norm.iter().all(|&value| value == 1.0));
    }
}
