//! The sources of an image's regions: one trait, and one file per source.
//!
//! | `--regions` | source | file |
//! | --- | --- | --- |
//! | `36`, `10..100` | what the detector finds, best first | [`detections`] |
//! | `grid:8` | 8 × 8 fixed boxes through the detector's heads | [`grid`] |
//! | `cells`, `cells:8` | means of the last map's cells, 8 × 8 at most | [`cells`] |
//! | `7x7` | patch states of a DINOv2 transformer, 7 × 7 means of them | [`patches`] |
//!
//! A source makes an image's bytes into its network's input ([`RegionSource::input`], on the decoding threads of
//! [`pipeline`](crate::pipeline)), and the input into regions ([`RegionSource::regions`]). A new source is a file here, a
//! [`RegionChoice`] and an arm of [`open`].

pub mod cells;
pub mod detections;
pub mod grid;
pub mod patches;

pub use cells::CellSource;
pub use detections::{DetectionSource, Selection};
pub use grid::GridSource;
pub use patches::{Dinov2Config, PatchSource};

use crate::Result;
use crate::choice::{self, DetectorChoice, LoadedDetector};
use crate::detector::Detector;
use crate::detector::detect::Candidate;
use crate::detector::selection::RegionCount;
use crate::detector::transform::NetworkInput;
use crate::images::DecodedImage;
use candle_core::{Device, Tensor};
use lxmert_core::Error;
use lxmert_core::boxes::normalise;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};
use lxmert_core::ops::Precision;
use std::collections::BTreeMap;

/// A source of an image's regions.
pub trait RegionSource: std::fmt::Debug + Send + Sync {
    /// The metadata of its regions, the same for every image, as a feature store keeps it.
    fn info(&self, dtype: StoreDtype) -> StoreInfo;

    /// The network's input for an image.
    ///
    /// # Errors
    /// When the image has no pixels.
    fn input(&self, image: &DecodedImage) -> Result<NetworkInput>;

    /// The regions of an image, best first where the source ranks them.
    ///
    /// # Errors
    /// When the network cannot take this image.
    fn regions(&self, input: NetworkInput) -> Result<Regions>;

    /// Both steps at once.
    ///
    /// # Errors
    /// As those.
    fn find(&self, image: &DecodedImage) -> Result<Regions> {
        self.regions(self.input(image)?)
    }
}

/// Which regions of an image are asked for (`--regions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionChoice {
    /// This many detections.
    Detections(RegionCount),
    /// This many fixed boxes in each direction.
    Grid(usize),
    /// At most this many means of cells in each direction.
    Cells(usize),
    /// At most this many means of patches down and across.
    Patches(usize, usize),
}

impl std::str::FromStr for RegionChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let within = |number: &str, most: usize| number.parse().ok().filter(|n| (1..=most).contains(n));
        let parsed = match text.split_once(':') {
            Some(("grid", side)) => within(side, 32).map(Self::Grid),
            Some(("cells", side)) => within(side, 32).map(Self::Cells),
            None if text == "cells" => Some(Self::Cells(8)),
            None if text.contains('x') => {
                let sides = text.split_once('x').and_then(|(down, across)| within(down, 32).zip(within(across, 32)));
                sides.map(|(down, across)| Self::Patches(down, across))
            }
            None => text.parse().ok().map(Self::Detections),
            Some(_) => None,
        };
        parsed.ok_or_else(|| {
            "not a number from 1 to 1000 or a range of such (10..100), or cells, or grid:N, cells:N or NxN with N from 1 to 32"
                .into()
        })
    }
}

/// What [`open`] needs to know.
#[derive(Debug, Clone)]
pub struct SourceOptions<'a> {
    /// The detector.
    pub detector: &'a DetectorChoice,
    /// Weights in place of its own.
    pub weights: Option<&'a WeightSource>,
    /// Which regions.
    pub regions: RegionChoice,
    /// How detections are chosen.
    pub select: Selection,
    /// The precision to which the detector's products round their operands.
    pub precision: Precision,
    /// Whether the detector gets red for blue, see [`choice::load`].
    pub swap_channels: bool,
}

