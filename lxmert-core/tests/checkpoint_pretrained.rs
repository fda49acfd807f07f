//! A whole checkpoint: configuration, vocabulary, preprocessing, answers and weights agree, or the error names the file
//! and the key.

mod loopback;

use candle_core::{DType, Device, Tensor};
use candle_nn::Activation;
use lxmert_core::checkpoint::{Hub, HubOptions, Place, save_safetensors};
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::features::Regions;
use lxmert_core::model::{AnswerModel, LxmertInputs, MatchingModel, PairModel, Pass, PretrainingModel};
use lxmert_core::pretrained::{Preprocessing, Pretrained, configuration};
use lxmert_core::{answering::Answerer, procedural};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

type Shapes = Vec<(String, Vec<usize>)>;

/// `[PAD]` to `[MASK]`, then "red", "dog", …, in another order than BERT's.
const WORDS: [&str; 12] = ["[MASK]", "red", "dog", "##s", "[PAD]", "a", "[UNK]", "[CLS]", "?", "[SEP]", "is", "what"];

fn config() -> LxmertConfig {
    LxmertConfig {
        vocab_size: WORDS.len(),
        hidden_size: 16,
        num_attention_heads: 2,
        intermediate_size: 24,
        max_position_embeddings: 10,
        l_layers: 2,
        r_layers: 1,
        x_layers: 1,
        visual_feat_dim: 6,
        num_object_labels: 3,
        num_attr_labels: 0,
        num_qa_labels: 4,
        ..LxmertConfig::default()
    }
}

/// Weights that depend only on their names, with norms about 1.
fn weights(shapes: &Shapes) -> Vec<(String, Tensor)> {
    let tensor = |(name, shape): &(String, Vec<usize>)| {
        let centre = if name.contains("LayerNorm.weight") { 1.0 } else { 0.0 };
        (name.clone(), procedural::tensor(name, shape, centre - 0.4, centre + 0.4, 0).unwrap())
    };
    shapes.iter().map(tensor).collect()
}

fn save(folder: &Path, weights: &[(String, Tensor)]) {
    save_safetensors(folder.join("model.safetensors"), weights, &BTreeMap::new()).unwrap();
}

/// A checkpoint with these weights, `config`'s `config.json`, and [`WORDS`] as its vocabulary.
fn checkpoint(config: &LxmertConfig, shapes: &Shapes) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &weights(shapes));
    std::fs::write(folder.path().join("config.json"), config.to_json("LxmertForPreTraining")).unwrap();
    std::fs::write(folder.path().join("vocab.txt"), WORDS.join("\n")).unwrap();
    folder
}

fn pretraining() -> tempfile::TempDir {
    checkpoint(&config(), &PretrainingModel::expected(&config()).unwrap())
}

fn inputs() -> LxmertInputs {
    LxmertInputs {
        input_ids: Tensor::new(&[[7u32, 1, 2, 9]], &Device::Cpu).unwrap(),
        attention_mask: None,
        visual_feats: procedural::tensor("features", &[1, 3, 6], 0.0, 2.0, 0).unwrap(),
        visual_boxes: procedural::tensor("boxes", &[1, 3, 4], 0.0, 1.0, 0).unwrap(),
        visual_attention_mask: None,
    }
}

fn logit(model: &MatchingModel) -> f32 {
    model.forward(&inputs(), &Pass::eval()).unwrap().logits.to_vec1().unwrap()[0]
}

fn error(folder: &Path) -> String {
    Pretrained::open(folder).unwrap_err().to_string()
}

fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "no '{part}' in: {error}");
    }
}

#[test]
fn reads_the_checkpoints_own_vocabulary() {
    let folder = pretraining();
    let opened = Pretrained::open(folder.path()).unwrap();
    assert_eq!(opened.text.encode("Red dogs", 8).unwrap().ids, [7, 1, 2, 3, 9]);
    assert_eq!((opened.text.special().cls, opened.text.special().mask), (7, 0));

    // tokenizer.json alone gives the same.
    std::fs::write(folder.path().join("tokenizer.json"), opened.text.tokenizer_json().unwrap()).unwrap();
    std::fs::remove_file(folder.path().join("vocab.txt")).unwrap();
    assert_eq!(Pretrained::open(folder.path()).unwrap().text.vocabulary(), WORDS);

    // The bundled vocabulary has other words at these ids, so it is no substitute.
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_names(&error(folder.path()), &["no vocab.txt or tokenizer.json", "30522", "vocabulary has 12 entries"]);

    let surplus = [&WORDS[..], &["cat"]].concat().join("\n");
    std::fs::write(folder.path().join("vocab.txt"), surplus).unwrap();
    assert_names(&error(folder.path()), &["vocab.txt", "13 entries", "embeddings for 12"]);
}

