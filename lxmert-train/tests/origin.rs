//! Where a run's model comes from: an initial checkpoint brings its configuration and vocabulary, `--config` names any
//! size, and contradictions are errors.

#[path = "../../lxmert-core/tests/at_once/mod.rs"]
mod at_once;
mod common;
#[path = "../../lxmert-core/tests/loopback/mod.rs"]
mod loopback;

use assert_cmd::Command;
use candle_core::Tensor;
use candle_nn::Activation;
use lxmert_core::checkpoint::save_safetensors;
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::PretrainingModel;
use lxmert_core::procedural;
use lxmert_core::text::WordPiece;
use lxmert_train::origin::Origin;
use lxmert_train::recipe::Recipe;
use predicates::str::contains;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The captions' words, in another order than BERT's.
const WORDS: [&str; 23] = [
    "red", "[SEP]", "a", "green", "[MASK]", "blue", "yellow", "circle", "[CLS]", "square", "star", "cross", "there",
    "is", "one", "here", ",", "and", "it", ".", "[UNK]", "thing", "[PAD]",
];

fn config() -> LxmertConfig {
    LxmertConfig {
        vocab_size: WORDS.len(),
        hidden_size: 24,
        num_attention_heads: 3,
        intermediate_size: 40,
        max_position_embeddings: 20,
        hidden_act: Activation::Relu,
        layer_norm_eps: 1e-6,
        l_layers: 2,
        r_layers: 1,
        x_layers: 1,
        visual_feat_dim: 12,
        num_object_labels: 0,
        num_attr_labels: 0,
        num_qa_labels: 0,
        ..LxmertConfig::default()
    }
}

fn save(folder: &Path, shapes: impl IntoIterator<Item = (String, Vec<usize>)>) {
    let weights: Vec<(String, Tensor)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let centre = if name.contains("LayerNorm.weight") { 1.0 } else { 0.0 };
            let tensor = procedural::tensor(&name, &shape, centre - 0.2, centre + 0.2, 0).unwrap();
            (name, tensor)
        })
        .collect();
    save_safetensors(folder.join("model.safetensors"), &weights, &BTreeMap::new()).unwrap();
    std::fs::write(folder.join("vocab.txt"), WORDS.join("\n")).unwrap();
}

/// A pre-trained LXMERT in the hub's layout.
fn lxmert(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    save(folder, PretrainingModel::expected(&config()).unwrap());
    std::fs::write(folder.join("config.json"), config().to_json("LxmertForPreTraining", &[])).unwrap();
}

/// A BERT with three layers, 24 wide.
fn bert(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let shapes = PretrainingModel::expected(&LxmertConfig { l_layers: 3, ..config() }).unwrap().into_iter();
    let parts = ["lxmert.embeddings.", "lxmert.encoder.layer.", "lxmert.pooler.", "cls.predictions."];
    let taken = shapes.filter(|(name, _)| parts.iter().any(|part| name.starts_with(part)));
    save(folder, taken.map(|(name, shape)| (name.replacen("lxmert.", "bert.", 1), shape)));
    let bert = json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": 24, "num_attention_heads": 3,
        "num_hidden_layers": 3, "intermediate_size": 40, "max_position_embeddings": 20, "hidden_act": "relu",
        "layer_norm_eps": 1e-6,
    });
    std::fs::write(folder.join("config.json"), bert.to_string()).unwrap();
}

/// Trains this many epochs on the data in `root`, into `root/NAME`.
fn train_epochs(root: &Path, name: &str, epochs: &str, flags: &[&str]) -> Command {
    let mut command = Command::cargo_bin("lxmert-train").unwrap();
    command.args(["--data", ".", "--features", "features", "--output", name, "--batch-size", "8"]);
    command
        .args(["--max-length", "16", "--recall-images", "0", "--quiet", "--epochs", epochs])
        .args(flags)
        .current_dir(root);
    command
}

fn train(root: &Path, name: &str, flags: &[&str]) -> Command {
    train_epochs(root, name, "1", flags)
}

fn saved(root: &Path, run: &str) -> LxmertConfig {
    LxmertConfig::from_file(root.join(run).join("best/config.json")).unwrap()
}

/// A configuration without the values that the recipe and the task decide.
fn sizes(config: LxmertConfig) -> LxmertConfig {
    let of_task = LxmertConfig::default();
    LxmertConfig {
        hidden_dropout_prob: of_task.hidden_dropout_prob,
        attention_probs_dropout_prob: of_task.attention_probs_dropout_prob,
        initializer_range: of_task.initializer_range,
        num_object_labels: 0,
        num_attr_labels: 0,
        num_qa_labels: 0,
        ..config
    }
}

