//! The reference network of `tests/fixtures/frcnn`: torchvision's Faster R-CNN with formula weights.

#![allow(dead_code)] // each test binary uses part of it

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::ops::Precision;
use lxmert_core::procedural;
use lxmert_extract::detector::{Detector, DetectorConfig, visual_genome};
use lxmert_extract::images::{DecodedImage, decode_file};
use lxmert_extract::weights;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A file under `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A safetensors fixture.
pub fn tensors(name: &str) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(fixture(name), &Device::Cpu).with_context(|| name.to_string())
}

#[derive(serde::Deserialize)]
struct Manifest {
    tensors: Vec<Entry>,
}

#[derive(serde::Deserialize)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    low: f64,
    high: f64,
}

/// The formula tensors that a manifest among the fixtures lists.
pub fn manifest_weights(name: &str, seed: u64) -> Result<HashMap<String, Tensor>> {
    let manifest: Manifest = serde_json::from_str(&std::fs::read_to_string(fixture(name))?)?;
    let tensors = manifest.tensors.into_iter();
    tensors.map(|t| Ok((t.name.clone(), procedural::tensor(&t.name, &t.shape, t.low, t.high, seed)?))).collect()
}

/// All weights of the reference network, under torchvision's names.
pub fn reference_weights(seed: u64) -> Result<HashMap<String, Tensor>> {
    let mut weights = tensors(&format!("frcnn/batchnorm-seed-{seed}.safetensors"))?;
    weights.extend(manifest_weights("frcnn/manifest.json", seed)?);
    Ok(weights)
}

/// The reference network, with products in `precision`.
pub fn reference_detector(seed: u64, precision: Precision) -> Result<Detector> {
    let vb = VarBuilder::from_tensors(reference_weights(seed)?, DType::F32, &Device::Cpu);
    Ok(Detector::new(&DetectorConfig::coco(), precision, vb)?)
}

/// The weights of the Visual Genome reference, as in a file of either family.
pub fn visual_genome_weights(caffe: bool) -> Result<BTreeMap<String, Tensor>> {
    let mut weights: BTreeMap<String, Tensor> = manifest_weights("frcnn_vg/manifest.json", 0)?.into_iter().collect();
    let calibration = tensors("frcnn_vg/calibration.safetensors")?;
    let (own, other): (Vec<_>, Vec<_>) = calibration.into_iter().partition(|(name, _)| !name.starts_with("caffe."));
    weights.extend(own);
    if caffe {
        weights.retain(|name, _| !name.contains("box_predictor"));
        weights.extend(manifest_weights("frcnn_vg/manifest_caffe.json", 0)?);
        weights.extend(other.into_iter().map(|(name, tensor)| (name.replacen("caffe.", "", 1), tensor)));
    }
    Ok(weights)
}

/// The Visual Genome reference network, with products in `precision`.
pub fn visual_genome_detector(caffe: bool, precision: Precision) -> Result<Detector> {
    let config = if caffe { visual_genome::caffe() } else { visual_genome::hugging_face() };
    let weights = visual_genome_weights(caffe)?;
    Ok(weights::from_tensors(&config, &fixture("frcnn_vg"), weights, precision, &Device::Cpu)?)
}

/// A fixture picture.
pub fn photo(name: &str) -> Result<DecodedImage> {
    Ok(decode_file(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../data/photos").join(name))?)
}

/// The largest difference, divided by the reference's root mean square.
pub fn relative_error(got: &Tensor, reference: &Tensor) -> Result<f32> {
    anyhow::ensure!(got.dims() == reference.dims(), "shape {:?} is not {:?}", got.dims(), reference.dims());
    let rms = reference.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    let largest = (got - reference)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    anyhow::ensure!(largest.is_finite() && rms > 0.0, "nothing to compare");
    Ok(largest / rms)
}

/// Prints an error, which must be below its bound. A bound is about five times what is measured.
#[track_caller]
pub fn assert_below(what: &str, error: f32, bound: f32) {
    println!("{what}: {error:.1e}");
    assert!(error < bound, "{what}: {error:e} is not below {bound:e}");
}

/// The rows of an `[n, 4]` tensor.
pub fn boxes(t: &Tensor) -> Result<Vec<[f32; 4]>> {
    Ok(t.to_vec2::<f32>()?.into_iter().map(|b| [b[0], b[1], b[2], b[3]]).collect())
}

/// The largest difference between coordinates of two boxes.
pub fn box_error(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
