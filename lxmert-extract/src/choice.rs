//! Which detector, with which weights.

use crate::Result;
use crate::detector::config::ChannelOrder;
use crate::detector::{Detector, DetectorConfig, grid_feats, visual_genome};
use crate::weights;
use candle_core::Device;
use lxmert_core::Error;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::files::{sha256, sha256_of};
use lxmert_core::nearby;
use lxmert_core::ops::Precision;
use std::path::{Path, PathBuf};

/// The small detector of scenes, which is part of this crate; [`train-detector`](crate::detector::training) makes it.
const SCENES_CONFIG: &str = include_str!("../assets/scenes-detector/config.json");
const SCENES_WEIGHTS: &[u8] = include_bytes!("../assets/scenes-detector/model.safetensors");

/// Its name in messages.
const SHIPPED: &str = "the detector of scenes";

/// The detectors that can be asked for by name, or a folder with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectorChoice {
    /// The small one that ships.
    Scenes,
    /// torchvision's Faster R-CNN R50-FPN for the 91 ids of COCO.
    Coco,
    /// Bottom-up attention's for Visual Genome, by Hugging Face's rules.
    VisualGenome,
    /// The same by the original's rules, for weights converted from Caffe.
    VisualGenomeCaffe,
    /// Grid features' ResNet-50 (Jiang et al. 2020), for cells alone.
    GridFeats,
    /// A folder with `config.json` and `model.safetensors`; of DINOv2 also a repository of the hub, `hf:owner/repo`.
    Folder(PathBuf),
}

impl DetectorChoice {
    /// What the detector is, before any weights are read.
    ///
    /// # Errors
    /// When its folder's configuration cannot be read.
    pub fn config(&self) -> Result<DetectorConfig> {
        Ok(match self {
            Self::Coco => DetectorConfig::coco(),
            Self::VisualGenome => visual_genome::hugging_face(),
            Self::VisualGenomeCaffe => visual_genome::caffe(),
            Self::GridFeats => grid_feats::r50(),
            Self::Scenes => DetectorConfig::from_json(SCENES_CONFIG, Path::new(SHIPPED))?,
            Self::Folder(folder) => DetectorConfig::from_json_file(folder.join("config.json"))?,
        })
    }

