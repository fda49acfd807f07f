//! Which detector, with which weights.

use crate::detector::{Detector, DetectorConfig};
use crate::{Error, Result};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use lxmert_core::workspace::Workspace;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The detectors that can be asked for by name, or a folder with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectorChoice {
    /// The small one in `data/scenes-detector`.
    Scenes,
    /// torchvision's Faster R-CNN R50-FPN for the 91 ids of COCO.
    Coco,
    /// A folder with `config.json` and `model.safetensors`.
    Folder(PathBuf),
}

impl std::str::FromStr for DetectorChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "scenes" => Ok(Self::Scenes),
            "coco" => Ok(Self::Coco),
            folder if Path::new(folder).join("config.json").is_file() => Ok(Self::Folder(folder.into())),
            other => Err(format!("'{other}' is not scenes, coco, or a folder with config.json and model.safetensors")),
        }
    }
}

/// A detector with its weights, and how a store names them.
#[derive(Debug)]
pub struct LoadedDetector {
    /// The detector.
    pub detector: Detector,
    /// Its name.
    pub name: String,
    /// SHA-256 of the weight file, in hexadecimal.
    pub weights_sha256: String,
}

/// Reads a detector; `weights` (a safetensors file under torchvision's key names) replaces its own.
///
/// # Errors
/// When a file is missing or does not fit the configuration, or `--detector coco` has no `weights`.
pub fn load(choice: &DetectorChoice, weights: Option<&Path>, device: &Device) -> Result<LoadedDetector> {
    let (name, config, own_weights) = match choice {
        DetectorChoice::Coco => ("coco".to_string(), DetectorConfig::coco(), None),
        DetectorChoice::Scenes => folder("scenes", &Workspace::locate()?.data("scenes-detector"))?,
        DetectorChoice::Folder(path) => {
            let name = path.file_name().map_or("detector".into(), |name| name.to_string_lossy());
            folder(&name, path)?
        }
    };
    let path = match (weights, own_weights) {
        (Some(path), _) => path.to_path_buf(),
        (None, Some(path)) => path,
        (None, None) => {
            return Err(lxmert_core::Error::Argument("--detector coco needs --weights FILE.safetensors".into()).into());
        }
    };
    let weights_sha256 = sha256(&path).map_err(lxmert_core::Error::io(&path))?;
    let tensors =
        candle_core::safetensors::load(&path, device).map_err(|error| Error::input(&path, error.to_string()))?;
    let vb = VarBuilder::from_tensors(tensors, DType::F32, device);
    let detector = Detector::new(&config, vb).map_err(|error| Error::input(&path, error.to_string()))?;
    Ok(LoadedDetector { detector, name, weights_sha256 })
}

fn folder(name: &str, path: &Path) -> Result<(String, DetectorConfig, Option<PathBuf>)> {
    let file = path.join("config.json");
    let text = std::fs::read(&file).map_err(lxmert_core::Error::io(&file))?;
    let config = serde_json::from_slice(&text).map_err(lxmert_core::Error::json(&file))?;
    Ok((name.to_string(), config, Some(path.join("model.safetensors"))))
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&block[..n]),
        }
    }
}