#[test]
fn uses_the_checkpoints_own_activation_and_epsilon() {
    let shapes = MatchingModel::expected(&config()).unwrap();
    let run = |config: &LxmertConfig| {
        let folder = checkpoint(config, &shapes);
        let opened = Pretrained::open(folder.path()).unwrap();
        assert_eq!(
            (opened.config.hidden_act, opened.config.layer_norm_eps),
            (config.hidden_act, config.layer_norm_eps)
        );
        logit(&opened.matching(&Device::Cpu).unwrap())
    };
    let published = run(&config());
    let relu = run(&LxmertConfig { hidden_act: Activation::Relu, ..config() });
    let epsilon = run(&LxmertConfig { layer_norm_eps: 0.5, ..config() });
    assert!((relu - published).abs() > 1e-3, "{relu} {published}");
    assert!((epsilon - published).abs() > 1e-3, "{epsilon} {published}");
}

#[test]
fn heads_follow_the_weights_and_not_config_json() {
    let folder =
        checkpoint(&LxmertConfig { num_qa_labels: 9500, ..config() }, &MatchingModel::expected(&config()).unwrap());
    let opened = Pretrained::open(folder.path()).unwrap();
    assert_eq!((opened.config.num_qa_labels, opened.config.num_object_labels), (0, 0));
    let opened = Pretrained::open(pretraining().path()).unwrap();
    assert_eq!((opened.config.num_qa_labels, opened.config.num_object_labels), (4, 3));
    assert!(opened.model(&Device::Cpu, PretrainingModel::new).is_ok());
}

/// BERT's weights with BERT's names, four layers.
fn bert(folder: &Path) {
    let sizes = LxmertConfig { l_layers: 4, ..config() };
    let shapes = PretrainingModel::expected(&sizes).unwrap().into_iter().filter_map(|(name, shape)| {
        let kept = ["lxmert.embeddings.", "lxmert.encoder.layer.", "lxmert.pooler.", "cls."];
        kept.iter().any(|part| name.starts_with(part)).then(|| (name.replacen("lxmert.", "bert.", 1), shape))
    });
    save(folder, &weights(&shapes.collect()));
    std::fs::write(folder.join("vocab.txt"), WORDS.join("\n")).unwrap();
}

#[test]
fn bert_of_any_size_gives_a_matching_configuration() {
    let folder = tempfile::tempdir().unwrap();
    bert(folder.path());
    // Without config.json the shapes show the sizes; a head is 64 wide, or there is only one.
    let opened = Pretrained::open(folder.path()).unwrap();
    let sizes = |config: &LxmertConfig| {
        [config.vocab_size, config.hidden_size, config.intermediate_size, config.max_position_embeddings]
    };
    assert!(opened.is_bert);
    assert_eq!(sizes(&opened.config), [12, 16, 24, 10]);
    assert_eq!((opened.config.num_attention_heads, opened.config.hidden_act), (1, Activation::Gelu));

    let mut fields = json!({
        "model_type": "bert", "vocab_size": 12, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 4,
        "intermediate_size": 24, "max_position_embeddings": 10, "hidden_act": "relu", "layer_norm_eps": 1e-5,
    });
    let write =
        |fields: &serde_json::Value| std::fs::write(folder.path().join("config.json"), fields.to_string()).unwrap();
    write(&fields);
    let opened = Pretrained::open(folder.path()).unwrap();
    assert_eq!(sizes(&opened.config), [12, 16, 24, 10]);
    assert_eq!((opened.config.num_attention_heads, opened.config.hidden_act), (4, Activation::Relu));
    assert_eq!(opened.config.layer_norm_eps, 1e-5);
    assert_eq!([opened.config.l_layers, opened.config.r_layers, opened.config.x_layers], [4, 3, 3]);
    let started = opened.weights(&PretrainingModel::expected(&opened.config).unwrap(), &[]).unwrap();
    assert!(started.contains_key("lxmert.encoder.layer.3.output.dense.weight"));
    assert!(started.keys().all(|name| !name.contains("x_layers") && !name.contains("seq_relationship")));

    // BERT cannot match sentences with images.
    assert_names(&opened.matching(&Device::Cpu).unwrap_err().to_string(), &["model.safetensors", "BERT's weights"]);
    fields["num_hidden_layers"] = json!(5);
    write(&fields);
    assert_names(&error(folder.path()), &["config.json", "num_hidden_layers is 5", "model.safetensors holds 4"]);
    fields["model_type"] = json!("lxmert");
    write(&fields);
    assert_names(&error(folder.path()), &["config.json", "describes LXMERT", "BERT's weights"]);
}