    /// How a store names it: what `--detector` takes, or the name of its folder.
    pub fn name(&self) -> String {
        match self {
            Self::Scenes => "scenes".into(),
            Self::Coco => "coco".into(),
            Self::VisualGenome => "visual-genome".into(),
            Self::VisualGenomeCaffe => "visual-genome-caffe".into(),
            Self::GridFeats => "grid-feats".into(),
            Self::Folder(path) => {
                path.file_name().map_or_else(|| "detector".into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

impl std::str::FromStr for DetectorChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "scenes" => Ok(Self::Scenes),
            "coco" => Ok(Self::Coco),
            "visual-genome" => Ok(Self::VisualGenome),
            "visual-genome-caffe" => Ok(Self::VisualGenomeCaffe),
            "grid-feats" => Ok(Self::GridFeats),
            repository if repository.starts_with("hf:") => Ok(Self::Folder(repository.into())),
            folder if Path::new(folder).join("config.json").is_file() => Ok(Self::Folder(folder.into())),
            other => {
                let missing = nearby::missing(Path::new(other)).map_or_else(String::new, |what| format!(": {what}"));
                Err(format!(
                    "not scenes, coco, visual-genome, visual-genome-caffe, grid-feats, or a folder with config.json and model.safetensors{missing}"
                ))
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
    /// Whether red and blue are swapped, see [`load`].
    pub swap_channels: bool,
}

/// A detector's weights: where they are, and which.
#[derive(Debug, Clone)]
pub struct FoundWeights {
    /// SHA-256 of the weight file, in hexadecimal.
    pub sha256: String,
    place: WeightsPlace,
}

#[derive(Debug, Clone)]
enum WeightsPlace {
    Shipped,
    Coco,
    VisualGenome,
    File(PathBuf),
}

/// Finds a detector's weights without reading them; `source` (a file or `hf:owner/repo/file[@revision]`) replaces its own. Those
/// that are published at a known address are not fetched yet.
///
/// # Errors
/// When the file cannot be read or `source` cannot be downloaded, or no program can fetch the weights.
pub fn find_weights(
    choice: &DetectorChoice,
    source: Option<&WeightSource>,
    show_progress: bool,
) -> Result<FoundWeights> {
    let (sha256, place) = match (source, choice) {
        (Some(source), _) => {
            let path = source.resolve(None, show_progress)?;
            (sha256(&path)?, WeightsPlace::File(path))
        }
        (None, DetectorChoice::Scenes) => (sha256_of(SCENES_WEIGHTS), WeightsPlace::Shipped),
        (None, DetectorChoice::Coco) => (weights::COCO_FILE.sha256.into(), WeightsPlace::Coco),
        (None, DetectorChoice::VisualGenome) => (weights::VISUAL_GENOME_FILE.sha256.into(), WeightsPlace::VisualGenome),
        (None, DetectorChoice::VisualGenomeCaffe) => {
            return Err(Error::Argument(
                "the weights of visual-genome-caffe cannot be fetched by a program: download \
                 bua-caffe-frcn-r101-k36.pth by the link in the README of MILVLG/bottom-up-attention.pytorch and add \
                 --weights FILE"
                    .into(),
            )
            .into());
        }
        (None, DetectorChoice::GridFeats) => {
            return Err(Error::Argument(
                "the weights of grid-feats are not on the hub: download R-50.pth by the link in the README of \
                 facebookresearch/grid-feats-vqa and add --weights FILE"
                    .into(),
            )
            .into());
        }
        (None, DetectorChoice::Folder(folder)) => {
            let path = folder.join("model.safetensors");
            (sha256(&path)?, WeightsPlace::File(path))
        }
    };
    Ok(FoundWeights { sha256, place })
}

/// Reads a detector whose products are of `precision`, with weights as [`find_weights`] finds them. `swap_channels` gives it
/// images with red and blue swapped, as Hugging Face's demo gives its detector those that it reads from files: the features
/// are worse, and for comparison only.
///
/// # Errors
/// When a file is missing, cannot be downloaded, or does not fit the configuration; as [`Detector::new`] too.
pub fn load(
    choice: &DetectorChoice,
    source: Option<&WeightSource>,
    precision: Precision,
    swap_channels: bool,
    device: &Device,
    show_progress: bool,
) -> Result<LoadedDetector> {
    let mut config = choice.config()?;
    if swap_channels {
        config.transform.format = match config.transform.format {
            ChannelOrder::Rgb => ChannelOrder::Bgr,
            ChannelOrder::Bgr => ChannelOrder::Rgb,
        };
    }
    let found = find_weights(choice, source, show_progress)?;
    let detector = match found.place {
        WeightsPlace::Shipped => {
            let tensors = candle_core::safetensors::load_buffer(SCENES_WEIGHTS, &Device::Cpu)?;
            weights::from_tensors(&config, Path::new(SHIPPED), tensors.into_iter().collect(), precision, device)
        }
        WeightsPlace::Coco => weights::load_coco(&config, precision, device, show_progress),
        WeightsPlace::VisualGenome => {
            let published: WeightSource = weights::VISUAL_GENOME_SOURCE.parse().map_err(Error::Argument)?;
            let path = published.resolve(Some(&weights::VISUAL_GENOME_FILE), show_progress)?;
            weights::load(&config, &path, precision, device)
        }
        WeightsPlace::File(path) => weights::load(&config, &path, precision, device),
    }?;
    Ok(LoadedDetector { detector, name: choice.name(), weights_sha256: found.sha256, precision, swap_channels })
}
