//! Where a detector's weights come from, and the check that they are the right ones.

use crate::detector::config::KeyNames;
use crate::detector::{Detector, DetectorConfig, expected_tensors, visual_genome};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::checkpoint::{
    ExpectedFile, FitOptions, HubOptions, WeightSource, fit, names, read_tensors, save_safetensors,
};
use lxmert_core::ops::Precision;
use lxmert_core::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// torchvision's weights of 2019 (COCO val2017 box AP 37.0), in a third party's repository on the hub.
pub const COCO_SOURCE: &str = "hf:zeyuzy/vision_model-base_model/fasterrcnn_resnet50_fpn_coco.pth";

/// Size and hash of [`COCO_SOURCE`]; the hash starts with the `258fb6c6` in torchvision's own file name.
pub const COCO_FILE: ExpectedFile<'static> =
    ExpectedFile { size: 167_502_836, sha256: "258fb6c638b15964ddcdd1ae0748c5eef1be9e732750120cc857feed3faac384" };

/// Hugging Face's weights of bottom-up attention's detector, from a copy in a space on the hub: the repository
/// `unc-nlp/frcnn-vg-finetuned` itself is gone.
pub const VISUAL_GENOME_SOURCE: &str =
    "hf:spaces/WwYc/explain-LXMERT/lxmert/unc-nlp/frcnn-vg-finetuned/pytorch_model.bin";

/// Size and hash of [`VISUAL_GENOME_SOURCE`].
pub const VISUAL_GENOME_FILE: ExpectedFile<'static> =
    ExpectedFile { size: 262_398_754, sha256: "d3bf8ad74828a244a95d85e17a842cc0ac75419a53e4e81ee68386f192bb24c5" };

/// A detector from a weights file: safetensors, a `.pth` of any age, or detectron2's `.pkl`, with the key names and
/// layout of any port that the configuration supports.
///
/// # Errors
/// Returns an error if the file cannot be read or does not fit `config`; the error lists every missing, unexpected and
/// misshapen name. Also as [`Detector::new`].
pub fn load(
    config: &DetectorConfig,
    path: impl AsRef<Path>,
    precision: Precision,
    device: &Device,
) -> Result<Detector> {
    let path = path.as_ref();
    from_tensors(config, path, read_tensors(path)?, precision, device)
}

/// [`load`] for the tensors of a file that is already read. `path` is for messages.
///
/// # Errors
/// See [`load`].
pub fn from_tensors(
    config: &DetectorConfig,
    path: &Path,
    tensors: BTreeMap<String, Tensor>,
    precision: Precision,
    device: &Device,
) -> Result<Detector> {
    let mut config = config.clone();
    let tensors = fitting(&mut config, path, tensors)?;
    detector(&config, tensors, precision, device)
}

/// The COCO detector: the published file from the hub's cache, checked by size and hash, and converted once to
/// safetensors beside that cache.
///
/// # Errors
/// As [`WeightSource::resolve`] and [`load`].
pub fn load_coco(
    config: &DetectorConfig,
    precision: Precision,
    device: &Device,
    show_progress: bool,
) -> Result<Detector> {
    let published: WeightSource = COCO_SOURCE.parse().map_err(Error::Argument)?;
    let copy = converted_path(&HubOptions::from_env().cache_dir, COCO_FILE.sha256);
    let tensors = converted(config, &copy, || published.resolve(Some(&COCO_FILE), show_progress))?;
    detector(config, tensors, precision, device)
}

/// Where the converted copy of the file with this hash is: in `lxmert`, beside the hub's cache.
fn converted_path(hub_cache: &Path, sha256: &str) -> PathBuf {
    hub_cache.parent().unwrap_or(hub_cache).join("lxmert").join(format!("{sha256}.safetensors"))
}

/// The tensors of the converted `copy`; if it is missing or incomplete, those of `original`, and a new copy is written.
fn converted(
    config: &DetectorConfig,
    copy: &Path,
    original: impl FnOnce() -> Result<PathBuf>,
) -> Result<BTreeMap<String, Tensor>> {
    if copy.exists() {
        match read_fitting(config, copy) {
            Ok(tensors) => return Ok(tensors),
            Err(e) => log::warn!("{e}; making a new copy"),
        }
    }
    let original = original()?;
    let tensors = read_fitting(config, &original)?;
    let listed: Vec<(String, Tensor)> = tensors.iter().map(|(name, t)| (name.clone(), t.clone())).collect();
    let folder = copy.parent().unwrap_or(Path::new("."));
    let made = std::fs::create_dir_all(folder)
        .map_err(Error::io(folder))
        .and_then(|()| save_safetensors(copy, &listed, &BTreeMap::from([("format".into(), "pt".into())])));
    if let Err(e) = made {
        // Only the next start is slower.
        log::warn!("could not save the weights as safetensors: {e}");
    }
    Ok(tensors)
}

fn read_fitting(config: &DetectorConfig, path: &Path) -> Result<BTreeMap<String, Tensor>> {
    fitting(&mut config.clone(), path, read_tensors(path)?)
}