#[test]
fn a_model_starts_with_the_checkpoints_configuration_or_one_that_agrees() {
    let relu = LxmertConfig { hidden_act: Activation::Relu, ..config() };
    let folder = checkpoint(&relu, &PretrainingModel::expected(&config()).unwrap());
    let opened = Pretrained::open(folder.path()).unwrap();
    assert_eq!(opened.start(None).unwrap().hidden_act, Activation::Relu);
    let agrees = LxmertConfig { visual_feat_dim: 99, num_qa_labels: 7, hidden_dropout_prob: 0.3, ..relu.clone() };
    assert_eq!(opened.start(Some(agrees.clone())).unwrap(), agrees);
    for (asked, part) in [
        (config(), "hidden_act is \"relu\", not the \"gelu\""),
        (LxmertConfig { layer_norm_eps: 1e-5, ..relu.clone() }, "layer_norm_eps is 1e-12, not the 0.00001"),
        (LxmertConfig { num_attention_heads: 4, ..relu.clone() }, "num_attention_heads is 2, not the 4"),
        (LxmertConfig { x_layers: 2, ..relu.clone() }, "x_layers is 1, not the 2"),
        (LxmertConfig { vocab_size: 30522, ..relu }, "vocab_size is 12, not the 30522"),
    ] {
        assert_names(&opened.start(Some(asked)).unwrap_err().to_string(), &["model.safetensors", part]);
    }
    // Without config.json the activation and the number of heads are unknown.
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_eq!(Pretrained::open(folder.path()).unwrap().start(Some(agrees.clone())).unwrap(), agrees);
    // BERT does not describe the other encoders.
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    bert(folder.path());
    let deep = LxmertConfig { l_layers: 3, r_layers: 2, x_layers: 4, ..config() };
    assert_eq!(Pretrained::open(folder.path()).unwrap().start(Some(deep.clone())).unwrap(), deep);
}

#[test]
fn a_configuration_comes_from_a_preset_file_or_checkpoint() {
    let folder = pretraining();
    let file = folder.path().join("config.json");
    for name in [file.to_str().unwrap(), folder.path().to_str().unwrap()] {
        let (found, text) = configuration(name).unwrap();
        assert_eq!((found, text.vocabulary()), (config(), WORDS.map(String::from).as_slice()));
    }
    let (preset, text) = configuration("tiny").unwrap();
    assert_eq!((preset, text.vocabulary().len()), (LxmertConfig::preset("tiny").unwrap(), 30522));
    assert_names(&configuration("tniy").unwrap_err().to_string(), &["tniy", "no such file or folder"]);
    std::fs::remove_file(folder.path().join("vocab.txt")).unwrap();
    assert_names(&configuration(file.to_str().unwrap()).unwrap_err().to_string(), &["no vocab.txt", "12 entries"]);
    std::fs::remove_file(file).unwrap();
    assert_names(&configuration(folder.path().to_str().unwrap()).unwrap_err().to_string(), &["config.json"]);
}

#[test]
fn weights_without_config_json_can_start_a_model_but_not_run() {
    let folder = pretraining();
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let opened = Pretrained::open(folder.path()).unwrap();
    assert_eq!(opened.config, LxmertConfig { num_attention_heads: 1, ..config() });
    let expected = MatchingModel::expected(&opened.config).unwrap();
    assert_eq!(opened.weights(&expected, &[]).unwrap().len(), expected.len());
    assert_names(
        &opened.matching(&Device::Cpu).unwrap_err().to_string(),
        &["model.safetensors", "no config.json beside it"],
    );

    let student = LxmertConfig { cross_layer: CrossLayer::Student, ..config() };
    save(folder.path(), &weights(&MatchingModel::expected(&student).unwrap()));
    let opened = Pretrained::open(folder.path()).unwrap().config;
    assert_eq!((opened.cross_layer, opened.x_layers, opened.intermediate_size), (CrossLayer::Student, 1, 24));

    save(folder.path(), &weights(&vec![("conv1.weight".into(), vec![3, 3])]));
    assert_names(&error(folder.path()), &["model.safetensors", "no word embeddings of LXMERT or BERT"]);
}