/// Opens a region source.
///
/// # Errors
/// When the options contradict each other; as [`choice::load`] too.
pub fn open(options: &SourceOptions<'_>, device: &Device, show_progress: bool) -> Result<Box<dyn RegionSource>> {
    if options.select != Selection::Detections && !matches!(options.regions, RegionChoice::Detections(_)) {
        return Err(Error::Argument("--select chooses among detections: give --regions a number".into()).into());
    }
    if let DetectorChoice::Folder(folder) = options.detector
        && !matches!(options.regions, RegionChoice::Patches(..))
        && (folder.to_string_lossy().starts_with("hf:") || Dinov2Config::is_in(&folder.join("config.json")))
    {
        let reason = format!("{} has patches, not detections: give --regions 7x7", folder.display());
        return Err(Error::Argument(reason).into());
    }
    if *options.detector == DetectorChoice::GridFeats && !matches!(options.regions, RegionChoice::Cells(_)) {
        let reason = "grid-feats gives cells of its last map, not detections: pass --regions cells:8, or another number up to 32";
        return Err(Error::Argument(reason.into()).into());
    }
    let SourceOptions { detector, weights, precision, swap_channels, .. } = *options;
    let load = || choice::load(detector, weights, precision, swap_channels, device, show_progress);
    Ok(match options.regions {
        RegionChoice::Detections(count) => {
            Box::new(DetectionSource { loaded: load()?, count, selection: options.select })
        }
        RegionChoice::Grid(side) => Box::new(GridSource { loaded: load()?, side }),
        RegionChoice::Cells(side) => Box::new(CellSource { loaded: load()?, side }),
        RegionChoice::Patches(down, across) => {
            Box::new(PatchSource::open(options, (down, across), device, show_progress)?)
        }
    })
}

/// Identifies a region source, without reading published weights: the program's
/// version, the options, the network's configuration and the hash of its weights.
///
/// # Errors
/// When a configuration or weights cannot be found.
pub fn identity(options: &SourceOptions<'_>, show_progress: bool) -> Result<String> {
    let SourceOptions { detector, weights, regions, select, precision, swap_channels } = options;
    let (network, sha256) = match regions {
        RegionChoice::Patches(..) => PatchSource::identity(options, show_progress)?,
        _ => {
            let config = serde_json::to_string(&detector.config()?).map_err(Error::json("config.json"))?;
            (config, choice::find_weights(detector, *weights, show_progress)?.sha256)
        }
    };
    let version = env!("CARGO_PKG_VERSION");
    let rule = detections::RULE;
    Ok(format!("{version} {rule} {regions:?} {select:?} {precision} {swap_channels} {network} {sha256}"))
}

/// What a store says of regions that come from a detector: `select` names the rule that chose them.
fn detector_info(loaded: &LoadedDetector, select: String, regions: usize, dtype: StoreDtype) -> StoreInfo {
    let config = loaded.detector.config();
    let attribute = config.attributes.first();
    let mut settings =
        BTreeMap::from([("select".to_string(), select), ("weights sha256".to_string(), loaded.weights_sha256.clone())]);
    if loaded.precision != Precision::F32 {
        settings.insert("precision".into(), loaded.precision.to_string());
    }
    if loaded.swap_channels {
        settings.insert("swap channels".into(), "true".into());
    }
    settings.extend(attribute.map(|attribute| ("attribute".into(), attribute.name.clone())));
    StoreInfo {
        detector: loaded.name.clone(),
        settings,
        regions,
        feature_dim: config.roi_heads.representation_size,
        dtype,
        label_names: config.region_label_names().to_vec(),
        attribute_names: attribute.map_or_else(Vec::new, |attribute| attribute.classes.clone()),
    }
}

/// The chosen boxes of a detector (in pixels of the resized image) as regions, each with its row of `features` and, from
/// detectors that have attributes, the most probable value of the first.
fn regions_of(
    detector: &Detector,
    input: &NetworkInput,
    chosen: &[Candidate],
    features: &Tensor,
) -> lxmert_core::Result<Regions> {
    let (height, width) = input.frame;
    let first_label = u32::from(detector.config().has_labels_without_background());
    Ok(Regions {
        image_width: input.image_size.1 as u32,
        image_height: input.image_size.0 as u32,
        feature_dim: features.dim(1)?,
        boxes: chosen.iter().map(|c| normalise(&c.box_xyxy, width, height).map(|v| v.clamp(0.0, 1.0))).collect(),
        labels: chosen.iter().map(|c| c.label - first_label).collect(),
        scores: chosen.iter().map(|c| c.score).collect(),
        attributes: detector.first_attribute(features)?,
        features: features.flatten_all()?.to_vec1::<f32>()?,
    })
}
