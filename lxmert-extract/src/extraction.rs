//! A whole extraction: which images, which regions, which store.

use crate::Result;
use crate::choice::DetectorChoice;
use crate::detector::selection::RegionCount;
use crate::inputs::{find_captioned, find_images};
use crate::parts::PartChoice;
use crate::pipeline::{ExtractSummary, PipelineOptions, extract};
use crate::regions::{self, RegionChoice, Selection, SourceOptions};
use crate::scenes::{self, ScenesConfig};
use candle_core::Device;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::cli::prepare_precision;
use lxmert_core::features::{StoreDtype, StoreWriter};
use lxmert_core::ops::Precision;
use lxmert_core::workspace::Workspace;
use std::path::{Path, PathBuf};

/// What to extract and how; without images, `data/scenes`, which is drawn if it does not exist.
#[derive(Debug, Clone, clap::Args)]
pub struct Extraction {
    /// Folder, list file or caption file of the images, or a single image
    #[arg(long, value_name = "PATH", conflicts_with = "flickr30k")]
    pub images: Option<PathBuf>,
    /// Only the images that this caption file names
    #[arg(long, value_name = "FILE", conflicts_with = "flickr30k")]
    pub captions: Option<PathBuf>,
    /// Folder with Flickr30k's results.csv and images, extracted with the coco detector
    #[arg(long, value_name = "DIR")]
    pub flickr30k: Option<PathBuf>,
    /// Folder of the store [default: data/features/<name of the images' folder>]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// scenes, coco, visual-genome (LXMERT's own features, Hugging Face's rules), visual-genome-caffe (the original's
    /// rules), grid-feats (cells of grid features' ResNet-50), or a folder with config.json and model.safetensors, or
    /// hf:owner/repo; of a detector or of DINOv2
    /// [default: scenes without --images, otherwise coco]
    #[arg(long)]
    pub detector: Option<DetectorChoice>,
    /// Weights in place of the detector's own: a safetensors, .pth, .bin or .pkl file, or `hf:owner/repo/file[@revision]`
    #[arg(long, value_name = "FILE|hf:…")]
    pub weights: Option<WeightSource>,
    /// Regions per image: N (or between N and M: N..M) that the detector finds, grid:N for N × N fixed boxes, cells
    /// (cells:N) for means of the last map's cells, at most 8 × 8 (N × N), or 7x7 for means of DINOv2's patches
    /// [default: 1..12 without --images, otherwise 36]
    #[arg(long, value_name = "N|N..M|grid:N|cells|NxN")]
    pub regions: Option<RegionChoice>,
    /// Swap red and blue for the detector, as Hugging Face's demo does with photos from files; only for comparison with
    /// its numbers
    #[arg(long)]
    pub swap_channels: bool,
    /// How to choose the N regions among the detector's boxes
    #[arg(long, value_enum, default_value_t = Selection::Detections)]
    pub select: Selection,
    /// Extract only the K-th of N blocks of the images, into a folder of its own in the store's: several processes or machines
    /// share the work, then `lxmert-extract merge STORE` makes one store of the parts. auto: as the Slurm array, the MPI launcher or
    /// the Kubernetes indexed job says
    #[arg(long, value_name = "K/N|auto")]
    pub part: Option<PartChoice>,
    /// Number type of the stored features
    #[arg(long, value_enum, default_value_t = StoreDtype::F32)]
    pub dtype: StoreDtype,
    /// Round weights and activations to bf16 in the detector's products: features within 2 % of f32, in two thirds of
    /// the time on a CPU with AVX512-BF16. With tf32, all products of a GPU
    #[arg(long, default_value_t = Precision::F32, value_name = "f32|tf32|bf16")]
    pub precision: Precision,
    /// Threads that decode images ahead of the network
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub decoders: u16,
}

impl Default for Extraction {
    fn default() -> Self {
        Self {
            images: None,
            captions: None,
            flickr30k: None,
            output: None,
            detector: None,
            weights: None,
            regions: None,
            swap_channels: false,
            select: Selection::Detections,
            part: None,
            dtype: StoreDtype::F32,
            precision: Precision::F32,
            decoders: 2,
        }
    }
}

impl Extraction {
    /// Runs it: adds every image that the store does not have yet. `seed` is for scenes that are drawn now.
    ///
    /// # Errors
    /// Returns an error if no image is found, the detector cannot be loaded, the folder holds another store, or as
    /// [`extract`].
    pub fn run(&self, seed: u64, device: &Device, show_progress: bool) -> Result<ExtractSummary> {
        let bare = self.images.is_none() && self.captions.is_none() && self.flickr30k.is_none();
        let (list, folder, name) = match (&self.flickr30k, &self.captions, &self.images) {
            (Some(flickr), ..) => (flickr.clone(), None, "flickr30k".into()),
            (None, Some(captions), images) => {
                (captions.clone(), images.as_deref(), store_name(images.as_ref().unwrap_or(captions)))
            }
            (None, None, Some(images)) => (images.clone(), None, store_name(images)),
            (None, None, None) => (scene_images(seed, show_progress)?, None, "scenes".into()),
        };
        let images = match &self.flickr30k {
            Some(folder) => find_captioned(folder)?,
            None => find_images(&list, folder)?,
        };
        let output = match &self.output {
            Some(output) => output.clone(),
            None => Workspace::locate().features(&name),
        };
        let part = self.part.map(PartChoice::part).transpose()?;
        prepare_precision(self.precision, device)?;
        let options = SourceOptions {
            detector: self.detector.as_ref().unwrap_or(if bare {
                &DetectorChoice::Scenes
            } else {
                &DetectorChoice::Coco
            }),
            weights: self.weights.as_ref(),
            regions: self.regions.unwrap_or(RegionChoice::Detections(match bare {
                // Only what stands out: attention would rest on plain ground (docs/recipes.md).
                true => RegionCount { min: 1, max: 12 },
                false => RegionCount::exactly(36),
            })),
            select: self.select,
            precision: self.precision,
            swap_channels: self.swap_channels,
        };
        let source = regions::open(&options, device, show_progress)?;
        let (output, images) = match part {
            None => (output, images.as_slice()),
            Some(part) => {
                let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
                (part.begin(&output, &names)?, &images[part.block(images.len())])
            }
        };
        let store = StoreWriter::open(&output, source.info(self.dtype))?;
        let options = PipelineOptions { decoders: usize::from(self.decoders), progress: show_progress };
        extract(images, source.as_ref(), store, &options)
    }
}

/// The images of `data/scenes`, which are drawn now if they do not exist.
fn scene_images(seed: u64, show_progress: bool) -> Result<PathBuf> {
    let scenes = Workspace::locate().data("scenes");
    if !scenes.exists() {
        let summary =
            scenes::generate(&scenes, &ScenesConfig { seed, ..ScenesConfig::default() }, false, show_progress)?;
        log::info!("{}: {summary}", scenes.display());
    }
    Ok(scenes.join("images"))
}

/// A store is named after the images' folder, or after its parent if the folder is just called "images".
fn store_name(source: &Path) -> String {
    let source = source.canonicalize().unwrap_or_else(|_| source.to_path_buf());
    let name = |path: &Path| path.file_stem().map(|name| name.to_string_lossy().into_owned());
    match name(&source) {
        Some(own) if own.eq_ignore_ascii_case("images") => source.parent().and_then(name).unwrap_or(own),
        Some(own) => own,
        None => "images".into(),
    }
}