/// A size that only `config.json` claims is an error before anything of that size is allocated.
#[test]
fn rejects_sizes_that_the_weights_do_not_have() {
    let folder = pretraining();
    for (key, value) in [
        ("vocab_size", json!(16_000_000)),
        ("hidden_size", json!(16_000_000)),
        ("intermediate_size", json!(1 << 23)),
        ("max_position_embeddings", json!(100_000)),
        ("type_vocab_size", json!(3)),
        ("visual_feat_dim", json!(2048)),
        ("l_layers", json!(1000)),
        ("r_layers", json!(999)),
        ("x_layers", json!(2)),
        ("cross_layer", json!("student")),
        ("l_layers", json!(4_000_000_000_u64)),
        ("num_attention_heads", json!(4_000_000_000_u64)),
        ("num_qa_labels", json!(1_000_000_000_000_u64)),
        ("hidden_size", json!(-16)),
        ("hidden_size", json!(1e300)),
    ] {
        let mut fields: serde_json::Value = serde_json::from_str(&config().to_json("LxmertForPreTraining")).unwrap();
        fields[key] = value.clone();
        std::fs::write(folder.path().join("config.json"), fields.to_string()).unwrap();
        assert_names(&error(folder.path()), &["config.json", key]);
    }
}

#[test]
fn rejects_weights_that_are_not_finite() {
    let folder = pretraining();
    let name = "lxmert.encoder.layer.1.output.dense.weight";
    for broken in [f32::NAN, f32::INFINITY] {
        let mut tensors: BTreeMap<String, Tensor> =
            weights(&PretrainingModel::expected(&config()).unwrap()).into_iter().collect();
        let shape = tensors[name].dims().to_vec();
        let mut values = vec![0.5; shape.iter().product()];
        (values[3], values[8]) = (broken, broken);
        tensors.insert(name.into(), Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
        save(folder.path(), &tensors.into_iter().collect::<Vec<_>>());
        let opened = Pretrained::open(folder.path()).unwrap();
        let error = opened.matching(&Device::Cpu).unwrap_err().to_string();
        assert_names(&error, &["model.safetensors", "2 of the 384 numbers", name]);
        let expected = MatchingModel::expected(&config()).unwrap();
        assert!(opened.weights(&expected, &[]).is_err(), "a model must not start from them either");
    }
}

fn regions() -> Regions {
    Regions {
        image_width: 8,
        image_height: 8,
        feature_dim: 6,
        features: (0..18).map(|i| i as f32 / 10.0).collect(),
        boxes: vec![[0.0, 0.0, 0.5, 0.5]; 3],
        labels: vec![0; 3],
        scores: vec![1.0; 3],
        attributes: None,
    }
}

#[test]
fn answers_come_from_answers_json_then_id2label_then_the_published_table() {
    let questions = |answers: usize| {
        let config = LxmertConfig { num_qa_labels: answers, ..config() };
        checkpoint(&config, &AnswerModel::expected(&config).unwrap())
    };
    let answers = |folder: &Path| Pretrained::open(folder).unwrap().answers().map(|table| table.answers().to_vec());
    let published = questions(1842);
    assert_eq!(answers(published.path()).unwrap().len(), 1842);

    let folder = questions(3);
    let place = folder.path();
    assert_names(&answers(place).unwrap_err().to_string(), &["no answers.json", "3 answers"]);
    let id2label = |labels: serde_json::Value| {
        let mut fields: serde_json::Value =
            serde_json::from_str(&config().to_json("LxmertForQuestionAnswering")).unwrap();
        fields["id2label"] = labels;
        std::fs::write(place.join("config.json"), fields.to_string()).unwrap();
    };
    id2label(json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})); // transformers' placeholders
    assert!(answers(place).is_err());
    id2label(json!({"2": "yes", "0": "red", "1": "two"}));
    assert_eq!(answers(place).unwrap(), ["red", "two", "yes"]);
    std::fs::write(place.join("answers.json"), r#"["a", "b", "c"]"#).unwrap();
    assert_eq!(answers(place).unwrap(), ["a", "b", "c"]);
    std::fs::write(place.join("answers.json"), r#"["a"]"#).unwrap();
    assert_names(&answers(place).unwrap_err().to_string(), &["answers.json", "1 answers", "has 3"]);

    std::fs::remove_file(place.join("answers.json")).unwrap();
    let answerer = Answerer::new(Pretrained::open(place).unwrap(), &Device::Cpu).unwrap();
    let best = answerer.ask(&regions(), "What is red?", 2, &Device::Cpu).unwrap();
    assert!(best.len() == 2 && best[0].probability >= best[1].probability, "{best:?}");
    let wide = Regions { feature_dim: 2048, ..regions() };
    let error = answerer.ask(&wide, "What is red?", 2, &Device::Cpu).unwrap_err().to_string();
    assert_names(&error, &["2048 numbers", "needs 6", "'unknown'"]);
}

#[test]
fn a_missing_head_is_an_error_that_names_the_task_to_use() {
    let device = Device::Cpu;
    let folder = checkpoint(&config(), &PairModel::expected(&config()).unwrap());
    let statements = Pretrained::open(folder.path()).unwrap();
    assert!(statements.judging(&device).is_ok());
    assert_names(
        &statements.answering(&device).unwrap_err().to_string(),
        &["statements about two images", "--task questions"],
    );
    assert_names(&statements.matching(&device).unwrap_err().to_string(), &["no matching head", "--task matching"]);
    let folder = checkpoint(&config(), &MatchingModel::expected(&config()).unwrap());
    let matching = Pretrained::open(folder.path()).unwrap();
    assert_names(&matching.answering(&device).unwrap_err().to_string(), &["no answer head", "--task questions"]);
    assert_names(
        &matching.judging(&device).unwrap_err().to_string(),
        &["no head over two images", "--task statements"],
    );
}

#[test]
fn preprocessing_is_read_and_checked_against_the_models_positions() {
    let folder = pretraining();
    let preprocessing = || Pretrained::open(folder.path()).map(|opened| opened.preprocessing);
    assert_eq!(preprocessing().unwrap(), Preprocessing { max_length: 10, ..Preprocessing::default() });
    let write = |text: &str| std::fs::write(folder.path().join("preprocessor_config.json"), text).unwrap();
    write(r#"{"max_length": 7, "regions": 5, "detector": "scenes"}"#);
    assert_eq!(preprocessing().unwrap(), Preprocessing { max_length: 7, regions: 5, detector: "scenes".into() });
    for (text, part) in [
        (r#"{"max_length": 11}"#, "max_length is 11"),
        (r#"{"max_length": 2}"#, "max_length is 2"),
        (r#"{"max_length": 7, "regions": 0}"#, "regions is 0"),
    ] {
        write(text);
        assert_names(&preprocessing().unwrap_err().to_string(), &["preprocessor_config.json", part]);
    }
    for (wide, detector, part) in
        [(2048, "unknown", "bottom-up"), (256, "scenes", "scenes detector"), (77, "mine", "'mine'")]
    {
        let config = LxmertConfig { visual_feat_dim: wide, ..config() };
        let preprocessing = Preprocessing { detector: detector.into(), ..Preprocessing::default() };
        assert_names(&preprocessing.check_features(&config, 6).unwrap_err().to_string(), &[part]);
        preprocessing.check_features(&config, wide).unwrap();
    }
}

#[test]
fn opens_a_repository_of_the_hub_with_everything_beside_its_weights() {
    let folder = pretraining();
    std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"max_length": 7}"#).unwrap();
    std::fs::write(folder.path().join("answers.json"), r#"["a", "b", "c", "d"]"#).unwrap();
    let local = Pretrained::open(folder.path()).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), local.text.tokenizer_json().unwrap()).unwrap();
    std::fs::remove_file(folder.path().join("vocab.txt")).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { endpoint: Some(loopback::serve_folder(folder.path())), ..HubOptions::new(cache.path()) };
    let place = Place::on_hub("hf:owner/repo@v1", &Hub::new(options).unwrap(), false).unwrap();
    let fetched = Pretrained::at(place).unwrap();
    assert_eq!((&fetched.config, &fetched.preprocessing), (&local.config, &local.preprocessing));
    assert_eq!(fetched.text.vocabulary(), WORDS);
    assert_eq!(fetched.answers().unwrap().answers(), ["a", "b", "c", "d"]);
    let (here, there) = (local.matching(&Device::Cpu).unwrap(), fetched.matching(&Device::Cpu).unwrap());
    assert_eq!(logit(&here), logit(&there));
}

#[test]
fn weights_of_another_element_type_are_used_in_f32() {
    let folder = pretraining();
    let rounded = weights(&PretrainingModel::expected(&config()).unwrap());
    let rounded: Vec<_> = rounded.into_iter().map(|(name, w)| (name, w.to_dtype(DType::BF16).unwrap())).collect();
    save(folder.path(), &rounded);
    let opened = Pretrained::open(folder.path()).unwrap();
    let taken = opened.weights(&MatchingModel::expected(&config()).unwrap(), &[]).unwrap();
    assert!(taken.values().all(|tensor| tensor.dtype() == DType::F32));
    assert!(logit(&opened.matching(&Device::Cpu).unwrap()).is_finite());
}
