//! A photo's regions, by the source whose features a model was trained on. Regions found once are kept in the user's cache.

use crate::Result;
use crate::choice::DetectorChoice;
use crate::detector::DetectorConfig;
use crate::detector::selection::RegionCount;
use crate::images::DecodedImage;
use crate::region_cache::RegionCache;
use crate::regions::{self, PatchSource, RegionChoice, RegionSource, Selection, SourceOptions};
use candle_core::Device;
use lxmert_core::Error;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};
use lxmert_core::ops::Precision;
use lxmert_core::pretrained::Preprocessing;
use std::sync::OnceLock;

/// How a photo's regions are found.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FinderArgs {
    /// Which detector finds the photo's regions: scenes, coco, visual-genome, visual-genome-caffe, grid-feats, a folder with a
    /// detector or DINOv2, or hf:owner/repo [default: the one whose features the checkpoint was trained on]
    #[arg(long, value_name = "DETECTOR")]
    pub detector: Option<DetectorChoice>,
    /// The detector's weights: a safetensors, .pth, .bin or .pkl file, or `hf:owner/repo/file[@revision]` [default: its own]
    #[arg(long, value_name = "FILE|hf:…")]
    pub weights: Option<WeightSource>,
    /// Which regions: N (or N..M) found by the detector, grid:N, cells (cells:N), or 7x7 of DINOv2's patches [default: as the checkpoint
    /// was trained]
    #[arg(long, value_name = "N|N..M|grid:N|cells|NxN")]
    pub regions: Option<RegionChoice>,
    /// Find the regions again even if this photo was seen before, and do not keep them in the user's cache folder
    #[arg(long)]
    pub no_cache: bool,
}

/// A region source for the photos of a user. Its weights are read when the first photo is not in the cache.
#[derive(Debug)]
pub struct Finder {
    args: FinderArgs,
    choice: DetectorChoice,
    regions: RegionChoice,
    cache: Option<RegionCache>,
    source: OnceLock<Box<dyn RegionSource>>,
    show_progress: bool,
    device: Device,
}

/// The regions of a photo, and what holds for them: the detector, the names of labels and attributes.
#[derive(Debug, Clone)]
pub struct Found {
    /// The regions, best first where the source ranks them.
    pub regions: Regions,
    /// What they are.
    pub info: StoreInfo,
}

impl Finder {
    /// A finder for a model that takes `feature_dim` numbers a region and was trained as `preprocessing` says.
    ///
    /// # Errors
    /// When the features of the chosen detector are not as long as the model needs, no known detector's are, or its weights
    /// cannot be found.
    pub fn open(
        args: &FinderArgs,
        feature_dim: usize,
        preprocessing: &Preprocessing,
        show_progress: bool,
        device: &Device,
    ) -> Result<Self> {
        let regions = args.regions.unwrap_or_else(|| trained_on(preprocessing));
        let choice = match &args.detector {
            Some(choice) => choice.clone(),
            None => fitting(feature_dim, regions, &preprocessing.detector)?,
        };
        // Before any weights are fetched: would they fit at all?
        let gives = feature_dim_of(&choice, regions)?;
        if gives != feature_dim {
            let advice = match fitting(feature_dim, regions, &preprocessing.detector) {
                Ok(fitting) => format!("that is --detector {}", fitting.name()),
                Err(_) => "no known detector gives as many".into(),
            };
            return Err(Error::Argument(format!(
                "the detector gives {gives} numbers a region, but the checkpoint takes {feature_dim}; {advice}, or choose another --checkpoint"
            ))
            .into());
        }
        let (args, device) = (args.clone(), device.clone());
        let mut finder = Self { args, choice, regions, cache: None, source: OnceLock::new(), show_progress, device };
        if !finder.args.no_cache {
            finder.cache = RegionCache::of_user(&regions::identity(&finder.options(), show_progress)?);
        }
        Ok(finder)
    }

    /// What `--detector` takes, or the name of the detector's folder.
    pub fn name(&self) -> String {
        self.choice.name()
    }

    /// Reads the weights now, not when the first photo needs them.
    ///
    /// # Errors
    /// As [`Finder::find`].
    pub fn load(&self) -> Result<()> {
        self.source().map(drop)
    }

    fn options(&self) -> SourceOptions<'_> {
        SourceOptions {
            detector: &self.choice,
            weights: self.args.weights.as_ref(),
            regions: self.regions,
            select: Selection::default(),
            precision: Precision::F32,
            swap_channels: false,
        }
    }

    /// The regions of a photo; `name` is for messages.
    ///
    /// # Errors
    /// When the weights cannot be fetched or read, or a computation fails.
    pub fn find(&self, photo: &DecodedImage, name: &str) -> Result<Found> {
        let key = self.cache.as_ref().map(|cache| cache.key(photo));
        if let Some((cache, key)) = self.cache.as_ref().zip(key.as_deref())
            && let Some(found) = cache.get(key)
        {
            log::info!("{name}: regions from {}", cache.folder().display());
            return Ok(found);
        }
        let source = self.source()?;
        log::info!("{name}: finding regions ({})", self.choice.name());
        let (info, regions) = (source.info(StoreDtype::F32), source.find(photo)?);
        let found = Found { regions, info };
        if let Some((cache, key)) = self.cache.as_ref().zip(key.as_deref()) {
            cache.put(key, &found);
        }
        Ok(found)
    }

    fn source(&self) -> Result<&dyn RegionSource> {
        if let Some(source) = self.source.get() {
            return Ok(source.as_ref());
        }
        log::info!("reading the weights of {}", self.choice.name());
        let source = regions::open(&self.options(), &self.device, self.show_progress)?;
        Ok(self.source.get_or_init(|| source).as_ref())
    }
}

