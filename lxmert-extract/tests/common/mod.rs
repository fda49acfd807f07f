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
    /// Of the formula; otherwise the caller says it.
    seed: Option<u64>,
}

/// The formula tensors that a manifest lists.
fn manifest_weights(path: &Path, seed: u64) -> Result<HashMap<String, Tensor>> {
    let manifest = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let manifest: Manifest = serde_json::from_str(&manifest)?;
    let tensor = |t: Entry| {
        let values = procedural::tensor(&t.name, &t.shape, t.low, t.high, t.seed.unwrap_or(seed))?;
        Ok((t.name, values))
    };
    manifest.tensors.into_iter().map(tensor).collect()
}

/// All weights of the reference network, under torchvision's names.
pub fn reference_weights(seed: u64) -> Result<HashMap<String, Tensor>> {
    let mut weights = tensors(&format!("frcnn/batchnorm-seed-{seed}.safetensors"))?;
    weights.extend(manifest_weights(&fixture("frcnn/manifest.json"), seed)?);
    Ok(weights)
}

/// The reference network, with products in `precision`.
pub fn reference_detector(seed: u64, precision: Precision) -> Result<Detector> {
    let vb = VarBuilder::from_tensors(reference_weights(seed)?, DType::F32, &Device::Cpu);
    Ok(Detector::new(&DetectorConfig::coco(), precision, vb)?)
}

/// A run of the Visual Genome reference: weights, and photos with what the original code computes of them.
pub struct VisualGenomeRun {
    folder: PathBuf,
    photos: PathBuf,
    /// The photos' names without ending.
    pub stems: Vec<String>,
}

impl VisualGenomeRun {
    /// The run among the fixtures.
    pub fn shipped() -> Self {
        let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/photos");
        Self { folder: fixture("frcnn_vg"), photos, stems: ["chelsea", "coffee"].map(String::from).to_vec() }
    }

    /// The run in the folder `LXMERT_VG_REFERENCE`, photos included, or the one among the fixtures, whose README says
    /// how to make another.
    pub fn chosen() -> Result<Self> {
        let Some(folder) = std::env::var_os("LXMERT_VG_REFERENCE") else { return Ok(Self::shipped()) };
        let folder = PathBuf::from(folder);
        let names = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        let names: Vec<String> = names.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let mut stems: Vec<String> =
            names.iter().filter_map(|n| n.strip_suffix("_caffe.safetensors").map(String::from)).collect();
        stems.sort();
        anyhow::ensure!(!stems.is_empty(), "{}: no run (PHOTO_caffe.safetensors)", folder.display());
        Ok(Self { photos: folder.clone(), folder, stems })
    }

    pub fn is_shipped(&self) -> bool {
        self.folder == fixture("frcnn_vg")
    }

    /// A file of the run.
    pub fn tensors(&self, name: &str) -> Result<HashMap<String, Tensor>> {
        let path = self.folder.join(name);
        candle_core::safetensors::load(&path, &Device::Cpu).with_context(|| path.display().to_string())
    }

    pub fn photo(&self, stem: &str) -> Result<DecodedImage> {
        Ok(decode_file(self.photos.join(format!("{stem}.png")))?)
    }

    /// The weights, as in a file of either family.
    pub fn weights(&self, caffe: bool) -> Result<BTreeMap<String, Tensor>> {
        let manifest = |name: &str| manifest_weights(&self.folder.join(name), 0);
        let mut weights: BTreeMap<String, Tensor> = manifest("manifest.json")?.into_iter().collect();
        let calibration = self.tensors("calibration.safetensors")?;
        let (own, other): (Vec<_>, Vec<_>) = calibration.into_iter().partition(|(name, _)| !name.starts_with("caffe."));
        weights.extend(own);
        if caffe {
            weights.retain(|name, _| !name.contains("box_predictor"));
            weights.extend(manifest("manifest_caffe.json")?);
            weights.extend(other.into_iter().map(|(name, tensor)| (name.replacen("caffe.", "", 1), tensor)));
        }
        Ok(weights)
    }

    /// The network, with products in `precision`.
    pub fn detector(&self, caffe: bool, precision: Precision) -> Result<Detector> {
        let config = if caffe { visual_genome::caffe() } else { visual_genome::hugging_face() };
        Ok(weights::from_tensors(&config, &self.folder, self.weights(caffe)?, precision, &Device::Cpu)?)
    }
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
