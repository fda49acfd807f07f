//! The detector of generated scenes: its configuration, examples, training and evaluation.

use super::evaluate::{Detected, ImageResult, average_precision, mean_average_precision};
use super::trainer::{Example, Trainer, TrainingConfig};
use crate::detector::config::{
    AttributeConfig, Block, FpnConfig, ResNetConfig, RoiHeadsConfig, RpnConfig, TransformConfig,
};
use crate::detector::{Detector, DetectorConfig};
use crate::scenes::draw::draw;
use crate::scenes::{Colour, Object, Scene, ScenesConfig, Shape, Size, Texture};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::Result;
use lxmert_core::boxes::iou;
use lxmert_core::cli::check_interrupt;
use lxmert_core::ops::Precision;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Seed of the training scenes; the shipped data set has seed 0, so no scene is in both.
pub const TRAINING_SCENES_SEED: u64 = 0x5CE9E5;

/// A narrow ResNet-FPN, built by the same code as the COCO detector, for pictures of 128 × 128.
pub fn detector_config() -> DetectorConfig {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let attribute = |name: &str, classes: &[&str]| AttributeConfig {
        name: name.into(),
        classes: words(classes),
        object_embedding: None,
    };
    let mut label_names = words(&["background"]);
    label_names.extend(words(&Shape::ALL.map(Shape::word)));
    DetectorConfig {
        transform: TransformConfig { min_size: 128, max_size: 256, ..TransformConfig::default() },
        backbone: ResNetConfig {
            block: Block::Bottleneck,
            stem_width: 32,
            blocks: vec![1, 2, 2, 1],
            bottleneck_widths: vec![16, 32, 48, 64],
            stage_widths: vec![64, 96, 128, 160],
            batch_norm_eps: 1e-5,
            ..ResNetConfig::default()
        },
        fpn: Some(FpnConfig { channels: 64, pool_level: false, ..FpnConfig::default() }),
        rpn: RpnConfig {
            // Objects are 16 to 24 or 32 to 48 px; the coarse levels only serve the pyramid.
            anchor_sizes: vec![vec![15.0, 21.0], vec![30.0, 40.0], vec![56.0, 76.0], vec![96.0, 124.0]],
            aspect_ratios: vec![1.0, 1.5],
            pre_nms_top_n: 200,
            post_nms_top_n: 60,
            ..RpnConfig::default()
        },
        roi_heads: RoiHeadsConfig { representation_size: 256, ..RoiHeadsConfig::default() },
        label_names,
        attributes: vec![
            attribute("colour", &Colour::ALL.map(Colour::word)),
            attribute("size", &Size::ALL.map(Size::word)),
            attribute("texture", &Texture::ALL.map(Texture::word)),
        ],
        ..DetectorConfig::coco()
    }
}

/// The label of an object, and its value for each attribute head of [`detector_config`].
pub fn answers(object: &Object) -> (u32, [u32; 3]) {
    let values = [object.colour.index(), object.size.index(), object.texture.index()];
    (1 + object.shape.index() as u32, values.map(|value| value as u32))
}

/// A scene as an example.
pub fn example(scene: &Scene) -> Example {
    let all: Vec<(u32, [u32; 3])> = scene.objects.iter().map(answers).collect();
    Example {
        image: draw(scene).into(),
        boxes_xyxy_px: scene.objects.iter().map(|object| object.box_xyxy_px).collect(),
        labels: all.iter().map(|answers| answers.0).collect(),
        attributes: (0..3).map(|head| all.iter().map(|answers| answers.1[head]).collect()).collect(),
    }
}

/// Trains on scenes of [`TRAINING_SCENES_SEED`], each seen once, and calls `report` at each step. Returns the weights,
/// rounded to f16 as they are stored.
///
/// # Errors
/// Returns an error if a configuration is invalid, training diverges, or Ctrl-C was pressed.
pub fn train(
    training: &TrainingConfig,
    detector: &DetectorConfig,
    device: &Device,
    mut report: impl FnMut(usize, &super::StepLosses),
) -> Result<BTreeMap<String, Tensor>> {
    let scenes = ScenesConfig { seed: TRAINING_SCENES_SEED, ..ScenesConfig::default() };
    let mut trainer = Trainer::new(training, detector, device)?;
    for step in 0..training.steps {
        check_interrupt()?;
        let batch = (step * training.batch_size..(step + 1) * training.batch_size)
            .into_par_iter()
            .map(|index| example(&Scene::generate(&scenes, index)))
            .collect::<Vec<_>>();
        report(step, &trainer.train_on(&batch)?);
    }
    let rounded = |(name, weight): (String, Tensor)| Ok((name, weight.to_device(&Device::Cpu)?.to_dtype(DType::F16)?));
    trainer.weights().into_iter().map(rounded).collect()
}