/// The regions that a checkpoint was trained on.
fn trained_on(preprocessing: &Preprocessing) -> RegionChoice {
    let select = &preprocessing.select;
    match select.strip_prefix("patches:").unwrap_or(select).parse() {
        Ok(choice @ (RegionChoice::Grid(_) | RegionChoice::Cells(_) | RegionChoice::Patches(..))) => choice,
        _ => {
            let max = preprocessing.regions.clamp(1, 1000);
            RegionChoice::Detections(RegionCount {
                min: preprocessing.min_regions.map_or(max, |min| min.clamp(1, max)),
                max,
            })
        }
    }
}

/// The detector that a checkpoint was trained on, or else the one whose features are as long.
fn fitting(feature_dim: usize, regions: RegionChoice, trained_on: &str) -> Result<DetectorChoice> {
    let published = [DetectorChoice::Scenes, DetectorChoice::Coco, DetectorChoice::VisualGenome];
    let by_name = match regions {
        // A store names a transformer of the hub by its repository.
        RegionChoice::Patches(..) if trained_on.split('/').count() == 2 => format!("hf:{trained_on}").parse().ok(),
        _ => trained_on.parse().ok().filter(|choice| !matches!(choice, DetectorChoice::Folder(_))),
    };
    let candidates = by_name.into_iter().chain(published);
    for choice in candidates {
        if feature_dim_of(&choice, regions).is_ok_and(|gives| gives == feature_dim) {
            return Ok(choice);
        }
    }
    let trained = if trained_on == "unknown" { String::new() } else { format!(" (it was trained on '{trained_on}')") };
    Err(Error::Argument(format!(
        "the checkpoint takes {feature_dim} numbers a region{trained}; no known detector gives as many; pass its own as --detector FOLDER"
    ))
    .into())
}

/// Numbers of a region.
fn feature_dim_of(choice: &DetectorChoice, regions: RegionChoice) -> Result<usize> {
    let of = |config: DetectorConfig| match regions {
        RegionChoice::Cells(_) => config.backbone.stage_widths.last().copied().unwrap_or_default(),
        _ => config.roi_heads.representation_size,
    };
    match (regions, choice) {
        (RegionChoice::Patches(..), _) => PatchSource::feature_dim(choice),
        _ => Ok(of(choice.config()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detector_that_fits_is_found_and_another_refused_before_its_weights_are_fetched() {
        let open = |detector, width| {
            let args = FinderArgs { detector, no_cache: true, ..FinderArgs::default() };
            Finder::open(&args, width, &Preprocessing::default(), false, &Device::Cpu)
        };
        assert_eq!(open(None, 256).unwrap().choice, DetectorChoice::Scenes);
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

    #[test]
    fn regions_are_those_that_the_checkpoint_was_trained_on() {
        let open = |detector: &str, select: &str, width| {
            let (detector, select) = (detector.into(), select.into());
            let preprocessing = Preprocessing { detector, select, regions: 16, ..Preprocessing::default() };
            let args = FinderArgs { no_cache: true, ..FinderArgs::default() };
            Finder::open(&args, width, &preprocessing, false, &Device::Cpu).unwrap()
        };
        let grid = open("scenes", "grid:4", 256);
        assert_eq!((grid.choice, grid.regions), (DetectorChoice::Scenes, RegionChoice::Grid(4)));
        // A map's cells are as wide as the body's last stage, not as the head.
        let width = DetectorChoice::Scenes.config().unwrap().backbone.stage_widths[3];
        let cells = open("scenes", "cells:4", width);
        assert_eq!((cells.choice, cells.regions), (DetectorChoice::Scenes, RegionChoice::Cells(4)));
        let caffe = open("visual-genome-caffe", "detections", 2048);
        assert_eq!(caffe.choice, DetectorChoice::VisualGenomeCaffe);
        assert_eq!(caffe.regions, RegionChoice::Detections(RegionCount::exactly(16)));
        let args = FinderArgs { no_cache: true, ..FinderArgs::default() };
        let some = Preprocessing { regions: 12, min_regions: Some(2), ..Preprocessing::default() };
        let scenes = Finder::open(&args, 256, &some, false, &Device::Cpu).unwrap();
        assert_eq!(scenes.regions, RegionChoice::Detections(RegionCount { min: 2, max: 12 }));
    }
}
