//! Reads a store: any image in any order, from several threads.

use super::index::{Index, StoreInfo};
use super::journal::Journal;
use super::shard::{Layout, Shard};
use super::{Regions, ShardEntry, StoreFolders};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The images of a store, by number (their order in the shards) or by name. Opening reads the names only; regions are
/// read on request.
#[derive(Debug)]
pub struct FeatureStore {
    /// For messages: the folder, or of several all their names.
    folder: PathBuf,
    folders: StoreFolders,
    info: StoreInfo,
    shards: Vec<Shard>,
    /// Number of the first image of each shard.
    first: Vec<usize>,
    names: Vec<String>,
    /// Image numbers in the order of their names.
    by_name: Vec<u32>,
}

impl FeatureStore {
    /// Opens the shards (one open file each) and reads the names. Several folders are read as one store: their images one
    /// after another, with as many regions per image as the folder with the most has room for.
    ///
    /// # Errors
    /// Returns an error that names the file if a folder is not a store, a shard is missing, truncated or not what
    /// `index.json` says, an image occurs twice, or the folders were made in different ways.
    pub fn open(folders: impl Into<StoreFolders>) -> Result<Self> {
        let folders = folders.into();
        let mut store = Self {
            info: StoreInfo::default(),
            shards: Vec::new(),
            first: Vec::new(),
            names: Vec::new(),
            by_name: Vec::new(),
            folder: folders.to_string().into(),
            folders,
        };
        if store.folders.paths().is_empty() {
            return Err(Error::Argument("no feature store is named".into()));
        }
        for (number, folder) in store.folders.paths().iter().enumerate() {
            let Index { info, shards, .. } = Index::read(folder)?;
            let layout = Layout::of(&info);
            store.info =
                if number == 0 { info } else { together(&store.info, info, &store.folders.paths()[0], folder)? };
            for ShardEntry { file, images } in shards {
                let mut shard = Shard::open(&folder.join(&file), &layout)?;
                if shard.images != images {
                    let reason = format!("{} images, but index.json says {images}", shard.images);
                    return Err(Error::format(&shard.path, reason));
                }
                store.first.push(store.names.len());
                store.names.extend(shard.take_names());
                store.shards.push(shard);
            }
        }
        let names = &store.names;
        store.by_name = (0..names.len() as u32).collect();
        store.by_name.sort_unstable_by(|&a, &b| names[a as usize].cmp(&names[b as usize]));
        if let Some(pair) = store.by_name.windows(2).find(|pair| names[pair[0] as usize] == names[pair[1] as usize]) {
            let name = &names[pair[0] as usize];
            let folder = |image: u32| store.locate(image as usize).ok()?.0.path.parent();
            let (a, b) = (folder(pair[0].min(pair[1])), folder(pair[0].max(pair[1])));
            let twice = match (a, b) {
                (Some(a), Some(b)) if a != b => {
                    format!("the image '{name}' is in {} and in {}", a.display(), b.display())
                }
                _ => format!("holds the image '{name}' twice"),
            };
            return Err(Error::format(&store.folder, twice));
        }
        Ok(store)
    }

    /// The properties that all images share.
    pub fn info(&self) -> &StoreInfo {
        &self.info
    }

