//! The reference runs: formula weights and recorded outputs.

#![allow(dead_code)] // each test file uses part of it

pub mod kernels;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;

/// One tensor in a manifest that the formula generates.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    pub low: f64,
    pub high: f64,
    pub seed: u64,
    /// Set for weights of a second model that reuses a name.
    pub model: Option<String>,
}

/// A manifest with its configuration.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    #[serde(default)]
    pub config: serde_json::Value,
    pub tensors: Vec<Entry>,
}

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn manifest(name: &str) -> Manifest {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

pub fn outputs(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name), &Device::Cpu).unwrap()
}

struct Formula(HashMap<String, Entry>);

impl SimpleBackend for Formula {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(entry) = self.0.get(name) else { candle_core::bail!("no formula for '{name}'") };
        assert_eq!(shape.dims(), entry.shape, "{name}");
        lxmert_core::procedural::tensor(name, &entry.shape, entry.low, entry.high, entry.seed)?
            .to_device(device)?
            .to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("'{name}' asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Weights from the formula; `model` picks the entries of the manifest's second model.
pub fn weights(manifest: &Manifest, model: Option<&str>) -> VarBuilder<'static> {
    let chosen = manifest.tensors.iter().filter(|e| e.model.as_deref() == model);
    let map = chosen.map(|e| (e.name.clone(), e.clone())).collect();
    VarBuilder::from_backend(Box::new(Formula(map)), DType::F32, Device::Cpu)
}
