//! The same code at a small size: other widths, images of any shape, regions that fill up, gradients.

mod common;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::ops::Precision;
use lxmert_core::procedural;
use lxmert_extract::detector::config::{
    AttributeConfig, Block, FpnConfig, ResNetConfig, RoiHeadsConfig, RpnConfig, TransformConfig,
};
use lxmert_extract::detector::{Detector, DetectorConfig, Network, NormMode, expected_tensors};
use lxmert_extract::regions::{Selection, select, select_from};
use std::collections::HashMap;

fn config() -> DetectorConfig {
    DetectorConfig {
        transform: TransformConfig { min_size: 64, max_size: 96, ..TransformConfig::default() },
        backbone: ResNetConfig {
            block: Block::Basic,
            stem_width: 8,
            blocks: vec![1, 1, 2],
            bottleneck_widths: Vec::new(),
            stage_widths: vec![8, 16, 24],
            batch_norm_eps: 1e-5,
            ..ResNetConfig::default()
        },
        fpn: Some(FpnConfig { stages: vec![2, 3], channels: 16, pool_level: false }),
        rpn: RpnConfig {
            anchor_sizes: vec![vec![12.0, 18.0], vec![30.0, 42.0]],
            post_nms_top_n: 60,
            ..RpnConfig::default()
        },
        roi_heads: RoiHeadsConfig { representation_size: 12, ..RoiHeadsConfig::default() },
        label_names: ["background", "circle", "square"].map(String::from).to_vec(),
        attributes: vec![AttributeConfig {
            name: "colour".into(),
            classes: ["red", "green"].map(String::from).to_vec(),
            object_embedding: None,
        }],
        ..DetectorConfig::coco()
    }
}

/// Formula weights; `boldness` scales the class logits, so that scores are above or below the threshold.
fn weights(boldness: f64) -> Result<HashMap<String, Tensor>> {
    let mut weights = HashMap::new();
    for (name, shape) in expected_tensors(&config())? {
        let fan_in = shape.iter().skip(1).product::<usize>().max(1) as f64;
        let bound = match name.as_str() {
            n if n.contains("cls_score") => boldness / fan_in.sqrt(),
            _ => (3.0 / fan_in).sqrt(),
        };
        let (low, high) = if name.contains("running_var") || (shape.len() == 1 && name.ends_with("weight")) {
            (0.5, 1.5)
        } else {
            (-bound, bound)
        };
        let tensor = procedural::tensor(&name, &shape, low, high, 3)?;
        weights.insert(name, tensor);
    }
    Ok(weights)
}

fn detector(boldness: f64) -> Result<Detector> {
    Ok(Detector::new(
        &config(),
        Precision::F32,
        VarBuilder::from_tensors(weights(boldness)?, DType::F32, &Device::Cpu),
    )?)
}

fn image(height: usize, width: usize) -> Result<Tensor> {
    Ok(procedural::tensor("image", &[3, height, width], 0.0, 1.0, 0)?)
}

#[test]
fn images_of_any_shape_pass() -> Result<()> {
    let detector = detector(1.0)?;
    for (height, width) in [(1, 1), (1, 700), (700, 1), (63, 64), (90, 31)] {
        let found = detector.detect(&image(height, width)?)?;
        for b in &found.boxes_xyxy_px {
            let inside = b[0] >= 0.0 && b[1] >= 0.0 && b[2] <= width as f32 * 1.001 && b[3] <= height as f32 * 1.001;
            assert!(inside, "{b:?} in {width}×{height}");
        }
    }
    Ok(())
}

