//! The same code at a small size: other widths, images of any shape, filling up regions, gradients.

mod common;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use lxmert_core::features::StoreDtype;
use lxmert_core::ops::Precision;
use lxmert_core::procedural;
use lxmert_extract::choice::LoadedDetector;
use lxmert_extract::detector::config::{
    AttributeConfig, Block, FpnConfig, ResNetConfig, RoiHeadsConfig, RpnConfig, TransformConfig,
};
use lxmert_extract::detector::selection::RegionCount;
use lxmert_extract::detector::transform::transform;
use lxmert_extract::detector::{Detector, DetectorConfig, Network, NormMode, expected_tensors};
use lxmert_extract::images::DecodedImage;
use lxmert_extract::regions::detections::select;
use lxmert_extract::regions::{CellSource, GridSource, RegionSource as _, Selection};
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

fn image(height: usize, width: usize) -> DecodedImage {
    let values = procedural::values("image", height * width * 3, 0.0, 256.0, 0);
    let rgb = values.iter().map(|&value| value as u8).collect();
    DecodedImage { width: width as u32, height: height as u32, rgb }
}

#[test]
fn accepts_images_of_any_shape() -> Result<()> {
    let detector = detector(1.0)?;
    for (height, width) in [(1, 1), (1, 700), (700, 1), (63, 64), (90, 31)] {
        let found = detector.detect(&image(height, width))?;
        for b in &found.boxes_xyxy_px {
            let inside = b[0] >= 0.0 && b[1] >= 0.0 && b[2] <= width as f32 * 1.001 && b[3] <= height as f32 * 1.001;
            assert!(inside, "{b:?} in {width}×{height}");
        }
    }
    Ok(())
}

#[test]
fn regions_are_places_apart_first_then_repeats_and_never_padding() -> Result<()> {
    let image = image(60, 80);
    // With three classes, hardly any score is below 0.05.
    let mut strict = config();
    strict.roi_heads.score_threshold = 0.98;
    strict.roi_heads.nms_threshold = 0.1;
    let detector =
        Detector::new(&strict, Precision::F32, VarBuilder::from_tensors(weights(4.0)?, DType::F32, &Device::Cpu))?;
    let analysis = detector.analyse(detector.input(&image)?)?;
    let total = analysis.proposals.boxes.len();
    let regions = select(&detector, &analysis, 36, Selection::Detections)?;
    assert!(total > 36);
    assert_eq!(regions.boxes.len(), 36);
    assert_eq!(regions.features.len(), 36 * 12);
    let most = |index: usize| {
        regions.boxes[..index].iter().map(|b| lxmert_core::boxes::iou(b, &regions.boxes[index])).fold(0.0, f32::max)
    };
    // First come the strong places, then weak ones, both apart from better ones; then repeats, from the best on.
    let apart = (0..36).take_while(|&index| most(index) <= 0.1).count();
    let strong = regions.scores.iter().take_while(|&&score| score > 0.98).count();
    assert!((1..apart).contains(&strong) && apart < 36, "{strong} strong, {apart} apart");
    assert!(regions.scores[..apart].windows(2).all(|pair| pair[0] >= pair[1]));
    assert!(regions.scores[apart] > regions.scores[apart - 1], "{:?}", regions.scores);
    for (i, b) in regions.boxes.iter().enumerate() {
        assert!(b[2] > b[0] && b[3] > b[1] && b.iter().all(|v| (0.0..=1.0).contains(v)), "{b:?}");
        assert!(!regions.boxes[..i].contains(b), "{b:?} twice");
        // Each has the class that its proposal holds most probable.
        let own = (0..total).any(|proposal| {
            let (class, score) = analysis.best_class(proposal);
            (class as u32, score) == (regions.labels[i], regions.scores[i])
        });
        assert!(own, "{}, {}", regions.labels[i], regions.scores[i]);
    }
    // The adaptive rule: the strong places, however few the least number is.
    let range = select(&detector, &analysis, RegionCount { min: 1, max: 36 }, Selection::Detections)?;
    assert_eq!(range.scores, regions.scores[..strong]);
    // The features are those at the regions' own boxes.
    let b = regions.boxes[0];
    let (h, w) = (analysis.input.resized_size.0 as f32, analysis.input.resized_size.1 as f32);
    let again = detector.features_at(&analysis, &[lxmert_core::boxes::to_pixels(&b, w, h)])?.flatten_all()?;
    // No value depends on the rows that are computed with it; the box is rounded on its way to 0..1 and back.
    assert_near(&again.to_vec1::<f32>()?, &regions.features[..12], 6e-6); // measured 1.2e-6
    // If more are requested than the network has, it returns all, and no zero rows.
    let all = select(&detector, &analysis, 10_000, Selection::Detections)?;
    assert!(all.boxes.len() >= total && all.boxes.len() < 10_000);
    assert_eq!(all.features.len(), all.boxes.len() * 12);
    assert_eq!(select(&detector, &analysis, 0, Selection::Detections)?.scores.len(), 0);
    Ok(())
}

