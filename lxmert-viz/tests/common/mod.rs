//! A small workspace made from scratch: drawn scenes, regions from their true boxes, an untrained model.
#![allow(dead_code)]

use candle_core::Tensor;
use lxmert_core::boxes::normalise;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::{Regions, StoreDtype, StoreInfo, StoreWriter};
use lxmert_core::model::{AnswerModel, MatchingModel, PairModel};
use lxmert_extract::scenes::{ScenesConfig, Shape, generate, read_annotations};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Numbers of a region: one per shape and per colour.
pub const FEATURE_DIM: usize = 16;

/// `data/`, `runs/scenes/best` and `metrics.jsonl` below a temporary folder.
pub struct Made {
    pub folder: tempfile::TempDir,
}

impl Made {
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn run(&self) -> PathBuf {
        self.root().join("runs/scenes")
    }
}

pub fn label_names() -> Vec<String> {
    std::iter::once("background").chain(Shape::ALL.map(Shape::word)).map(String::from).collect()
}

pub fn workspace() -> Made {
    workspace_of(FEATURE_DIM)
}

/// The same with regions of `width` numbers, and checkpoints that take them.
pub fn workspace_of(width: usize) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let scenes = root.join("data/scenes");
    std::fs::create_dir_all(root.join("data")).unwrap();
    std::fs::write(root.join("data/README.md"), "a test's data\n").unwrap();
    generate(&scenes, &ScenesConfig { count: 30, ..ScenesConfig::default() }, false, false).unwrap();
    store(root, &scenes, width);
    checkpoint_of(&root.join("runs/scenes/best"), width);
    metrics(&root.join("runs/scenes/metrics.jsonl"));
    Made { folder }
}

/// Every object is a region with its true box, and the whole picture is one more.
fn store(root: &Path, scenes: &Path, width: usize) {
    let info = StoreInfo {
        detector: "truth".into(),
        settings: Default::default(),
        regions: 8,
        feature_dim: width,
        dtype: StoreDtype::F32,
        label_names: label_names(),
        attribute_names: Vec::new(),
    };
    let mut writer = StoreWriter::open(root.join("data/features/scenes"), info).unwrap();
    for scene in read_annotations(scenes).unwrap().scenes {
        let (mut features, mut boxes, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for object in &scene.objects {
            let mut feature = vec![0f32; width];
            feature[object.shape.index()] = 1.0;
            feature[8 + object.colour.index()] = 1.0;
            features.extend(feature);
            boxes.push(normalise(&object.box_xyxy_px, scene.width as f32, scene.height as f32));
            labels.push(object.shape.index() as u32 + 1);
        }
        features.extend(vec![0f32; width]);
        boxes.push([0.0, 0.0, 1.0, 1.0]);
        labels.push(0);
        let scores = vec![0.9; boxes.len()];
        let (image_width, image_height) = (scene.width, scene.height);
        let regions = Regions {
            image_width,
            image_height,
            feature_dim: width,
            features,
            boxes,
            labels,
            scores,
            attributes: None,
        };
        writer.push(&scene.image, &regions).unwrap();
    }
    writer.finish().unwrap();
}

pub fn config() -> LxmertConfig {
    LxmertConfig {
        hidden_size: 32,
        num_attention_heads: 2,
        intermediate_size: 64,
        max_position_embeddings: 64,
        l_layers: 1,
        r_layers: 1,
        x_layers: 2,
        visual_feat_dim: FEATURE_DIM,
        ..LxmertConfig::default()
    }
}

/// An untrained model in the hub's layout.
pub fn checkpoint(folder: &Path) {
    checkpoint_of(folder, FEATURE_DIM);
}

/// The same for regions of `width` numbers.
pub fn checkpoint_of(folder: &Path, width: usize) {
    let config = LxmertConfig { visual_feat_dim: width, ..config() };
    write(folder, &config, "LxmertForPreTraining", MatchingModel::expected(&config).unwrap());
}

/// An untrained model that takes the regions of the detector of scenes.
pub fn scenes_checkpoint(folder: &Path) {
    let config = LxmertConfig { visual_feat_dim: 256, ..config() };
    write(folder, &config, "LxmertForPreTraining", MatchingModel::expected(&config).unwrap());
}

/// An untrained question model with the answers "red", "two" and "yes".
pub fn question_checkpoint(folder: &Path) {
    question_checkpoint_of(folder, FEATURE_DIM);
}

/// The same for regions of `width` numbers.
pub fn question_checkpoint_of(folder: &Path, width: usize) {
    let config = LxmertConfig { num_qa_labels: 3, visual_feat_dim: width, ..config() };
    write(folder, &config, "LxmertForQuestionAnswering", AnswerModel::expected(&config).unwrap());
    std::fs::write(folder.join("answers.json"), r#"["red", "two", "yes"]"#).unwrap();
}

/// An untrained model of statements about two images.
pub fn statement_checkpoint(folder: &Path) {
    write(folder, &config(), "LxmertModel", PairModel::expected(&config()).unwrap());
}

fn write(folder: &Path, config: &LxmertConfig, architecture: &str, expected: Vec<(String, Vec<usize>)>) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_json(architecture, &[])).unwrap();
    let tensors: HashMap<String, Tensor> = expected
        .into_iter()
        .map(|(name, shape)| {
            let norm = ["LayerNorm.weight", "layer_norm.weight", "logit_fc.2.weight"];
            let wide = if norm.iter().any(|part| name.contains(part)) { 1.0 } else { 0.0 };
            let reach = if name.ends_with("bias") { 0.01 } else { 0.3 };
            let tensor = lxmert_core::procedural::tensor(&name, &shape, wide - reach, wide + reach, 0).unwrap();
            (name, tensor)
        })
        .collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

fn metrics(path: &Path) {
    let lines = (1..=20).map(|step| {
        format!(
            "{{\"kind\":\"step\",\"step\":{step},\"epoch\":{},\"loss\":{},\"learning_rate\":0.001,\"gradient_norm\":1.0,\"examples_per_second\":100.0}}\n",
            f64::from(step) / 10.0,
            0.7 / f64::from(step),
        )
    });
    std::fs::write(path, lines.collect::<String>()).unwrap();
}
