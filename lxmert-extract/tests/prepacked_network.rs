//! The inference path with prepacked weights against the plain network.

mod common;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::ops::Precision;
use lxmert_core::procedural;
use lxmert_extract::detector::config::{Block, FpnConfig, ResNetConfig};
use lxmert_extract::detector::inference::PrepackedNetwork;
use lxmert_extract::detector::rpn::LevelPrediction;
use lxmert_extract::detector::{DetectorConfig, Network, NormMode, expected_tensors};
use std::collections::HashMap;

fn config(block: Block, width: usize) -> DetectorConfig {
    let coco = DetectorConfig::coco();
    DetectorConfig {
        backbone: ResNetConfig {
            block,
            stem_width: width,
            blocks: vec![1, 2, 1, 2],
            bottleneck_widths: vec![width, width, 2 * width, 2 * width],
            stage_widths: vec![2 * width, 3 * width, 4 * width, 5 * width],
            ..coco.backbone
        },
        fpn: Some(FpnConfig { channels: 2 * width, ..FpnConfig::default() }),
        ..coco
    }
}

fn network(config: &DetectorConfig) -> Result<Network> {
    let mut weights = HashMap::new();
    for (name, shape) in expected_tensors(config)? {
        let bound = (3.0 / shape.iter().skip(1).product::<usize>().max(1) as f64).sqrt();
        let norm_scale = name.contains("running_var") || (shape.len() == 1 && name.ends_with("weight"));
        let (low, high) = if norm_scale { (0.5, 1.5) } else { (-bound, bound) };
        let tensor = procedural::tensor(&name, &shape, low, high, 5)?;
        weights.insert(name, tensor);
    }
    let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    Ok(Network::new(config, NormMode::Folded, vb)?)
}

fn assert_close(prepacked: &Tensor, plain: &Tensor) -> Result<()> {
    assert_eq!(prepacked.dims(), plain.dims());
    let largest = |t: Tensor| t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let difference = largest((prepacked - plain)?)? / largest(plain.clone())?;
    // Winograd's rounding, through some twenty layers.
    common::assert_below("prepacked", difference, 1e-4);
    Ok(())
}

#[test]
fn levels_and_predictions_match_the_plain_network() -> Result<()> {
    // Widths that are and are not multiples of a vector register; levels with odd sizes.
    for (block, width) in [(Block::Bottleneck, 16), (Block::Bottleneck, 6), (Block::Basic, 8)] {
        let network = network(&config(block, width))?;
        let Some(prepacked) = PrepackedNetwork::new(&network, Precision::F32)? else {
            assert!(lxmert_core::ops::use_reference(), "f32 on the CPU is prepacked");
            continue;
        };
        let images = procedural::tensor("images", &[2, 3, 96, 160], -1.0, 1.0, 1)?;
        let expected = network.levels(&images, false)?;
        let expected_predictions = network.rpn.forward_t(&expected, false)?;
        let (levels, predictions) = prepacked.forward(&images, true)?;
        assert_eq!(levels.len(), expected.len());
        for (level, expected) in levels.iter().zip(&expected) {
            assert_close(level, expected)?;
        }
        assert_eq!(predictions.len(), expected_predictions.len());
        for (prediction, expected) in predictions.iter().zip(&expected_predictions) {
            assert_close(&prediction.logits, &expected.logits)?;
            assert_close(&prediction.deltas, &expected.deltas)?;
        }
    }
    Ok(())
}

/// Norm of the difference divided by the norm.
fn relative(got: &Tensor, expected: &Tensor) -> Result<f32> {
    let square = |t: &Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.to_scalar::<f32>()?) };
    Ok((square(&(got - expected)?)? / square(expected)?).sqrt())
}

#[test]
fn products_of_bf16_stay_within_two_hundredths() -> Result<()> {
    if lxmert_core::ops::use_reference() {
        return Ok(());
    }
    // The reference's full-size network, on a small image.
    let detector = common::reference_detector(0, Precision::F32)?;
    let images = procedural::tensor("images", &[1, 3, 160, 224], -2.0, 2.0, 1)?;
    let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| -> Result<_> {
        let prepacked = PrepackedNetwork::new(detector.network(), precision)?.context("f32 on the CPU is prepacked")?;
        let (levels, predictions) = prepacked.forward(&images, true)?;
        let boxes: Vec<[f32; 4]> = (0..12).map(|i| [i as f32 * 9.0, 10.0, i as f32 * 12.0 + 60.0, 140.0]).collect();
        let features = prepacked.features(&levels[..4], &[boxes], (160, 224))?;
        Ok((levels, predictions, features))
    });
    let (exact, rounded) = (exact?, rounded?);
    let mut errors = vec![relative(&rounded.2, &exact.2)?];
    for (rounded, exact) in rounded.0.iter().zip(&exact.0) {
        errors.push(relative(rounded, exact)?);
    }
    // All levels together, as proposals are ranked: the coarsest has only 18 logits here.
    let all = |of: &dyn Fn(&LevelPrediction) -> Result<Tensor>, predictions: &[LevelPrediction]| -> Result<Tensor> {
        Ok(Tensor::cat(&predictions.iter().map(of).collect::<Result<Vec<_>>>()?, 0)?)
    };
    let logits = |p: &LevelPrediction| -> Result<Tensor> { Ok(p.logits.flatten_all()?) };
    let deltas = |p: &LevelPrediction| -> Result<Tensor> { Ok(p.deltas.flatten_all()?) };
    errors.push(relative(&all(&logits, &rounded.1)?, &all(&logits, &exact.1)?)?);
    errors.push(relative(&all(&deltas, &rounded.1)?, &all(&deltas, &exact.1)?)?);
    println!("{errors:.4?}");
    // Rounded, but not too much.
    assert!(errors.iter().all(|e| *e < 2e-2 && *e > 1e-4), "{errors:?}");
    Ok(())
}
