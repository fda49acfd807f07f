//! Checkpoints: pickles, archives, safetensors, configurations, vocabularies, and what a run leaves.

use super::{JSON, MB, PICKLE, any, fixtures, target, text, texts};
use crate::harness::Target;
use candle_core::Device;
use candle_core::Tensor;
use lxmert_core::checkpoint::read_pickle;
use lxmert_core::checkpoint::read_tensors;
use lxmert_core::checkpoint::save_safetensors;
use lxmert_core::checkpoint::verify_safetensors;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::MatchingModel;
use lxmert_core::pretrained::Pretrained;
use lxmert_core::procedural;
use lxmert_core::text::WordPiece;
use lxmert_extract::detector::DetectorConfig;
use lxmert_extract::detector::expected_tensors;
use lxmert_extract::regions::Dinov2Config;
use lxmert_train::job::RunSettings;
use lxmert_train::log::read_records;
use lxmert_train::resume;
use lxmert_train::run_folder::Report;
use lxmert_train::run_folder::RunFolder;
use std::collections::BTreeMap;
use std::path::Path;

pub fn pickle(root: &Path) -> Target {
    let seeds = [
        fixtures("lxmert-core/tests/fixtures/pickle", &[".p"]),
        fixtures("lxmert-core/tests/fixtures/numpy", &[".pkl"]),
        fixtures("lxmert-core/tests/fixtures/pth", &[".pkl"]),
    ];
    target(root, "pickle", "refs.p", seeds.concat(), PICKLE, |path| {
        any([read_pickle(path).map(drop).map_err(text), read_tensors(path).map(drop).map_err(text)])
    })
}

pub fn torch(root: &Path) -> Target {
    let seeds = [
        fixtures("lxmert-core/tests/fixtures/pth", &[".pth"]),
        fixtures("lxmert-extract/tests/fixtures/student_pt", &[".pt"]),
    ];
    target(root, "torch", "weights.pth", seeds.concat(), PICKLE, |path| read_tensors(path).map(drop).map_err(text))
}

pub fn safetensors(root: &Path) -> Target {
    let place = tempfile::NamedTempFile::new().unwrap();
    let full = |shape: &[usize], value: f32| Tensor::full(value, shape, &Device::Cpu).unwrap();
    let tensors = vec![("model.a".to_string(), full(&[2, 3], 0.5)), ("b".to_string(), full(&[], 1.0))];
    let metadata = BTreeMap::from([("position".to_string(), "{\"step\": 3}".to_string())]);
    save_safetensors(place.path(), &tensors, &metadata).unwrap();
    let plain = std::fs::read(place.path()).unwrap();
    lxmert_core::checkpoint::save_verifiable_safetensors(place.path(), &tensors, &metadata).unwrap();
    let seeds = vec![plain, std::fs::read(place.path()).unwrap()];
    let words = &[
        "\"dtype\":\"F32\"",
        "F64",
        "BF16",
        "I64",
        "BOOL",
        "F8_E4M3",
        "\"shape\":[",
        "\"data_offsets\":[0,",
        "__metadata__",
    ];
    target(root, "safetensors", "model.safetensors", seeds, words, |path| {
        let _ = verify_safetensors(path);
        let _ = resume::position(path);
        read_tensors(path).map(drop).map_err(text)
    })
}

/// A small LXMERT.
fn small() -> LxmertConfig {
    LxmertConfig {
        vocab_size: ENTRIES.len(),
        hidden_size: 8,
        num_attention_heads: 2,
        intermediate_size: 8,
        max_position_embeddings: 10,
        l_layers: 1,
        r_layers: 1,
        x_layers: 1,
        visual_feat_dim: 4,
        num_object_labels: 0,
        num_attr_labels: 0,
        num_qa_labels: 0,
        ..LxmertConfig::default()
    }
}

const ENTRIES: [&str; 8] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s"];

const KEYS: &[&str] = &[
    "{",
    "}",
    "\"",
    ":",
    ",",
    "\"l_layers\": 1",
    "\"hidden_size\": 1048576",
    "\"vocab_size\": 1048576",
    "\"num_attention_heads\": 1",
    "\"model_type\": \"bert\"",
    "\"num_hidden_layers\": 3",
    "\"hidden_act\": \"relu\"",
    "\"id2label\": {\"0\": \"a\"}",
    "gelu_new",
    "\"visual_feat_dim\": 0",
    "\"regions\": 18446744073709551615",
    "\"max_length\": 3",
    "\"do_lower_case\": false",
];

pub fn config(root: &Path) -> Target {
    let lxmert = small().to_json("LxmertForPreTraining", &["yes".to_string()]).into_bytes();
    let detectors = fixtures("lxmert-extract/tests/fixtures/dinov2", &["config.json"]);
    let tiny = r#"{"transform": {"min_size": 64, "max_size": 96}, "backbone": {"block": "basic", "stem_width": 4, "blocks": [1, 1, 1, 1], "stage_widths": [4, 4, 4, 4], "batch_norm_eps": 1e-5}, "fpn": {"channels": 4}, "rpn": {"pre_nms_top_n": 50}, "roi_heads": {"representation_size": 8}, "label_names": ["background", "cat"], "attributes": [{"name": "colour", "classes": ["red", "blue"]}]}"#;
    let seeds = [vec![lxmert], detectors, texts(&[tiny])].concat();
    let target = target(root, "config", "config.json", seeds, KEYS, |path| {
        let network = |config: &LxmertConfig| MatchingModel::expected(config).map(drop).map_err(text);
        let detector = |config: &DetectorConfig| expected_tensors(config).map(drop).map_err(text);
        any([
            LxmertConfig::from_file(path).map_err(text).and_then(|config| network(&config)),
            DetectorConfig::from_json_file(path).map_err(text).and_then(|config| detector(&config)),
            Dinov2Config::from_json_file(path).map(drop).map_err(text),
        ])
    });
    Target { spare: 64 * MB, ..target }
}