    /// The store's folder; of several, all their names, for messages.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The images' names, by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of the image with this name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name
            .binary_search_by(|&i| self.names[i as usize].as_str().cmp(name))
            .ok()
            .map(|position| self.by_name[position] as usize)
    }

    /// How many shards there are.
    pub fn num_shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes of all shards.
    pub fn size_on_disk(&self) -> u64 {
        self.shards.iter().map(Shard::size_on_disk).sum()
    }

    /// Whether a writer is at work in a folder of it or was killed there, so that images may be missing.
    pub fn is_unfinished(&self) -> bool {
        self.folders.paths().iter().any(|folder| Journal::exists_in(folder))
    }

    fn locate(&self, image: usize) -> Result<(&Shard, usize)> {
        if image >= self.len() {
            return Err(Error::Argument(format!(
                "image number {image}, but {} holds {} images",
                self.folder.display(),
                self.len()
            )));
        }
        // `first` starts with 0, so at least one shard starts at or before any image.
        let shard = self.first.partition_point(|&first| first <= image) - 1;
        Ok((&self.shards[shard], image - self.first[shard]))
    }

    /// All of one image, by number.
    ///
    /// # Errors
    /// Returns an error if there is no such image or the shard is damaged.
    pub fn regions(&self, image: usize) -> Result<Regions> {
        let (shard, row) = self.locate(image)?;
        shard.regions(row)
    }

    /// How many regions an image has, by number.
    ///
    /// # Errors
    /// See [`FeatureStore::regions`].
    pub fn num_regions(&self, image: usize) -> Result<usize> {
        let (shard, row) = self.locate(image)?;
        shard.num_regions(row)
    }

    /// Reads the regions of several images (B) in the model's layout, where N and F are the store's regions and feature
    /// dimension. Clears the buffers, then fills `features` `[B, N, F]`, `boxes` `[B, N, 4]` (x0 y0 x1 y1 in 0..1) and
    /// `mask` `[B, N]` (1 for a real region; 0 for padding, whose features and boxes are zeros).
    ///
    /// # Errors
    /// As [`FeatureStore::regions`]; the buffers' contents are then unspecified.
    pub fn read_batch(
        &self,
        images: &[usize],
        features: &mut Vec<f32>,
        boxes: &mut Vec<f32>,
        mask: &mut Vec<f32>,
    ) -> Result<()> {
        let (n, dim) = (self.info.regions, self.info.feature_dim);
        for (buffer, size) in [(&mut *features, n * dim), (&mut *boxes, n * 4), (&mut *mask, n)] {
            buffer.clear();
            buffer.reserve(images.len() * size);
        }
        for (i, &image) in images.iter().enumerate() {
            let (shard, row) = self.locate(image)?;
            let real = shard.num_regions(row)?;
            shard.features(row, 0..real, features)?;
            features.resize((i + 1) * n * dim, 0.0);
            shard.boxes(row, real, boxes)?;
            boxes.resize((i + 1) * n * 4, 0.0);
            mask.resize(i * n + real, 1.0);
            mask.resize((i + 1) * n, 0.0);
        }
        Ok(())
    }

    /// Reads the labels of several images' regions and the detector's confidences. Clears both buffers, then fills them
    /// with `[B, N]` values, 0 where an image has fewer regions. See [`FeatureStore::read_attributes`] for attributes.
    ///
    /// # Errors
    /// See [`FeatureStore::regions`].
    pub fn read_labels(&self, images: &[usize], labels: &mut Vec<u32>, scores: &mut Vec<f32>) -> Result<()> {
        self.read_classes(images, "", labels, scores)
    }

    /// As [`FeatureStore::read_labels`], the regions' attributes. In a store without attributes every confidence is 0.
    ///
    /// # Errors
    /// See [`FeatureStore::regions`].
    pub fn read_attributes(&self, images: &[usize], labels: &mut Vec<u32>, scores: &mut Vec<f32>) -> Result<()> {
        self.read_classes(images, "attribute_", labels, scores)
    }

    fn read_classes(&self, images: &[usize], prefix: &str, labels: &mut Vec<u32>, scores: &mut Vec<f32>) -> Result<()> {
        labels.clear();
        scores.clear();
        for (i, &image) in images.iter().enumerate() {
            let (shard, row) = self.locate(image)?;
            shard.labels(row, shard.num_regions(row)?, prefix, labels, scores)?;
            labels.resize((i + 1) * self.info.regions, 0);
            scores.resize((i + 1) * self.info.regions, 0.0);
        }
        Ok(())
    }

    /// The feature of one region, `[F]`.
    ///
    /// # Errors
    /// As [`FeatureStore::regions`], or if the image has no such region.
    pub fn region_feature(&self, image: usize, region: usize) -> Result<Vec<f32>> {
        let (shard, row) = self.locate(image)?;
        let n = shard.num_regions(row)?;
        if region >= n {
            return Err(Error::Argument(format!("region {region} of '{}', which has {n}", self.names[image])));
        }
        let mut features = Vec::with_capacity(self.info.feature_dim);
        shard.features(row, region..region + 1, &mut features)?;
        Ok(features)
    }
}

/// What holds for the images of two folders read as one store: everything but the most regions and the dtype must be equal.
fn together(info: &StoreInfo, mut other: StoreInfo, first: &Path, folder: &Path) -> Result<StoreInfo> {
    let regions = info.regions.max(other.regions);
    (other.regions, other.dtype) = (info.regions, info.dtype);
    let differences = info.differences(&other);
    if !differences.is_empty() {
        let reason = format!(
            "cannot be read as one store with {} (there, this one being now): {}",
            first.display(),
            differences.join("; ")
        );
        return Err(Error::format(folder, reason));
    }
    Ok(StoreInfo { regions, ..other })
}
