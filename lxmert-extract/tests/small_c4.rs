//! A small detector of bottom-up attention's kind (one level, RoI max pooling, a dilated residual stage as box head, an
//! attribute head that depends on the object class), and checks against known faults of its ports.

mod common;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::checkpoint::save_safetensors;
use lxmert_core::features::StoreDtype;
use lxmert_core::ops::Precision;
use lxmert_core::procedural;
use lxmert_extract::choice::DetectorChoice;
use lxmert_extract::detector::config::{AttributeConfig, BoxHead, KeyNames, ObjectEmbeddingConfig, Res5Config};
use lxmert_extract::detector::selection::{RegionCount, select_proposals};
use lxmert_extract::detector::{
    Detector, DetectorConfig, Network, NormMode, expected_tensors, grid_feats, visual_genome,
};
use lxmert_extract::images::DecodedImage;
use lxmert_extract::regions::{self, RegionSource, Selection, SourceOptions};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A narrow version of `big`: 5 classes, 4 attributes, 20 numbers per region.
fn small(mut config: DetectorConfig) -> DetectorConfig {
    config.transform.min_size = 64;
    config.transform.max_size = 96;
    config.backbone.stem_width = 8;
    config.backbone.blocks = vec![1, 1, 2];
    config.backbone.bottleneck_widths = vec![8, 8, 16];
    config.backbone.stage_widths = vec![16, 24, 32];
    config.rpn.anchor_sizes = vec![vec![16.0, 32.0]];
    config.rpn.hidden_channels = Some(16);
    config.rpn.min_box_size = config.rpn.min_box_size.min(2.0);
    config.rpn.post_nms_top_n = 40;
    config.roi_heads.box_head = BoxHead::Res5(Res5Config { blocks: 2, bottleneck_width: 16, dilation: 2 });
    config.roi_heads.representation_size = 20;
    config.label_names.truncate(5);
    let counts_no_attribute = config.attributes[0].object_embedding.as_ref().is_some_and(|e| e.counts_no_attribute);
    config.attributes = vec![AttributeConfig {
        name: "attribute".into(),
        classes: config.attributes[0].classes[..4].to_vec(),
        object_embedding: Some(ObjectEmbeddingConfig { embedding_size: 6, hidden_size: 12, counts_no_attribute }),
    }];
    config
}

fn weights(config: &DetectorConfig) -> Result<HashMap<String, Tensor>> {
    let of = |(name, shape): (String, Vec<usize>)| -> Result<(String, Tensor)> {
        let bound = (3.0 / shape.iter().skip(1).product::<usize>().max(1) as f64).sqrt();
        let norm_scale = name.contains("running_var") || (shape.len() == 1 && name.ends_with("weight"));
        let (low, high) = if norm_scale { (0.5, 1.5) } else { (-bound, bound) };
        let tensor = procedural::tensor(&name, &shape, low, high, 3)?;
        Ok((name, tensor))
    };
    expected_tensors(config)?.into_iter().map(of).collect()
}

fn builder(config: &DetectorConfig) -> Result<VarBuilder<'static>> {
    Ok(VarBuilder::from_tensors(weights(config)?, DType::F32, &Device::Cpu))
}

fn detector(config: &DetectorConfig) -> Result<Detector> {
    Ok(Detector::new(config, Precision::F32, builder(config)?)?)
}

fn image(name: &str, width: u32, height: u32) -> DecodedImage {
    let values = procedural::values(name, (3 * width * height) as usize, 0.0, 256.0, 0);
    DecodedImage { width, height, rgb: values.iter().map(|v| *v as u8).collect() }
}