/// A detector with these weights, for inference.
///
/// # Errors
/// Returns an error if a weight is missing or misshapen.
pub fn build(config: &DetectorConfig, weights: &BTreeMap<String, Tensor>, device: &Device) -> Result<Detector> {
    let tensors: HashMap<String, Tensor> = weights.clone().into_iter().collect();
    Detector::new(config, Precision::F32, VarBuilder::from_tensors(tensors, DType::F32, device))
}

/// How well a detector does on unseen scenes.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Number of scenes.
    pub scenes: usize,
    /// Number of objects in them.
    pub objects: usize,
    /// Mean over the shapes of the average precision at IoU 0.5, with COCO's 101 recalls.
    pub ap50: f64,
    /// The same at IoU 0.75.
    pub ap75: f64,
    /// AP at 0.5 of each shape.
    pub ap50_of_label: Vec<(String, f64)>,
    /// Share of objects found: a detection of the right shape, score at least 0.5, IoU at least 0.5.
    pub recall: f64,
    /// Of the objects found, the share with the right attribute, by head.
    pub attribute_accuracy: Vec<(String, f64)>,
}

impl std::fmt::Display for Evaluation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scenes, objects, ap50, ap75, recall, .. } = self;
        write!(f, "on {scenes} held-out scenes ({objects} objects) AP@0.5 {ap50:.3}, AP@0.75 {ap75:.3}, ")?;
        write!(f, "found {:.1} %", 100.0 * recall)?;
        for (name, accuracy) in &self.attribute_accuracy {
            write!(f, ", {name} {:.1} %", 100.0 * accuracy)?;
        }
        Ok(())
    }
}

/// Runs the detector on scenes.
///
/// # Errors
/// Returns an error if a computation fails or Ctrl-C was pressed.
pub fn evaluate(detector: &Detector, scenes: &[Scene]) -> Result<Evaluation> {
    let config = detector.config();
    let mut results = Vec::with_capacity(scenes.len());
    let mut found = 0usize;
    let mut right = vec![0usize; config.attributes.len()];
    for scene in scenes {
        check_interrupt()?;
        let example = example(scene);
        let detections = detector.detect(&example.image)?;
        let count = detections.labels.len();
        let attributes = if count == 0 {
            Vec::new()
        } else {
            let prediction = detector.network().roi_heads.predict(&detections.features)?;
            prediction
                .attribute_logits
                .iter()
                .map(|logits| logits.argmax(1)?.to_vec1::<u32>())
                .collect::<candle_core::Result<Vec<_>>>()?
        };
        for (object, truth) in example.boxes_xyxy_px.iter().enumerate() {
            // Detections are sorted, best first.
            let hit = (0..count).find(|&i| {
                detections.labels[i] == example.labels[object]
                    && detections.scores[i] >= 0.5
                    && iou(&detections.boxes_xyxy_px[i], truth) >= 0.5
            });
            if let Some(hit) = hit {
                found += 1;
                for ((right, head), truth) in right.iter_mut().zip(&attributes).zip(&example.attributes) {
                    *right += usize::from(head[hit] == truth[object]);
                }
            }
        }
        results.push(ImageResult {
            objects: example.labels.iter().copied().zip(example.boxes_xyxy_px.iter().copied()).collect(),
            detections: (0..count)
                .map(|i| Detected {
                    box_xyxy: detections.boxes_xyxy_px[i],
                    label: detections.labels[i],
                    score: detections.scores[i],
                })
                .collect(),
        });
    }
    let objects: usize = scenes.iter().map(|scene| scene.objects.len()).sum();
    let labels = config.num_classes() as u32 - 1;
    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    Ok(Evaluation {
        scenes: scenes.len(),
        objects,
        ap50: mean_average_precision(&results, labels, 0.5),
        ap75: mean_average_precision(&results, labels, 0.75),
        ap50_of_label: (1..=labels)
            .filter_map(|label| {
                Some((config.label_names[label as usize].clone(), average_precision(&results, label, 0.5)?))
            })
            .collect(),
        recall: share(found, objects),
        attribute_accuracy: config
            .attributes
            .iter()
            .zip(right)
            .map(|(attribute, right)| (attribute.name.clone(), share(right, found)))
            .collect(),
    })
}
