//! A photo's regions, by the detector whose features a model was trained on.

use crate::Result;
use crate::choice::{self, DetectorChoice};
use crate::detector::DetectorConfig;
use crate::images::DecodedImage;
use crate::pipeline::{DetectorRegions, RegionExtractor as _};
use crate::regions::Selection;
use candle_core::Device;
use lxmert_core::Error;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::features::Regions;
use lxmert_core::workspace::Workspace;

/// A detector, ready to find regions.
#[derive(Debug)]
pub struct Finder {
    name: String,
    regions: DetectorRegions,
}

impl Finder {
    /// Opens a detector that gives `count` regions a photo; without a `choice`, the one whose features
    /// have `feature_dim` numbers.
    ///
    /// # Errors
    /// When its weights cannot be found or read, or its features are not as long as the model needs.
    pub fn open(
        workspace: &Workspace,
        choice: Option<DetectorChoice>,
        weights: Option<&WeightSource>,
        (feature_dim, count): (usize, usize),
        progress: bool,
        device: &Device,
    ) -> Result<Self> {
        let width = |config: &DetectorConfig| config.roi_heads.representation_size;
        let choice = match choice {
            Some(choice) => choice,
            None => {
                let own = DetectorConfig::from_json_file(workspace.data("scenes-detector").join("config.json"));
                if own.is_ok_and(|config| width(&config) == feature_dim) {
                    DetectorChoice::Scenes
                } else if width(&DetectorConfig::coco()) == feature_dim {
                    DetectorChoice::Coco
                } else {
                    return Err(Error::Argument(format!(
                        "no detector here gives {feature_dim} numbers a region, as the checkpoint takes them; name one that does by --detector FOLDER{}",
                        if feature_dim == 2048 { " (2048 is bottom-up attention's, whose features come in by `lxmert-extract import bottom-up`)" } else { "" }
                    ))
                    .into());
                }
            }
        };
        let loaded = choice::load(&choice, weights, device, progress)?;
        let found = width(loaded.detector.config());
        if found != feature_dim {
            return Err(Error::Argument(format!(
                "the {} detector gives {found} numbers a region, but the checkpoint was trained on {feature_dim}; \
                 choose another --detector or --checkpoint",
                loaded.name
            ))
            .into());
        }
        let regions = DetectorRegions { detector: loaded.detector, count, selection: Selection::default() };
        Ok(Self { name: loaded.name, regions })
    }

    /// "scenes", "coco", or the name of the detector's folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of its classes, by label id.
    pub fn label_names(&self) -> &[String] {
        &self.regions.detector.config().label_names
    }

    /// The regions of a photo.
    ///
    /// # Errors
    /// When a computation fails.
    pub fn regions(&self, photo: &DecodedImage) -> Result<Regions> {
        self.regions.regions(photo)
    }
}
