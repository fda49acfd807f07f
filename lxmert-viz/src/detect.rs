//! A photo's regions, by the detector whose features the checkpoint was trained on.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use image::RgbImage;
use lxmert_core::checkpoint::{ExpectedFile, FitOptions, WeightSource, fit, names, read_tensors};
use lxmert_core::features::Regions;
use lxmert_core::workspace::Workspace;
use lxmert_extract::detector::{Detector, DetectorConfig, expected_tensors};
use lxmert_extract::regions::{Selection, select};
use std::path::Path;

/// A detector by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DetectorChoice {
    /// The small one that ships, trained on the generated scenes
    Scenes,
    /// torchvision's Faster R-CNN ResNet-50 FPN, trained on COCO
    Coco,
}

/// torchvision's published COCO weights on the hub.
const COCO_WEIGHTS: &str = "hf:zeyuzy/vision_model-base_model/fasterrcnn_resnet50_fpn_coco.pth";

/// The published file; the sha256 begins as torchvision's own file name says.
const COCO_FILE: ExpectedFile<'static> =
    ExpectedFile { size: 167_502_836, sha256: "258fb6c638b15964ddcdd1ae0748c5eef1be9e732750120cc857feed3faac384" };

fn missing(path: &Path) -> Error {
    Error::Missing {
        what: "the scenes detector",
        path: path.to_path_buf(),
        advice: "it ships with the repository; restore data/scenes-detector, or train it with lxmert-extract".into(),
    }
}

/// A detector, ready to find regions.
pub struct Finder {
    name: &'static str,
    detector: Detector,
}

impl Finder {
    /// Opens a detector; `None` takes the one whose features have `feature_dim` numbers.
    ///
    /// # Errors
    /// When its weights cannot be found or read, or its features are not as long as the model needs.
    pub fn open(
        workspace: &Workspace,
        choice: Option<DetectorChoice>,
        weights: Option<&str>,
        feature_dim: usize,
        progress: bool,
        device: &Device,
    ) -> Result<Self> {
        let folder = workspace.data("scenes-detector");
        let scenes = match folder.join("config.json") {
            path if path.is_file() => Some(DetectorConfig::from_json_file(path)?),
            _ => None,
        };
        let width = |config: &DetectorConfig| config.roi_heads.representation_size;
        let fits_scenes = scenes.as_ref().is_some_and(|config| width(config) == feature_dim);
        let choice = choice.unwrap_or(if fits_scenes { DetectorChoice::Scenes } else { DetectorChoice::Coco });
        let (name, config) = match choice {
            DetectorChoice::Scenes => ("scenes", scenes.ok_or_else(|| missing(&folder.join("config.json")))?),
            DetectorChoice::Coco => ("coco", DetectorConfig::coco()),
        };
        if width(&config) != feature_dim {
            return Err(Error::Argument(format!(
                "the {name} detector gives {} numbers a region, but the checkpoint was trained on {feature_dim}; \
                 choose another --detector or --checkpoint",
                width(&config)
            )));
        }
        let path = match (weights, choice) {
            (Some(source), _) => source.parse::<WeightSource>().map_err(Error::Argument)?.resolve(None, progress)?,
            (None, DetectorChoice::Scenes) => folder.join("model.safetensors"),
            (None, DetectorChoice::Coco) => {
                COCO_WEIGHTS.parse::<WeightSource>().map_err(Error::Argument)?.resolve(Some(&COCO_FILE), progress)?
            }
        };
        if !path.is_file() {
            return Err(missing(&path));
        }
        let tensors = names::detector(&path, read_tensors(&path)?)?;
        let options = FitOptions { ignore: vec!["*.num_batches_tracked".into()], ..FitOptions::default() };
        let tensors = fit(&path, &expected_tensors(&config)?, tensors, &options)?;
        let tensors =
            tensors.into_iter().map(|(name, t)| Ok((name, t.to_dtype(DType::F32)?))).collect::<Result<_>>()?;
        let detector = Detector::new(&config, VarBuilder::from_tensors(tensors, DType::F32, device))?;
        Ok(Self { name, detector })
    }

    /// "scenes" or "coco".
    pub fn name(&self) -> &str {
        self.name
    }

    /// The names of its classes, by label id.
    pub fn label_names(&self) -> &[String] {
        &self.detector.config().label_names
    }

    /// The `count` regions of a photo.
    ///
    /// # Errors
    /// When a computation fails.
    pub fn regions(&self, photo: &RgbImage, count: usize) -> Result<Regions> {
        let (width, height) = (photo.width() as usize, photo.height() as usize);
        let interleaved = Tensor::from_vec(photo.as_raw().clone(), (height, width, 3), &Device::Cpu)?;
        let image = (interleaved.permute((2, 0, 1))?.to_dtype(DType::F32)? / 255.0)?;
        let selected = select(&self.detector, &image, count, Selection::default())?;
        Ok(Regions {
            image_width: photo.width(),
            image_height: photo.height(),
            feature_dim: selected.feature_dim,
            features: selected.features,
            boxes: selected.boxes_normalised,
            labels: selected.labels,
            scores: selected.scores,
            attributes: None,
        })
    }
}
