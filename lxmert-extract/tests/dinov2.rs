//! DINOv2's patch states against transformers' `Dinov2Model` on formula weights (`scripts/dinov2.py`).

mod common;

use anyhow::Result;
use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{fixture, tensors};
use lxmert_core::checkpoint::save_safetensors;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::init;
use lxmert_core::procedural;
use lxmert_extract::regions::patches::{Dinov2, Dinov2Config};
use predicates::str::contains;
use std::collections::{BTreeMap, HashMap};

const SEED: u64 = 11;

/// The script's weights.
fn weights(config: &Dinov2Config) -> Result<HashMap<String, Tensor>> {
    let mut weights = HashMap::new();
    for (name, shape) in init::expected(|vb| Dinov2::new(config, vb).map(drop))? {
        let (low, high) = if name.contains("lambda1") || (name.contains("norm") && name.ends_with("weight")) {
            (0.5, 1.5)
        } else {
            let fan_in = if [2, 4].contains(&shape.len()) { shape[1..].iter().product() } else { 3usize };
            let bound = (3.0 / fan_in as f64).sqrt();
            (-bound, bound)
        };
        let tensor = procedural::tensor(&name, &shape, low, high, SEED)?;
        weights.insert(name, tensor);
    }
    Ok(weights)
}

#[test]
fn patch_states_match_transformers() -> Result<()> {
    let config = Dinov2Config::from_json_file(fixture("dinov2/config.json"))?;
    let vb = VarBuilder::from_tensors(weights(&config)?, DType::F32, &Device::Cpu);
    let transformer = Dinov2::new(&config, vb)?;
    let reference = tensors("dinov2/reference.safetensors")?;
    // As many patches as position embeddings, and a grid to which they are resized.
    for (height, width) in [(70, 70), (56, 98)] {
        let name = format!("{height}x{width}");
        let pixels = procedural::tensor(&format!("pixels {name}"), &[1, 3, height, width], -2.0, 2.0, SEED)?;
        let states = transformer.forward(&pixels)?;
        assert_eq!(states.dims(), [1, 48, height / 14, width / 14]);
        let error = common::relative_error(&states.flatten_from(2)?.transpose(1, 2)?, &reference[&name])?;
        println!("{name}: {error:.1e}");
        // Measured: 1.6e-6.
        assert!(error < 8e-6, "{name}: {error}");
    }
    Ok(())
}

#[test]
fn patches_of_a_folder_are_stored() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("dino"))?;
    std::fs::copy(fixture("dinov2/config.json"), at("dino/config.json"))?;
    let config = Dinov2Config::from_json_file(at("dino/config.json"))?;
    let mut tensors: Vec<(String, Tensor)> = weights(&config)?.into_iter().collect();
    tensors.push(("embeddings.mask_token".into(), Tensor::zeros((1, 48), DType::F32, &Device::Cpu)?));
    save_safetensors(at("dino/model.safetensors"), &tensors, &BTreeMap::new())?;
    image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8, y as u8, 9])).save(at("photo.png"))?;
    let extract = |regions: &str| {
        let mut command = Command::cargo_bin("lxmert-extract").expect("the binary of this crate");
        command.arg("--images").arg(at("photo.png")).arg("--output").arg(at("store"));
        command.arg("--detector").arg(at("dino")).args(["--regions", regions, "--device", "cpu"]).assert()
    };
    extract("36").code(1).stderr(contains("give --regions 7x7"));
    extract("7x7").success();
    let store = FeatureStore::open(at("store"))?;
    assert_eq!((store.info().detector.as_str(), store.info().settings["select"].as_str()), ("dino", "patches:7x7"));
    let regions = store.regions(0)?;
    assert_eq!((regions.num_regions(), regions.feature_dim), (49, 48));
    // 224 × 298 pixels of 224 × 308: every box ends at the image's border.
    assert_eq!((regions.boxes[0][..2].to_vec(), regions.boxes[48][2..].to_vec()), (vec![0.0; 2], vec![1.0; 2]));
    Ok(())
}