#[test]
fn folding_batch_norms_changes_nothing() -> Result<()> {
    let vb = VarBuilder::from_tensors(weights(1.0)?, DType::F32, &Device::Cpu);
    let folded = Network::new(&config(), NormMode::Folded, vb.clone())?;
    let kept = Network::new(&config(), NormMode::Batch, vb)?;
    let x = procedural::tensor("input", &[2, 3, 64, 96], -2.0, 2.0, 0)?;
    for (a, b) in folded.levels(&x, false)?.iter().zip(kept.levels(&x, false)?) {
        common::assert_below("folded", common::relative_error(a, &b)?, 8e-6); // measured 1.7e-6
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

fn loaded() -> Result<LoadedDetector> {
    Ok(LoadedDetector {
        detector: detector(1.0)?,
        name: "small".into(),
        weights_sha256: "abc".into(),
        precision: Precision::F32,
        swap_channels: false,
    })
}

#[track_caller]
fn assert_near(got: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(got.len(), expected.len());
    let largest = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
    common::assert_below("values", largest, bound);
}

#[test]
fn grid_regions_equal_the_heads_on_the_same_boxes() -> Result<()> {
    let source = GridSource { loaded: loaded()?, side: 3 };
    let image = image(60, 80);
    let regions = source.find(&image)?;
    let info = source.info(StoreDtype::F32);
    assert_eq!((info.regions, info.feature_dim, info.settings["select"].as_str()), (9, 12, "grid:3"));
    assert_eq!((regions.image_width, regions.image_height, regions.num_regions()), (80, 60, 9));
    let third = |i: usize| i as f32 / 3.0;
    for (i, b) in regions.boxes.iter().enumerate() {
        assert_near(b, &[third(i % 3), third(i / 3), third(i % 3 + 1), third(i / 3 + 1)], 1e-6);
    }

    // The same, computed by the network that training uses.
    let vb = VarBuilder::from_tensors(weights(1.0)?, DType::F32, &Device::Cpu);
    let network = Network::new(&config(), NormMode::Folded, vb)?;
    let input = transform(&config().transform, &image, &Device::Cpu)?;
    let levels = network.levels(&input.tensor, false)?;
    let (height, width) = (input.resized_size.0 as f32, input.resized_size.1 as f32);
    let boxes = regions.boxes.iter().map(|b| lxmert_core::boxes::to_pixels(b, width, height)).collect();
    let heads = &network.roi_heads;
    let features = heads.features(&heads.pooler.forward(&levels, &[boxes], input.padded_size)?)?;
    let composed = features.flatten_all()?.to_vec1::<f32>()?;
    assert_near(&regions.features, &composed, 4e-5); // measured 7.6e-6
    let prediction = heads.predict(&features)?;
    let classes = candle_nn::ops::softmax(&prediction.class_logits, 1)?.to_vec2::<f32>()?;
    for (region, p) in classes.iter().enumerate() {
        let label = if p[1] > p[2] { 1 } else { 2 };
        assert_eq!(regions.labels[region], label);
        assert_near(&[regions.scores[region]], &[p[label as usize]], 3.5e-6); // measured 7.2e-7
    }
    let colours = prediction.attribute_logits[0].argmax(1)?.to_vec1::<u32>()?;
    assert_eq!(regions.attributes.expect("the detector has an attribute").labels, colours);
    Ok(())
}

#[test]
fn cell_regions_are_means_of_the_last_map() -> Result<()> {
    let source = CellSource { loaded: loaded()?, side: 4 };
    let image = image(60, 80);
    let regions = source.find(&image)?;
    let info = source.info(StoreDtype::F32);
    assert_eq!((info.regions, info.feature_dim, info.settings["select"].as_str()), (16, 24, "cells:4"));
    assert_eq!((&info.label_names[..], info.has_attributes()), (&["cell".to_string()][..], false));
    assert_eq!((regions.num_regions(), regions.attributes), (16, None));
    assert_eq!((regions.labels, regions.scores), (vec![0; 16], vec![1.0; 16]));

    let vb = VarBuilder::from_tensors(weights(1.0)?, DType::F32, &Device::Cpu);
    let network = Network::new(&config(), NormMode::Folded, vb)?;
    let input = transform(&config().transform, &image, &Device::Cpu)?;
    // 64 × 85 pixels of 64 × 96: all 4 × 6 cells contain part of the image.
    assert_eq!((input.resized_size, input.padded_size), ((64, 85), (64, 96)));
    let map = network.body.forward_t(&input.tensor, false)?[2].get(0)?.to_vec3::<f32>()?; // [24, 4, 6]
    let columns = [0..2, 1..3, 3..5, 4..6];
    for (region, b) in regions.boxes.iter().enumerate() {
        let (row, column) = (region / 4, columns[region % 4].clone());
        let (x0, x1) = (column.start as f32 * 16.0 / 85.0, (column.end as f32 * 16.0 / 85.0).min(1.0));
        assert_near(b, &[x0, row as f32 / 4.0, x1, (row + 1) as f32 / 4.0], 1e-6);
        let mean: Vec<f32> =
            map.iter().map(|plane| (plane[row][column.start] + plane[row][column.end - 1]) / 2.0).collect();
        assert_near(&regions.features[region * 24..][..24], &mean, 1e-5); // measured 5.7e-6
    }
    // A map with fewer cells than requested gives one region per cell.
    let all = CellSource { side: 8, ..source }.find(&image)?;
    assert_eq!(all.num_regions(), 4 * 6);
    Ok(())
}