#[test]
fn regions_are_the_detections_first_then_others_and_never_padding() -> Result<()> {
    let image = image(60, 80)?;
    // With three classes hardly anything is below 0.05.
    let mut strict = config();
    strict.roi_heads.score_threshold = 0.5;
    strict.roi_heads.max_detections = 10;
    let detector =
        Detector::new(&strict, Precision::F32, VarBuilder::from_tensors(weights(4.0)?, DType::F32, &Device::Cpu))?;
    let analysis = detector.analyse(&image)?;
    let detections = detector.candidates(&analysis);
    let total = analysis.proposals.boxes.len();
    let regions = select_from(&detector, &analysis, 36, Selection::Detections)?;
    assert!((1..36).contains(&detections.len()), "{} detections do not test the filling up", detections.len());
    assert!(total > 36);
    assert_eq!(regions.boxes_normalised.len(), 36);
    assert_eq!(regions.features.len(), 36 * 12);
    let scores: Vec<f32> = detections.iter().map(|d| d.score).collect();
    assert_eq!(regions.scores[..detections.len()], scores);
    for (i, b) in regions.boxes_normalised.iter().enumerate() {
        assert!(b[2] > b[0] && b[3] > b[1] && b.iter().all(|v| (0.0..=1.0).contains(v)), "{b:?}");
        assert!(!regions.boxes_normalised[..i].contains(b), "{b:?} twice");
        assert!(regions.labels[i] >= 1);
    }
    // The first weaker ones name places that are not yet among the regions.
    let first_weak = regions.boxes_normalised[detections.len()];
    let known = &regions.boxes_normalised[..detections.len()];
    assert!(known.iter().all(|b| lxmert_core::boxes::iou(b, &first_weak) <= 0.5));
    // The features are those at the regions' own boxes.
    let b = regions.boxes_normalised[0];
    let (h, w) = (analysis.input.resized_size.0 as f32, analysis.input.resized_size.1 as f32);
    let again = detector.features_at(&analysis, &[lxmert_core::boxes::to_pixels(&b, w, h)])?.flatten_all()?;
    for (a, b) in again.to_vec1::<f32>()?.iter().zip(&regions.features) {
        assert!((a - b).abs() < 1e-3, "{a} is not {b}");
    }
    // More than the network has: all it has, and no zero rows.
    let all = select_from(&detector, &analysis, 10_000, Selection::Detections)?;
    assert!(all.boxes_normalised.len() >= total && all.boxes_normalised.len() < 10_000);
    assert_eq!(all.features.len(), all.boxes_normalised.len() * 12);
    assert_eq!(select_from(&detector, &analysis, 0, Selection::Detections)?.scores.len(), 0);
    assert_eq!(select(&detector, &image, 36, Selection::Detections)?, regions);
    Ok(())
}

#[test]
fn folding_changes_nothing() -> Result<()> {
    let vb = VarBuilder::from_tensors(weights(1.0)?, DType::F32, &Device::Cpu);
    let folded = Network::new(&config(), NormMode::Folded, vb.clone())?;
    let kept = Network::new(&config(), NormMode::Batch, vb)?;
    let x = procedural::tensor("input", &[2, 3, 64, 96], -2.0, 2.0, 0)?;
    for (a, b) in folded.levels(&x, false)?.iter().zip(kept.levels(&x, false)?) {
        let error = common::relative_error(a, &b)?;
        assert!(error < 1e-5, "{error}");
    }
    Ok(())
}

#[test]
fn every_parameter_learns() -> Result<()> {
    let variables = VarMap::new();
    let config = config();
    let network =
        Network::new(&config, NormMode::Batch, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let x = procedural::tensor("input", &[2, 3, 64, 96], -2.0, 2.0, 0)?;
    let levels = network.levels(&x, true)?;
    let mut loss = Tensor::new(0f32, &Device::Cpu)?;
    for prediction in network.rpn.forward_t(&levels, true)? {
        let (logits, deltas) = prediction.in_anchor_order()?;
        loss = (loss + logits.sqr()?.sum_all()? + deltas.sqr()?.sum_all()?)?;
    }
    let boxes = vec![vec![[3.0, 4.0, 30.0, 40.0], [10.0, 5.0, 90.0, 60.0]], vec![[20.0, 20.0, 24.0, 26.0]]];
    let pooled = network.roi_heads.pooler.forward(&levels, &boxes, (64, 96))?;
    assert_eq!(pooled.dims(), [3, 16, 7, 7]);
    let prediction = network.roi_heads.predict(&network.roi_heads.features(&pooled)?)?;
    assert_eq!(prediction.attribute_logits.len(), 1);
    for output in [&prediction.class_logits, &prediction.box_deltas, &prediction.attribute_logits[0]] {
        loss = (loss + output.sqr()?.sum_all()?)?;
    }
    let gradients = loss.backward()?;
    let variables = variables.data().lock().expect("no other thread");
    assert_eq!(variables.len(), expected_tensors(&config)?.len());
    for (name, variable) in variables.iter().filter(|(name, _)| !name.contains("running_")) {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} gets no gradient"));
        let largest = gradient.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(largest > 0.0 && largest.is_finite(), "{name}: {largest}");
    }
    Ok(())
}
