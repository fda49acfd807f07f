//! A photo's regions, by the detector whose features the checkpoint was trained on.

use crate::{Error, Result};
use candle_core::Device;
use image::RgbImage;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::features::Regions;
use lxmert_core::workspace::Workspace;
use lxmert_extract::choice::{self, DetectorChoice};
use lxmert_extract::detector::DetectorConfig;
use lxmert_extract::images::DecodedImage;
use lxmert_extract::pipeline::{DetectorRegions, RegionExtractor as _};
use lxmert_extract::regions::Selection;

/// A detector, ready to find regions.
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
                let fits = own.is_ok_and(|config| width(&config) == feature_dim);
                if fits { DetectorChoice::Scenes } else { DetectorChoice::Coco }
            }
        };
        let loaded = choice::load(&choice, weights, device, progress)?;
        let found = width(loaded.detector.config());
        if found != feature_dim {
            return Err(Error::Argument(format!(
                "the {} detector gives {found} numbers a region, but the checkpoint was trained on {feature_dim}; \
                 choose another --detector or --checkpoint",
                loaded.name
            )));
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
    pub fn regions(&self, photo: &RgbImage) -> Result<Regions> {
        let (width, height) = photo.dimensions();
        Ok(self.regions.regions(&DecodedImage { width, height, rgb: photo.as_raw().clone() })?)
    }
}