/// A whole checkpoint, of which one of the small files changes.
pub fn checkpoint(root: &Path) -> Target {
    let config = small().to_json("LxmertForPreTraining", &[]);
    let seeds = texts(&[
        &config,
        r#"{"max_length": 8, "regions": 3, "detector": "test", "select": "grid:2"}"#,
        r#"{"tokenizer_class": "LxmertTokenizer", "do_lower_case": true}"#,
    ]);
    let target = target(root, "checkpoint", "any.json", seeds, KEYS, |_| Ok(()));
    let folder = target.path.parent().unwrap().to_path_buf();
    let shapes = MatchingModel::expected(&small()).unwrap();
    let weights =
        shapes.iter().map(|(name, shape)| (name.clone(), procedural::tensor(name, shape, -0.4, 0.4, 0).unwrap()));
    save_safetensors(folder.join("model.safetensors"), &weights.collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
    std::fs::write(folder.join("vocab.txt"), ENTRIES.join("\n")).unwrap();
    let any_file = target.path.clone();
    let read = move || {
        let mut results = Vec::new();
        for name in ["config.json", "preprocessor_config.json", "tokenizer_config.json"] {
            std::fs::write(folder.join("config.json"), &config).unwrap();
            std::fs::copy(&any_file, folder.join(name)).unwrap();
            let opened = Pretrained::open(&folder).map_err(text);
            results.push(opened.and_then(|checkpoint| checkpoint.matching(&Device::Cpu).map(drop).map_err(text)));
            if name != "config.json" {
                std::fs::remove_file(folder.join(name)).unwrap();
            }
        }
        let results: [_; 3] = results.try_into().map_err(|_| String::new())?;
        any(results)
    };
    Target { spare: 16 * MB, read: Box::new(read), ..target }
}

pub fn vocabulary(root: &Path) -> Target {
    let seeds = texts(&[&ENTRIES.join("\n"), &ENTRIES.join("\r\n"), &format!("\u{feff}{}\n", ENTRIES.join("\n"))]);
    let words = &["[PAD]", "[UNK]", "##", "\n", "\r", "\0", "é", "e\u{301}", "\u{feff}", " "];
    let target = target(root, "vocabulary", "vocab.txt", seeds, words, |path| {
        let words = WordPiece::from_vocab(path).map_err(text)?;
        let encoded = words.encode("A dog's dogs — 犬 🐕\u{301} …", 8).map_err(text)?;
        assert!(encoded.ids.len() <= 8 && encoded.ids.iter().all(|id| (*id as usize) < words.vocabulary().len()));
        words.tokenizer_json().map(drop).map_err(text)
    });
    Target { per_byte: 1000, ..target }
}

pub fn tokenizer(root: &Path) -> Target {
    let place = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(place.path(), ENTRIES.join("\n")).unwrap();
    let seeds = texts(&[&WordPiece::from_vocab(place.path()).unwrap().tokenizer_json().unwrap()]);
    let words = &[
        "\"model\": {",
        "\"vocab\": {",
        "\"type\": \"BPE\"",
        "\"type\": \"Unigram\"",
        "\"[PAD]\": 0",
        "\"lowercase\": true",
        "{",
        "}",
    ];
    let target = target(root, "tokenizer", "tokenizer.json", seeds, words, |path| {
        let words = WordPiece::from_tokenizer_json(path).map_err(text)?;
        words.encode("A dog's dogs", 8).map(drop).map_err(text)
    });
    Target { per_byte: 1000, ..target }
}

/// What a run writes, and reads again.
pub fn run(root: &Path) -> Target {
    let seeds = texts(&[
        "{\"kind\":\"step\",\"step\":20,\"epoch\":0.5,\"loss\":0.7,\"accuracy\":0.5,\"gradient_norm\":1.0,\"learning_rate\":0.001,\"examples_per_second\":10.0}\n",
        r#"{"data":"x","task":"matching","steps":3,"epochs":1,"parameters":5,"training_seconds":1.0,"epoch":1,"test":{"random":{"accuracy":0.5,"loss":null}}}"#,
        r#"{"recipe":{"task":"matching"},"data":{"captions":{"name":"x","captions":"x.csv","features":"f"}},"files":{}}"#,
    ]);
    target(root, "run", "run.json", seeds, JSON, |path| {
        any([
            read_records(path).map(drop).map_err(text),
            Report::read(path).map(drop).map_err(text),
            RunSettings::read(&RunFolder::new(path.parent().unwrap())).map(drop).map_err(text),
        ])
    })
}