#[test]
fn prepacked_and_plain_network_agree_on_images_of_any_shape() -> Result<()> {
    for config in [small(visual_genome::hugging_face()), small(visual_genome::caffe())] {
        let detector = detector(&config)?;
        let network = Network::new(&config, NormMode::Folded, builder(&config)?)?;
        for (width, height) in [(80, 60), (1, 1), (700, 1), (1, 700), (64, 63)] {
            let analysis = detector.analyse(detector.input(&image("a", width, height))?)?;
            let levels = network.levels(&analysis.input.tensor, false)?;
            assert_eq!(analysis.levels[0].dims(), levels[0].dims());
            common::assert_below("level", common::relative_error(&analysis.levels[0], &levels[0])?, 2e-5); // measured 3.4e-6
            let boxes = &analysis.proposals.boxes;
            if boxes.is_empty() {
                continue;
            }
            let heads = &network.roi_heads;
            let pooled = heads.pooler.forward(&levels, std::slice::from_ref(boxes), analysis.input.padded_size)?;
            let error = common::relative_error(&analysis.features, &heads.features(&pooled)?)?;
            common::assert_below("features", error, 1.3e-5); // measured 2.6e-6
            for index in 0..boxes.len() {
                let b = analysis.input.to_image(&analysis.regressed_box(index, 1));
                let inside =
                    b[0] >= 0.0 && b[1] >= 0.0 && b[2] <= width as f32 * 1.001 && b[3] <= height as f32 * 1.001;
                assert!(inside, "{b:?} in {width}×{height}");
            }
        }
    }
    Ok(())
}

/// The box head, computed with candle's own dilated convolution.
#[test]
fn the_residual_stage_on_regions_equals_a_dilated_one() -> Result<()> {
    let config = small(visual_genome::hugging_face());
    let weights = weights(&config)?;
    let network = Network::new(&config, NormMode::Folded, builder(&config)?)?;
    let pooled = procedural::tensor("pooled", &[3, 32, 14, 14], 0.0, 1.0, 0)?;
    let conv = |x: &Tensor, name: &str, padding: usize, dilation: usize| -> Result<Tensor> {
        let get = |part: &str| weights[&format!("roi_heads.res5.{name}.norm.{part}")].clone();
        let y = x.conv2d(&weights[&format!("roi_heads.res5.{name}.weight")], padding, 1, dilation, 1)?;
        let each = |t: Tensor| t.reshape((1, (), 1, 1));
        let y = y.broadcast_sub(&each(get("running_mean"))?)?;
        let y = y.broadcast_div(&(each(get("running_var"))? + config.backbone.batch_norm_eps)?.sqrt()?)?;
        Ok(y.broadcast_mul(&each(get("weight"))?)?.broadcast_add(&each(get("bias"))?)?)
    };
    let mut x = pooled.clone();
    for block in 0..2 {
        let y = conv(&x, &format!("{block}.conv1"), 0, 1)?.relu()?;
        let y = conv(&y, &format!("{block}.conv2"), 2, 2)?.relu()?;
        let y = conv(&y, &format!("{block}.conv3"), 0, 1)?;
        let shortcut = if block == 0 { conv(&x, "0.shortcut", 0, 1)? } else { x.clone() };
        x = (y + shortcut)?.relu()?;
    }
    let expected = x.mean((2, 3))?;
    let error = common::relative_error(&network.roi_heads.features(&pooled)?, &expected)?;
    common::assert_below("dilated", error, 3.5e-6); // measured 6.9e-7
    Ok(())
}

/// For an image with too few regions, Hugging Face's code returns those of the previous image, or fails.
#[test]
fn too_few_regions_are_never_filled_from_another_image() -> Result<()> {
    let config = small(visual_genome::hugging_face());
    let detector = detector(&config)?;
    let (first, second) = (image("a", 80, 60), image("b", 60, 80));
    let regions = |image: &DecodedImage, count| -> Result<_> {
        let analysis = detector.analyse(detector.input(image)?)?;
        let chosen = select_proposals(&config, &analysis, RegionCount::exactly(count)).expect("a rule");
        Ok((analysis, chosen))
    };
    let before = regions(&second, 1000)?.1;
    let (analysis, chosen) = regions(&first, 1000)?;
    assert!(!chosen.is_empty() && chosen.len() < 1000);
    // The regions that the last threshold leaves, all of this image.
    for (i, a) in chosen.iter().enumerate() {
        assert_eq!(analysis.best_class(a.proposal).1, a.candidate.score);
        assert!(
            chosen[..i].iter().all(|b| lxmert_core::boxes::iou(&a.candidate.box_xyxy, &b.candidate.box_xyxy) <= 0.7)
        );
    }
    assert_eq!(regions(&second, 1000)?.1, before, "an image's regions depend on the previous image");
    Ok(())
}

