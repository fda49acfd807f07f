//! The feature store: what a detector saw in each image of a data set, on disk.
//!
//! Training reads regions in random order, many times; extraction writes them once, for hours,
//! and may be killed at any moment. The store serves both: readers take single rows from finished
//! shards, and a journal holds the images that are not yet in a shard.
//!
//! # The format, version 1
//!
//! A store is a folder:
//!
//! | file | what |
//! | --- | --- |
//! | `index.json` | what the store holds and how it was made; names its shards |
//! | `shard-00000.safetensors`, … | the regions of some images, one row an image |
//! | `names.safetensors` | all images' names, to look up; made from the shards, absent while they change |
//! | `pending.journal` | images not yet in a shard; present only while a writer runs or after it was killed |
//! | `pending.writer` | the process that writes, or wrote |
//! | `part-00001-of-00004/`, … | parts that have not been merged yet; there is no `index.json` then |
//!
//! `index.json` is one object: `format` (`"lxmert-regions"`), `version` (1), `detector` (a name), `settings` (an object
//! of strings: everything that shaped the regions), `regions` (the most per image, R), `feature_dim` (D), `dtype` (of
//! the features: `"f32"`, `"f16"` or `"bf16"`), `label_names` (an array; a label is an index into it),
//! `attribute_names` (likewise; empty if the store has no attributes), `images` (total number) and `shards`: an array
//! of objects with `file` and `images`, in order. An image's number in the store is its row, counted through the shards
//! in that order.
//!
//! A shard is a safetensors file (a little-endian `u64` header length, a JSON header, the tensors'
//! bytes). With I images in it:
//!
//! | tensor | dtype | shape | what |
//! | --- | --- | --- | --- |
//! | `features` | F32, F16 or BF16 | `[I, R, D]` | the regions' features |
//! | `boxes` | F32 | `[I, R, 4]` | x0 y0 x1 y1, divided by the image's width and height |
//! | `scores` | F32 | `[I, R]` | the detector's confidence, 0..1 |
//! | `labels` | U32 | `[I, R]` | index into `label_names` |
//! | `attribute_scores` | F32 | `[I, R]` | only in a store with attributes |
//! | `attribute_labels` | U32 | `[I, R]` | only in a store with attributes |
//! | `num_regions` | U32 | `[I]` | how many of the R rows are real; the others are zeros |
//! | `image_sizes` | U32 | `[I, 2]` | width and height in pixels |
//! | `names` | U8 | `[bytes]` | the images' names in UTF-8, joined by `\n` |
//!
//! The shard's metadata is `{"format": "lxmert-regions", "version": "1"}`. Tensors lie in the file in the table's
//! order; `features` starts at a multiple of 8 bytes. An image's name is its path below the extracted folder, with `/`;
//! names are unique within a store.
//!
//! `names.safetensors` makes opening a store cost the same for any number of images: readers map it and search it there. With S shards
//! and I images:
//!
//! | tensor | dtype | shape | what |
//! | --- | --- | --- | --- |
//! | `shard_bytes` | U64 | `[S]` | how long each shard's file is |
//! | `ends` | U64 | `[I]` | where each image's name ends in `names` |
//! | `order` | U32 | `[I]` | the images in the order of their names: by file name without extension, then file name, then the whole name (each in Unicode's form NFC), then as they are spelt |
//! | `names` | U8 | `[bytes]` | the images' names in UTF-8, joined by `\n` |
//!
//! A reader makes it anew in memory if it is absent, which takes a second for a million images. If it does not fit the shards,
//! reading from them fails.
//!
//! Python reads it with the safetensors package alone (`bf16` features need `framework="pt"`, since NumPy has no such
//! type):
//!
//! ```python
//! import json; from safetensors import safe_open
//! store = "data/features/scenes"
//! for shard in json.load(open(f"{store}/index.json"))["shards"]:
//!     with safe_open(f"{store}/{shard['file']}", framework="np") as f:
//!         names = bytes(f.get_tensor("names")).decode().split("\n")
//!         boxes, first = f.get_tensor("boxes"), f.get_slice("features")[0]  # [I, R, 4], [R, D]
//! with safe_open(f"{store}/names.safetensors", framework="np") as f:
//!     number = {name: i for i, name in enumerate(bytes(f.get_tensor("names")).decode().split("\n"))}
//! ```
//!
//! An open store keeps about 200 bytes a shard (a thousand shards are a million images of 36 regions) and nothing an image; the pages
//! of the table that were looked at are the system's to drop. No more than 128 shards are open files at a time.
//!
//! # What a kill does
//!
//! Every image is appended to `pending.journal` with its length and SHA-256 as soon as it is pushed. When the journal
//! holds a shard's worth, the writer writes the shard to a temporary file, syncs and renames it, does the same with
//! `index.json`, and empties the journal. A writer that reopens the folder adds a complete shard that the index does
//! not name yet, drops a torn last record and records that a shard already holds, and continues. So a killed writer
//! loses only the image it was appending, and no image is stored twice.
//!
//! A writer locks the journal, so a second writer in the same folder is refused and told which process the first is. A
//! writer also refuses a folder whose `index.json` differs in the detector, a setting, a size or the names, and reports
//! each difference.
//!
//! # Parts
//!
//! Several processes, on any machines that share the folder, can extract one set of images in parts ([`Part`]), each
//! into its own store within the folder. [`Merge`] makes one store of the parts by renaming their shards.