#[test]
fn init_alone_brings_the_configuration_and_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 24);
    lxmert(&root.join("lxmert"));
    bert(&root.join("bert"));
    train(root, "run", &["--init", "lxmert", "--masked-words", "1"]).assert().success();
    assert_eq!(sizes(saved(root, "run")), sizes(config()));
    let vocabulary =
        |run: &str| WordPiece::from_vocab(root.join(run).join("best/vocab.txt")).unwrap().vocabulary().to_vec();
    assert_eq!(vocabulary("run"), WORDS);

    // The same from the hub; and a BERT whose sizes match no preset.
    let endpoint = loopback::serve_folder(&root.join("lxmert"));
    let mut hub = train(root, "hub", &["--init", "hf:owner/repo", "--masked-words", "1"]);
    hub.env("HF_ENDPOINT", &endpoint).env("HF_HUB_CACHE", root.join("cache")).env("HF_TOKEN", "hf_test");
    hub.assert().success();
    let weights = |run: &str| std::fs::read(root.join(run).join("best/model.safetensors")).unwrap();
    assert!(weights("hub") == weights("run"));
    // Two processes fill one cache.
    let fill = |run: &str| {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("lxmert-train"));
        let start = train(root, run, &["--init", "hf:owner/repo", "--masked-words", "1"]);
        command.args(start.get_args()).current_dir(root);
        command.env("HF_ENDPOINT", &endpoint).env("HF_HUB_CACHE", root.join("shared")).env("HF_TOKEN", "hf_test");
        command
    };
    assert_eq!(at_once::at_once([fill("first"), fill("second")]), [true, true]);
    assert!(weights("first") == weights("run") && weights("second") == weights("run"));
    train(root, "from-bert", &["--init", "bert"]).assert().success();
    let layers = LxmertConfig { l_layers: 3, r_layers: 2, x_layers: 2, ..config() };
    assert_eq!(sizes(saved(root, "from-bert")), sizes(layers));
    assert_eq!(vocabulary("from-bert"), WORDS);

    // A trained model is measured with its own configuration and vocabulary.
    let mut evaluate = Command::cargo_bin("lxmert-train").unwrap();
    evaluate.args(["evaluate", "run", "--data", ".", "--features", "features", "--recall-images", "0", "--json"]);
    let measured = evaluate.current_dir(root).assert().success().get_output().stdout.clone();
    let measured: Value = serde_json::from_slice(&measured).unwrap();
    let report: Value = serde_json::from_str(&std::fs::read_to_string(root.join("run/report.json")).unwrap()).unwrap();
    assert_eq!(measured["measures"], report["test"]);
}

#[test]
fn a_run_resumes_with_its_own_configuration_if_its_initial_checkpoint_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 24);
    lxmert(&root.join("lxmert"));
    let run = |name: &str, more: &[&str]| train_epochs(root, name, "2", &[&["--init", "lxmert"], more].concat());
    run("whole", &[]).assert().success();
    let steps = lxmert_train::log::read_records(&root.join("whole/metrics.jsonl")).unwrap();
    let epoch = steps.iter().find_map(|record| match record {
        lxmert_train::log::Record::Epoch(epoch) => Some(epoch.step),
        _ => None,
    });
    run("broken", &["--stop-after", &(epoch.unwrap() + 1).to_string()]).assert().code(130);
    std::fs::remove_dir_all(root.join("lxmert")).unwrap();
    run("broken", &["--resume"]).assert().success();
    let weights = |run: &str| std::fs::read(root.join(run).join("last/model.safetensors")).unwrap();
    assert!(weights("whole") == weights("broken"));
}

#[test]
fn config_names_a_model_of_any_size() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    common::write_data(root, 24);
    lxmert(&root.join("lxmert"));
    for (run, name) in [("file", "lxmert/config.json"), ("checkpoint", "lxmert")] {
        train(root, run, &["--config", name]).assert().success();
        assert_eq!(sizes(saved(root, run)), sizes(config()));
    }
    let weights = |run: &str| std::fs::read(root.join(run).join("best/model.safetensors")).unwrap();
    assert!(weights("file") == weights("checkpoint"));
    std::fs::write(root.join("wide.json"), json!({"hidden_size": 30, "num_attention_heads": 4}).to_string()).unwrap();
    let wrong = train(root, "wide", &["--config", "wide.json"]).assert().code(1);
    wrong.stderr(contains("wide.json: hidden_size 30 is not a multiple"));
    train(root, "none", &["--config", "lxmret"]).assert().code(1).stderr(contains("did you mean 'lxmert'?"));
}

#[test]
fn a_configuration_that_contradicts_the_checkpoint_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    lxmert(&root.join("lxmert"));
    let init = Some(root.join("lxmert").display().to_string());
    let open = |recipe: Recipe| Origin::open(&recipe, None).map(|origin| origin.config(12).unwrap());
    let base = Recipe { init, config: None, max_length: 16, ..Recipe::scenes() };
    assert_eq!(sizes(open(base.clone()).unwrap()), sizes(config()));

    let error = open(Recipe { config: Some("tiny".into()), ..base.clone() }).unwrap_err().to_string();
    assert!(error.contains("--init ") && error.contains("not the 128 that was asked for"), "{error}");
    let gelu = LxmertConfig { hidden_act: Activation::Gelu, ..config() };
    std::fs::write(root.join("gelu.json"), gelu.to_json("LxmertModel", &[])).unwrap();
    std::fs::write(root.join("vocab.txt"), WORDS.join("\n")).unwrap();
    let file = root.join("gelu.json").display().to_string();
    let error = open(Recipe { config: Some(file), ..base.clone() }).unwrap_err().to_string();
    assert!(error.contains("hidden_act is \"relu\", not the \"gelu\""), "{error}");
    let error = open(Recipe { max_length: 50, ..base.clone() }).unwrap_err().to_string();
    assert!(error.contains("--max-length 50") && error.contains("20 positions"), "{error}");
    let student = lxmert_core::config::CrossLayer::Student;
    let error = open(Recipe { cross_layer: Some(student), ..base }).unwrap_err().to_string();
    assert!(error.contains("--cross-layer"), "{error}");
    let nothing = Recipe { config: None, ..Recipe::scenes() };
    assert!(open(nothing).unwrap_err().to_string().contains("--config"));
}
