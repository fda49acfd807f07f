//! Which detector, with which weights.

use crate::Result;
use crate::detector::{Detector, DetectorConfig};
use crate::regions::patches::Dinov2Config;
use crate::weights;
use candle_core::Device;
use lxmert_core::checkpoint::{Place, WeightSource};
use lxmert_core::nearby;
use lxmert_core::ops::Precision;
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
    /// A folder with `config.json` and `model.safetensors`, or a repository of the hub (`hf:owner/repo[@revision]`).
    Folder(PathBuf),
}

impl std::str::FromStr for DetectorChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "scenes" => Ok(Self::Scenes),
            "coco" => Ok(Self::Coco),
            folder if folder.starts_with("hf:") => Ok(Self::Folder(folder.into())),
            folder if Path::new(folder).join("config.json").is_file() => Ok(Self::Folder(folder.into())),
            other => {
                let missing = nearby::missing(Path::new(other)).map_or_else(String::new, |what| format!(": {what}"));
                Err(format!(
                    "not scenes, coco, hf:owner/repo, or a folder with config.json and model.safetensors{missing}"
                ))
            }
        }
    }
}

/// A detector's name and where its files lie.
pub(crate) struct DetectorFiles {
    pub name: String,
    pub config: PathBuf,
    pub weights: PathBuf,
}

impl DetectorFiles {
    /// Those of `place`, a folder or `hf:owner/repo[@revision]`; `source` replaces the weights.
    ///
    /// # Errors
    /// When they cannot be found or downloaded.
    pub fn find(place: &Path, source: Option<&WeightSource>, show_progress: bool) -> Result<Self> {
        let (name, folder, weights) = match place.to_str().and_then(|text| text.strip_prefix("hf:")) {
            Some(repository) => {
                let found = Place::find(place)?;
                (repository.to_string(), found.folder, found.weights)
            }
            None => {
                let name = place.file_name().map_or_else(|| "detector".into(), |name| name.to_string_lossy());
                (name.into_owned(), place.to_path_buf(), place.join("model.safetensors"))
            }
        };
        let weights = source.map_or(Ok(weights), |source| source.resolve(None, show_progress))?;
        Ok(Self { name, config: folder.join("config.json"), weights })
    }

    /// SHA-256 of the weights, in hexadecimal.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn weights_sha256(&self) -> Result<String> {
        Ok(sha256(&self.weights).map_err(lxmert_core::Error::io(&self.weights))?)
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
    let files = match (choice, source) {
        (DetectorChoice::Coco, None) => {
            return Ok(LoadedDetector {
                detector: weights::load_coco(precision, device, show_progress)?,
                name: "coco".into(),
                weights_sha256: weights::COCO_FILE.sha256.into(),
                precision,
            });
        }
        (DetectorChoice::Coco, Some(source)) => {
            DetectorFiles { name: "coco".into(), config: PathBuf::new(), weights: source.resolve(None, show_progress)? }
        }
        (DetectorChoice::Scenes, source) => {
            let folder = Workspace::locate()?.data("scenes-detector");
            DetectorFiles { name: "scenes".into(), ..DetectorFiles::find(&folder, source, show_progress)? }
        }
        (DetectorChoice::Folder(place), source) => DetectorFiles::find(place, source, show_progress)?,
    };
    let config = match choice {
        DetectorChoice::Coco => DetectorConfig::coco(),
        _ if Dinov2Config::is_in(&files.config) => {
            let reason = format!("{} is a DINOv2 transformer, which has patches: give --regions 7x7", files.name);
            return Err(lxmert_core::Error::Argument(reason).into());
        }
        _ => DetectorConfig::from_json_file(&files.config)?,
    };
    let detector = weights::load(&config, &files.weights, precision, device)?;
    Ok(LoadedDetector { detector, weights_sha256: files.weights_sha256()?, name: files.name, precision })
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