#[test]
fn the_attribute_depends_on_the_object() -> Result<()> {
    let config = small(visual_genome::hugging_face());
    let network = |shift: f64| -> Result<Network> {
        let mut weights = weights(&config)?;
        let table = weights.get_mut("roi_heads.box_predictor.cls_embedding.weight").expect("an embedding");
        *table = (&*table + shift)?;
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        Ok(Network::new(&config, NormMode::Folded, vb)?)
    };
    let features = procedural::tensor("features", &[5, 20], 0.0, 1.0, 0)?;
    let logits =
        |shift| -> Result<Tensor> { Ok(network(shift)?.roi_heads.predict(&features)?.attribute_logits.remove(0)) };
    assert_eq!(logits(0.0)?.dims(), [5, 5]);
    assert!(common::relative_error(&logits(0.0)?, &logits(1.0)?)? > 1e-2);
    Ok(())
}

/// Writes the small detector to a folder, with weights as in Hugging Face's file: no box deltas for background.
fn folder(path: &Path) -> Result<DetectorChoice> {
    let config = small(visual_genome::hugging_face());
    let mut tensors: Vec<(String, Tensor)> = weights(&config)?.into_iter().collect();
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("bbox_pred")) {
        *tensor = tensor.narrow(0, 4, tensor.dim(0)? - 4)?.contiguous()?;
    }
    std::fs::write(path.join("config.json"), serde_json::to_string(&config)?)?;
    save_safetensors(path.join("model.safetensors"), &tensors, &BTreeMap::new())?;
    Ok(DetectorChoice::Folder(path.into()))
}

fn open(choice: &DetectorChoice, swap_channels: bool) -> Result<Box<dyn RegionSource>> {
    let options = SourceOptions {
        detector: choice,
        weights: None,
        regions: "3..7".parse().map_err(anyhow::Error::msg)?,
        select: Selection::Detections,
        precision: Precision::F32,
        swap_channels,
    };
    Ok(regions::open(&options, &Device::Cpu, false)?)
}

#[test]
fn regions_have_objects_and_attributes_counted_from_the_first_object() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = open(&folder(dir.path())?, false)?;
    let info = source.info(StoreDtype::F32);
    assert_eq!(info.label_names, ["yolk", "goal", "bathroom", "macaroni"]);
    assert_eq!(info.attribute_names[0], "gray");
    assert_eq!((info.regions, info.feature_dim, info.settings["regions"].as_str()), (7, 20, "3..7"));
    let found = source.find(&image("a", 80, 60))?;
    assert!((3..=7).contains(&found.num_regions()), "{} regions", found.num_regions());
    assert!(found.labels.iter().all(|&label| label < 4));
    let attributes = found.attributes.expect("the detector names attributes");
    assert!(attributes.labels.iter().all(|&label| label < 4));
    assert!(found.boxes.iter().all(|b| b[0] <= b[2] && b[1] <= b[3] && b.iter().all(|v| (0.0..=1.0).contains(v))));
    Ok(())
}

/// `--swap-channels` reproduces a fault of Hugging Face's code with local files: red and blue are swapped, but the mean
/// is subtracted as if they were not.
#[test]
fn swap_channels_equals_swapping_the_image_and_is_recorded_in_the_store() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let choice = folder(dir.path())?;
    let (right, swapped) = (open(&choice, false)?, open(&choice, true)?);
    let picture = image("a", 80, 60);
    let mut turned = picture.clone();
    turned.rgb.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
    assert_eq!(swapped.find(&picture)?, right.find(&turned)?);
    assert_ne!(swapped.find(&picture)?.features, right.find(&picture)?.features);
    let info = [&right, &swapped].map(|source| source.info(StoreDtype::F32).settings);
    assert_eq!((info[0].get("swap channels"), info[1]["swap channels"].as_str()), (None, "true"));
    Ok(())
}

#[test]
fn the_error_says_where_to_get_weights_that_cannot_be_fetched() {
    let told = open(&DetectorChoice::VisualGenomeCaffe, false).map_or_else(|e| e.to_string(), |_| "loaded".into());
    assert!(told.contains("MILVLG/bottom-up-attention.pytorch") && told.contains("--weights FILE"), "{told}");
}