mod folders;
mod index;
mod journal;
mod names;
mod parts;
mod reader;
mod shard;
mod writer;

pub use folders::StoreFolders;
pub use index::{ShardEntry, StoreInfo};
pub use parts::{Merge, Part, unmerged};
pub use reader::FeatureStore;
pub use writer::{StoreSummary, StoreWriter};

use crate::boxes::BoxXyxy;
use serde::{Deserialize, Serialize};

/// How the features' numbers are stored. Boxes and scores are always `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum StoreDtype {
    /// 4 bytes a number, exact.
    #[default]
    F32,
    /// 2 bytes, relative error up to 2⁻¹¹, largest number 65,504.
    F16,
    /// 2 bytes, relative error up to 2⁻⁸, range of `f32`.
    Bf16,
}

impl StoreDtype {
    /// Bytes a number takes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name in `index.json` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

impl std::fmt::Display for StoreDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The regions of one image, best first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Regions {
    /// The image's width in pixels, as a person sees it (EXIF rotation applied).
    pub image_width: u32,
    /// The image's height in pixels.
    pub image_height: u32,
    /// Length of a region's feature.
    pub feature_dim: usize,
    /// `[num_regions, feature_dim]`, row by row.
    pub features: Vec<f32>,
    /// Per region x0 y0 x1 y1, divided by the image's width and height.
    pub boxes: Vec<BoxXyxy>,
    /// Per region its class, an index into the store's label names.
    pub labels: Vec<u32>,
    /// Per region the detector's confidence, 0..1.
    pub scores: Vec<f32>,
    /// Per region its attribute ("red", "wooden"), from detectors that name one.
    pub attributes: Option<Attributes>,
}

/// Per region an attribute and the detector's confidence in it (bottom-up attention has them).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attributes {
    /// Index into the store's attribute names.
    pub labels: Vec<u32>,
    /// Confidence, 0..1.
    pub scores: Vec<f32>,
}

impl Regions {
    /// How many regions there are.
    pub fn num_regions(&self) -> usize {
        self.boxes.len()
    }

    /// Why these regions contradict themselves or `info`, if they do.
    pub(crate) fn fault(&self, info: &StoreInfo) -> Option<String> {
        let n = self.num_regions();
        if self.image_width == 0 || self.image_height == 0 {
            return Some(format!("image size {} × {}", self.image_width, self.image_height));
        }
        if n > info.regions {
            return Some(format!("{n} regions, more than the store's {}", info.regions));
        }
        if self.feature_dim != info.feature_dim || self.features.len() != n * info.feature_dim {
            return Some(format!(
                "{} feature values of dimension {} for {n} regions of dimension {}",
                self.features.len(),
                self.feature_dim,
                info.feature_dim
            ));
        }
        let attributes = self.attributes.as_ref();
        if attributes.is_some() != info.has_attributes() {
            let there =
                if info.has_attributes() { "lack the attributes" } else { "have attributes, unlike the others" };
            return Some(format!("the regions {there} of this store"));
        }
        for (what, names, labels, scores) in [("label", &info.label_names, &self.labels, &self.scores)]
            .into_iter()
            .chain(attributes.map(|a| ("attribute", &info.attribute_names, &a.labels, &a.scores)))
        {
            if labels.len() != n || scores.len() != n {
                return Some(format!("{} {what}s and {} {what} scores for {n} regions", labels.len(), scores.len()));
            }
            if let Some(label) = labels.iter().find(|&&label| label as usize >= names.len()) {
                return Some(format!("{what} {label}, but only {} {what} names", names.len()));
            }
            if let Some(score) = scores.iter().find(|score| !score.is_finite()) {
                return Some(format!("{what} score {score}"));
            }
        }
        // Rounding in f32 may push a box slightly over the border.
        const SLACK: f32 = 1e-4;
        let inside = |b: &BoxXyxy| {
            b.iter().all(|v| (-SLACK..=1.0 + SLACK).contains(v)) && b[0] <= b[2] + SLACK && b[1] <= b[3] + SLACK
        };
        if let Some(b) = self.boxes.iter().find(|b| !inside(b)) {
            return Some(format!("box {b:?} is not x0 y0 x1 y1 in 0..1"));
        }
        let largest = match info.dtype {
            StoreDtype::F32 => f32::MAX,
            StoreDtype::F16 => half::f16::MAX.to_f32(),
            StoreDtype::Bf16 => half::bf16::MAX.to_f32(),
        };
        if let Some(value) = self.features.iter().find(|v| v.is_nan() || v.abs() > largest) {
            return Some(format!("feature value {value} is out of range for {}", info.dtype));
        }
        None
    }
}
