//! Which detector, with which weights.

use crate::Result;
use crate::detector::{Detector, DetectorConfig};
use crate::weights;
use candle_core::Device;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::files::sha256;
use lxmert_core::nearby;
use lxmert_core::ops::Precision;
use lxmert_core::workspace::Workspace;
use std::path::{Path, PathBuf};

/// The detectors that can be asked for by name, or a folder with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectorChoice {
    /// The small one in `data/scenes-detector`.
    Scenes,
    /// torchvision's Faster R-CNN R50-FPN for the 91 ids of COCO.
    Coco,
    /// A folder with `config.json` and `model.safetensors`; of DINOv2 also a repository of the hub, `hf:owner/repo`.
    Folder(PathBuf),
}

impl std::str::FromStr for DetectorChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "scenes" => Ok(Self::Scenes),
            "coco" => Ok(Self::Coco),
            repository if repository.starts_with("hf:") => Ok(Self::Folder(repository.into())),
            folder if Path::new(folder).join("config.json").is_file() => Ok(Self::Folder(folder.into())),
            other => {
                let missing = nearby::missing(Path::new(other)).map_or_else(String::new, |what| format!(": {what}"));
                Err(format!("not scenes, coco, or a folder with config.json and model.safetensors{missing}"))
            }
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
    /// What its products round their operands to.
    pub precision: Precision,
}

/// Reads a detector whose products are of `precision`; `source` (a file or `hf:owner/repo/file[@revision]`) replaces its own
/// weights.
///
/// # Errors
/// When a file is missing, cannot be downloaded, or does not fit the configuration; as [`Detector::new`] too.
pub fn load(
    choice: &DetectorChoice,
    source: Option<&WeightSource>,
    precision: Precision,
    device: &Device,
    show_progress: bool,
) -> Result<LoadedDetector> {
    let of_file = |name: String, config: &DetectorConfig, path: &Path| -> Result<LoadedDetector> {
        let detector = weights::load(config, path, precision, device)?;
        let weights_sha256 = sha256(path)?;
        Ok(LoadedDetector { detector, name, weights_sha256, precision })
    };
    let folder = match choice {
        DetectorChoice::Coco => {
            return match source {
                Some(source) => of_file("coco".into(), &DetectorConfig::coco(), &source.resolve(None, show_progress)?),
                None => Ok(LoadedDetector {
                    detector: weights::load_coco(precision, device, show_progress)?,
                    name: "coco".into(),
                    weights_sha256: weights::COCO_FILE.sha256.into(),
                    precision,
                }),
            };
        }
        DetectorChoice::Scenes => Workspace::locate()?.data("scenes-detector"),
        DetectorChoice::Folder(path) => path.clone(),
    };
    let config = DetectorConfig::from_json_file(folder.join("config.json"))?;
    let name = match choice {
        DetectorChoice::Scenes => "scenes".to_string(),
        _ => folder.file_name().map_or_else(|| "detector".into(), |name| name.to_string_lossy().into_owned()),
    };
    match source {
        Some(source) => of_file(name, &config, &source.resolve(None, show_progress)?),
        None => of_file(name, &config, &folder.join("model.safetensors")),
    }
}
