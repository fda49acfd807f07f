//! A photo's regions, by the detector whose features a model was trained on.

use crate::Result;
use crate::choice::DetectorChoice;
use crate::detector::DetectorConfig;
use crate::detector::selection::RegionCount;
use crate::images::DecodedImage;
use crate::regions::{self, RegionChoice, RegionSource, Selection, SourceOptions};
use candle_core::Device;
use lxmert_core::Error;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};
use lxmert_core::ops::Precision;
use lxmert_core::workspace::Workspace;

/// A region source together with what it says of its regions.
#[derive(Debug)]
pub struct Finder {
    info: StoreInfo,
    source: Box<dyn RegionSource>,
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
        let scenes = workspace.data("scenes-detector").join("config.json");
        let gives_it = |config: &DetectorConfig| width(config) == feature_dim;
        let fitting = if DetectorConfig::from_json_file(&scenes).is_ok_and(|config| gives_it(&config)) {
            Ok(DetectorChoice::Scenes)
        } else {
            let published = [DetectorChoice::Coco, DetectorChoice::VisualGenome];
            let fitting = published.into_iter().find(|choice| choice.config().is_ok_and(|config| gives_it(&config)));
            fitting.ok_or("no detector that is known gives as many; name its own by --detector FOLDER")
        };
        // Before any weights are fetched: would they fit at all?
        let chosen = match &choice {
            None => None,
            Some(DetectorChoice::Scenes) => Some(DetectorConfig::from_json_file(&scenes)?),
            Some(choice) => Some(choice.config()?),
        };
        let choice = match (choice, &fitting) {
            (Some(choice), _) if chosen.as_ref().is_some_and(gives_it) => choice,
            (None, Ok(fitting)) => fitting.clone(),
            (given, fitting) => {
                let gives = chosen.map_or_else(String::new, |config| {
                    format!("the detector gives {} numbers a region, but ", width(&config))
                });
                let advice = match fitting {
                    Ok(fitting) => format!("that is --detector {}", fitting.name()),
                    Err(advice) => (*advice).to_string(),
                };
                let other = if given.is_some() { ", or choose another --checkpoint" } else { "" };
                return Err(
                    Error::Argument(format!("{gives}the checkpoint takes {feature_dim}; {advice}{other}")).into()
                );
            }
        };
        let options = SourceOptions {
            detector: &choice,
            weights,
            regions: RegionChoice::Detections(RegionCount::exactly(count)),
            select: Selection::default(),
            precision: Precision::F32,
            swap_channels: false,
        };
        let source = regions::open(&options, device, progress)?;
        Ok(Self { info: source.info(StoreDtype::F32), source })
    }

    /// What `--detector` takes, or the name of the detector's folder.
    pub fn name(&self) -> &str {
        &self.info.detector
    }

    /// The names of its classes, by label id.
    pub fn label_names(&self) -> &[String] {
        &self.info.label_names
    }

    /// The names of its attributes, by label id; none where it names none.
    pub fn attribute_names(&self) -> &[String] {
        &self.info.attribute_names
    }

    /// The regions of a photo.
    ///
    /// # Errors
    /// When a computation fails.
    pub fn regions(&self, photo: &DecodedImage) -> Result<Regions> {
        self.source.find(photo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_detector_that_fits_is_found_and_another_refused_before_its_weights_are_fetched() {
        let workspace = Workspace::at(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let open = |choice, width| Finder::open(&workspace, choice, None, (width, 12), false, &Device::Cpu);
        assert_eq!(open(None, 256).unwrap().name(), "scenes");
        let error = |choice, width| open(choice, width).unwrap_err().to_string();
        assert_eq!(
            error(Some(DetectorChoice::Coco), 256),
            "the detector gives 1024 numbers a region, but the checkpoint takes 256; that is --detector scenes, or choose another --checkpoint"
        );
        assert!(error(Some(DetectorChoice::Scenes), 1024).contains("that is --detector coco"));
        assert!(error(Some(DetectorChoice::Coco), 2048).contains("that is --detector visual-genome"));
        assert!(error(Some(DetectorChoice::VisualGenome), 1024).contains("that is --detector coco"));
        assert!(error(None, 77).contains("--detector FOLDER"));
    }
}