/// Grid features' file, narrow: detectron2's names and layout, with what only training uses.
#[test]
fn grid_features_are_the_last_maps_cells_by_a_file_of_detectron2s_form() -> Result<()> {
    let narrow = |key_names: KeyNames| {
        let mut config = grid_feats::r50();
        (config.transform.min_size, config.transform.max_size) = (128, 200);
        config.backbone.stem_width = 8;
        config.backbone.blocks = vec![1, 1, 2, 1];
        config.backbone.bottleneck_widths = vec![8, 8, 16, 16];
        config.backbone.stage_widths = vec![16, 24, 32, 40];
        config.roi_heads.representation_size = 20;
        config.label_names.truncate(5);
        config.key_names = key_names;
        config
    };
    let (config, plain) = (narrow(KeyNames::Detectron2), narrow(KeyNames::Torchvision));
    let name_of = |name: &str| {
        let mut name = name.replace("backbone.body.conv1", "backbone.stem.conv1");
        name = name.replace("backbone.body.bn1", "backbone.stem.conv1.norm");
        for (ours, theirs) in [
            ("backbone.body.layer4", "backbone.res5"),
            ("backbone.body.layer3", "backbone.res4"),
            ("backbone.body.layer2", "backbone.res3"),
            ("backbone.body.layer1", "backbone.res2"),
            (".downsample.0", ".shortcut"),
            (".downsample.1", ".shortcut.norm"),
            (".bn1", ".conv1.norm"),
            (".bn2", ".conv2.norm"),
            (".bn3", ".conv3.norm"),
            ("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"),
            ("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
            ("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
            ("box_head.fc6", "box_head.fc1"),
            ("box_head.fc7", "box_head.fc2"),
        ] {
            name = name.replace(ours, theirs);
        }
        name
    };
    let mut file: Vec<(String, Tensor)> = Vec::new();
    for (name, value) in weights(&plain)? {
        // Background is the last class there, and has no box deltas.
        let value = if name.contains("cls_score") {
            Tensor::cat(&[value.narrow(0, 1, 4)?, value.narrow(0, 0, 1)?], 0)?
        } else if name.contains("box_predictor.bbox_pred") {
            value.narrow(0, 4, 16)?
        } else {
            value
        };
        file.push((name_of(&name), value));
    }
    for (name, shape) in [
        ("pixel_mean", vec![3, 1, 1]),
        ("pixel_std", vec![3, 1, 1]),
        ("proposal_generator.anchor_generator.cell_anchors.0", vec![15, 4]),
        ("roi_heads.attribute_predictor.obj_embed.weight", vec![5, 6]),
        ("roi_heads.attribute_predictor.fc.0.weight", vec![12, 26]),
        ("roi_heads.attribute_predictor.attr_score.bias", vec![4]),
    ] {
        file.push((name.into(), procedural::tensor(name, &shape, 0.0, 1.0, 0)?));
    }
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&config)?)?;
    save_safetensors(folder.path().join("model.safetensors"), &file, &BTreeMap::new())?;
    let choice = DetectorChoice::Folder(folder.path().into());
    let options = SourceOptions {
        detector: &choice,
        weights: None,
        regions: "cells:8".parse().map_err(anyhow::Error::msg)?,
        select: Selection::Detections,
        precision: Precision::F32,
        swap_channels: false,
    };
    let image = DecodedImage { width: 60, height: 40, rgb: (0..60 * 40 * 3).map(|i| (i * 37 % 251) as u8).collect() };
    let found = regions::open(&options, &Device::Cpu, false)?.find(&image)?;
    // 128 × 192 pixels are 4 × 6 cells of 32.
    assert_eq!((found.num_regions(), found.feature_dim), (24, 40));
    assert_eq!((found.boxes[0], found.boxes[23]), ([0.0, 0.0, 1.0 / 6.0, 0.25], [5.0 / 6.0, 0.75, 1.0, 1.0]));
    let network = Detector::new(&plain, Precision::F32, builder(&plain)?)?;
    let map = network.last_map(&network.input(&image)?)?;
    assert_eq!(map.dims(), [1, 40, 4, 6]);
    let expected = map.squeeze(0)?.flatten_from(1)?.t()?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
    let worst = expected.iter().zip(&found.features).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-5, "{worst}");

    let named = SourceOptions {
        detector: &DetectorChoice::GridFeats,
        regions: "36".parse().map_err(anyhow::Error::msg)?,
        ..options
    };
    let refused = regions::open(&named, &Device::Cpu, false).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("pass --regions cells:8"), "{refused}");
    let cells = SourceOptions { regions: "cells".parse().map_err(anyhow::Error::msg)?, ..named };
    let refused = regions::open(&cells, &Device::Cpu, false).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("R-50.pth") && refused.contains("--weights FILE"), "{refused}");
    Ok(())
}
