//! Loads weights of every origin into a network: the hub's, the original's snapshots, BERT's, a bare trunk.

use candle_core::{DType, Device, Tensor};
use lxmert_core::Error;
use lxmert_core::checkpoint::{load_weights, save_safetensors};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::{MatchingModel, PretrainingModel};
use std::collections::BTreeMap;

type Shapes = Vec<(String, Vec<usize>)>;

fn config() -> LxmertConfig {
    LxmertConfig {
        hidden_size: 8,
        num_attention_heads: 2,
        intermediate_size: 12,
        vocab_size: 20,
        l_layers: 2,
        r_layers: 1,
        x_layers: 1,
        visual_feat_dim: 6,
        max_position_embeddings: 5,
        num_object_labels: 3,
        num_attr_labels: 0,
        num_qa_labels: 4,
        ..LxmertConfig::default()
    }
}

/// The error, or the names of the loaded weights, for a file with these names and shapes.
fn load(file: &Shapes, expected: &Shapes, allow: &[&str]) -> Result<BTreeMap<String, Tensor>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let zeros = |shape: &Vec<usize>| Tensor::zeros(shape.as_slice(), DType::F16, &Device::Cpu).unwrap();
    let tensors: Vec<_> = file.iter().map(|(name, shape)| (name.clone(), zeros(shape))).collect();
    save_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
    load_weights(&path, expected, &allow.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn renamed(shapes: &Shapes, name: impl Fn(&str) -> Option<String>) -> Shapes {
    shapes.iter().filter_map(|(old, shape)| Some((name(old)?, shape.clone()))).collect()
}

#[test]
fn heads_with_no_classes_have_no_weights() {
    let names = PretrainingModel::expected(&config()).unwrap();
    let has = |part: &str| names.iter().any(|(name, _)| name.contains(part));
    assert!(has("decoder_dict.obj") && has("decoder_dict.feat") && has("answer_head"));
    assert!(!has("decoder_dict.attr"));
    let none = LxmertConfig { num_object_labels: 0, num_qa_labels: 0, ..config() };
    assert!(
        PretrainingModel::expected(&none).unwrap().iter().all(|(n, _)| !n.contains(".obj.") && !n.contains("answer"))
    );
}

#[test]
fn matching_model_takes_its_weights_from_every_kind_of_snapshot() {
    let (all, expected) = (PretrainingModel::expected(&config()).unwrap(), MatchingModel::expected(&config()).unwrap());
    let original = |name: &str| Some(format!("module.{}", name.replacen("lxmert.", "bert.", 1)));
    for file in [all.clone(), renamed(&all, original)] {
        let weights = load(&file, &expected, &[]).unwrap();
        assert_eq!(weights.len(), expected.len());
        assert!(weights.values().all(|tensor| tensor.dtype() == DType::F32));
    }
    let task = |name: &str| match name.strip_prefix("lxmert.") {
        Some(rest) => Some(format!("lxrt_encoder.model.bert.{rest}")),
        None => name.strip_prefix("answer_head.").map(String::from),
    };
    let bare = |name: &str| name.strip_prefix("lxmert.").map(String::from);
    for file in [renamed(&all, task), renamed(&all, bare)] {
        let error = load(&file, &expected, &[]).unwrap_err();
        assert!(matches!(&error, Error::Checkpoint { missing, .. } if missing.len() == 2), "{error}");
        assert_eq!(load(&file, &expected, &["cls.seq_relationship.*"]).unwrap().len(), expected.len() - 2);
    }
    let mut surplus = all.clone();
    surplus.push(("lxmert.surprise".into(), vec![1]));
    let error = load(&surplus, &expected, &[]).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint { unexpected, .. } if unexpected.len() == 1), "{error}");
}

#[test]
fn bert_initialises_the_language_encoder() {
    let expected = PretrainingModel::expected(&config()).unwrap();
    let deep = PretrainingModel::expected(&LxmertConfig { l_layers: 3, ..config() }).unwrap();
    let bert = |name: &str| {
        let rest = name.strip_prefix("lxmert.");
        let kept = rest.is_some_and(|r| ["embeddings.", "encoder.layer.", "pooler."].iter().any(|p| r.starts_with(p)));
        (kept || name.starts_with("cls."))
            .then(|| name.replacen("lxmert.", "bert.", 1).replace("LayerNorm.weight", "LayerNorm.gamma"))
    };
    let file = renamed(&deep, bert);
    let weights = load(&file, &expected, &[]).unwrap();
    let has = |part: &str| weights.keys().any(|name| name.starts_with(part));
    for part in ["lxmert.embeddings.", "lxmert.encoder.layer.1.", "lxmert.pooler.", "cls.predictions.transform."] {
        assert!(has(part), "{part}");
    }
    for part in ["lxmert.encoder.layer.2.", "lxmert.encoder.x_layers.", "cls.seq_relationship.", "obj_predict_head."] {
        assert!(!has(part), "{part}");
    }
    // Without its pooler and heads, and without a prefix.
    let plain =
        renamed(&deep, |n| bert(n)?.strip_prefix("bert.").filter(|n| !n.starts_with("pooler")).map(String::from));
    assert!(load(&plain, &expected, &[]).unwrap().contains_key("lxmert.encoder.layer.0.output.dense.weight"));

    let shallow = PretrainingModel::expected(&LxmertConfig { l_layers: 4, ..config() }).unwrap();
    let error = load(&file, &shallow, &[]).unwrap_err().to_string();
    assert!(error.contains("16 missing (lxmert.encoder.layer.3."), "{error}");
    let wide = PretrainingModel::expected(&LxmertConfig { hidden_size: 16, ..config() }).unwrap();
    let error = load(&file, &wide, &[]).unwrap_err().to_string();
    assert!(error.contains("with another shape") && error.contains("needs [16]"), "{error}");
}