/// The tensors that the network needs, in its layout. Anchors in the file go into `config`.
fn fitting(
    config: &mut DetectorConfig,
    path: &Path,
    tensors: BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let tensors = match config.key_names {
        KeyNames::Torchvision => names::detector(path, tensors)?,
        KeyNames::Detectron2 => visual_genome::to_network_layout(config, path, tensors)?,
    };
    let options = FitOptions {
        // A counter for training that inference does not need (FrozenBatchNorm2d has none), what the transform does, and attributes
        // of grid features' detector, which are for its training.
        ignore: ["*.num_batches_tracked", "pixel_mean", "pixel_std", "roi_heads.attribute_predictor.*"]
            .map(String::from)
            .to_vec(),
        ..FitOptions::default()
    };
    fit(path, &expected_tensors(config)?, tensors, &options)
}

fn detector(
    config: &DetectorConfig,
    tensors: BTreeMap<String, Tensor>,
    precision: Precision,
    device: &Device,
) -> Result<Detector> {
    Detector::new(config, precision, VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::config::{FpnConfig, ResNetConfig, RoiHeadsConfig};
    use std::cell::Cell;

    fn tiny() -> DetectorConfig {
        DetectorConfig {
            backbone: ResNetConfig {
                stem_width: 2,
                blocks: vec![1, 1, 1, 1],
                bottleneck_widths: vec![2; 4],
                stage_widths: vec![4; 4],
                ..ResNetConfig::default()
            },
            fpn: Some(FpnConfig { channels: 2, ..FpnConfig::default() }),
            roi_heads: RoiHeadsConfig { representation_size: 3, ..RoiHeadsConfig::default() },
            label_names: vec!["background".into(), "thing".into()],
            ..DetectorConfig::coco()
        }
    }

    /// Ones in the tiny detector's shapes, under the published file's names.
    fn published() -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for (name, shape) in expected_tensors(&tiny())? {
            let name = name
                .replace("rpn.head.conv.0.0.", "rpn.head.conv.")
                .replace(".0.weight", ".weight")
                .replace(".0.bias", ".bias");
            // The backbone's own `downsample.0` keeps its number.
            let name = name.replace("downsample.weight", "downsample.0.weight");
            if let Some(norm) = name.strip_suffix("running_var") {
                tensors.push((format!("{norm}num_batches_tracked"), Tensor::new(5i64, &Device::Cpu)?));
            }
            tensors.push((name, Tensor::ones(shape, DType::F32, &Device::Cpu)?));
        }
        Ok(tensors)
    }

    #[test]
    fn loads_older_names_and_skips_counters() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("temporary folder"))?;
        let path = folder.path().join("old.safetensors");
        let tensors = published()?;
        assert!(tensors.iter().any(|(n, _)| n == "rpn.head.conv.weight"));
        assert!(tensors.iter().any(|(n, _)| n == "backbone.fpn.inner_blocks.0.bias"));
        save_safetensors(&path, &tensors, &BTreeMap::new())?;
        load(&tiny(), &path, Precision::F32, &Device::Cpu)?;
        Ok(())
    }

    #[test]
    fn errors_list_what_does_not_fit() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("temporary folder"))?;
        let path = folder.path().join("wrong.safetensors");
        let mut tensors = published()?;
        tensors.retain(|(name, _)| name != "roi_heads.box_head.fc7.bias");
        tensors.push(("roi_heads.mask".into(), Tensor::new(1f32, &Device::Cpu)?));
        for (name, tensor) in &mut tensors {
            if name == "roi_heads.box_predictor.cls_score.bias" {
                *tensor = Tensor::ones(91, DType::F32, &Device::Cpu)?;
            }
        }
        save_safetensors(&path, &tensors, &BTreeMap::new())?;
        let told =
            load(&tiny(), &path, Precision::F32, &Device::Cpu).map_or_else(|e| e.to_string(), |_| "loaded".into());
        for name in ["roi_heads.box_head.fc7.bias", "roi_heads.mask", "roi_heads.box_predictor.cls_score.bias"] {
            assert!(told.contains(name), "{name} is not in: {told}");
        }
        Ok(())
    }

    #[test]
    fn the_copy_is_made_once_and_again_if_damaged() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("temporary folder"))?;
        let path = folder.path().join("old.safetensors");
        save_safetensors(&path, &published()?, &BTreeMap::new())?;
        let copy = converted_path(&folder.path().join("hub"), "abc");
        assert_eq!(copy, folder.path().join("lxmert/abc.safetensors"));
        let asked = Cell::new(0);
        let read = || {
            converted(&tiny(), &copy, || {
                asked.set(asked.get() + 1);
                Ok(path.clone())
            })
        };
        let first = read()?;
        let second = read()?;
        assert_eq!(asked.get(), 1);
        assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
        std::fs::write(&copy, b"torn").map_err(Error::io(&copy))?;
        read()?;
        assert_eq!(asked.get(), 2);
        read()?;
        assert_eq!(asked.get(), 2);
        Ok(())
    }
}
