//! Reads a store: any image in any order, from several threads.

use super::index::{Index, NAMES_FILE, StoreInfo};
use super::journal::Journal;
use super::names::Names;
use super::shard::{Layout, OpenFiles, Shard};
use super::{Regions, ShardEntry, StoreFolders};
use crate::{Error, Result, image_names};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The images of a store, by number (their order in the shards) or by name. Opening costs the same for any number of images:
/// names are looked up in a mapped file, and a shard is opened when one of its images is first read.
#[derive(Debug)]
pub struct FeatureStore {
    /// For messages: the folder, or of several all their names.
    folder: PathBuf,
    folders: StoreFolders,
    info: StoreInfo,
    /// Each folder's names, with the number of its first image.
    names: Vec<(usize, Names)>,
    shards: Vec<ShardPlace>,
    /// Number of the first image of each shard.
    first: Vec<usize>,
    files: Arc<OpenFiles>,
    images: usize,
    bytes: u64,
}

/// A shard that may have been opened.
#[derive(Debug)]
struct ShardPlace {
    path: PathBuf,
    images: usize,
    /// Which folder it is in.
    folder: usize,
    layout: Arc<Layout>,
    opened: OnceLock<Shard>,
    /// Set once the names in the shard were found to be those of the table.
    is_named: OnceLock<()>,
}

impl FeatureStore {
    /// Opens a store. Several folders are read as one: their images one after another, with as many regions per image as the
    /// folder with the most has room for.
    ///
    /// # Errors
    /// Returns an error that names the file if a folder is not a store, a shard is missing, truncated or not what
    /// `index.json` says, an image occurs twice, or the folders were made in different ways.
    pub fn open(folders: impl Into<StoreFolders>) -> Result<Self> {
        let folders = folders.into();
        let mut store = Self {
            info: StoreInfo::default(),
            names: Vec::new(),
            shards: Vec::new(),
            first: Vec::new(),
            files: OpenFiles::new(),
            images: 0,
            bytes: 0,
            folder: folders.to_string().into(),
            folders,
        };
        if store.folders.paths().is_empty() {
            return Err(Error::Argument("no feature store is named".into()));
        }
        for number in 0..store.folders.paths().len() {
            store.add(number)?;
        }
        for (number, (_, names)) in store.names.iter().enumerate() {
            for (before, (_, others)) in store.names[..number].iter().enumerate() {
                if let Some(name) = names.shared_with(others) {
                    let [a, b] = [before, number].map(|number| store.folders.paths()[number].display());
                    return Err(Error::format(&store.folder, format!("the image '{name}' is in {a} and in {b}")));
                }
            }
        }
        Ok(store)
    }

    /// Adds a folder's images.
    fn add(&mut self, number: usize) -> Result<()> {
        let folder = self.folders.paths()[number].clone();
        let index = Index::read(&folder)?;
        let (names, images) = (Names::open(&folder, &index)?, index.images());
        let layout = Arc::new(Layout::of(&index.info));
        let own = self.shards.len()..self.shards.len() + index.shards.len();
        for ShardEntry { file, images } in &index.shards {
            let (path, images) = (folder.join(file), *images);
            self.first.push(self.images);
            self.images = self.images.saturating_add(images);
            let (layout, folder, opened, is_named) = (Arc::clone(&layout), number, OnceLock::new(), OnceLock::new());
            self.shards.push(ShardPlace { path, images, folder, layout, opened, is_named });
        }
        // A shard that is missing or truncated is found now and not in the middle of an epoch. The first one's header must agree with
        // the sizes in the index, by which callers reserve memory.
        let mut sizes = Vec::with_capacity(own.len());
        for (i, shard) in own.clone().enumerate() {
            let size = std::fs::metadata(&self.shards[shard].path).map(|about| about.len()).unwrap_or(0);
            if i == 0 || names.as_ref().and_then(|names| names.shard_bytes(i)) != Some(size) {
                self.header(shard)?;
            }
            sizes.push(size);
            self.bytes += size;
        }
        let names = match names {
            Some(names) => names,
            None => {
                let filled = own.clone().filter(|shard| self.shards[*shard].images > 0);
                let joined = filled.map(|shard| self.header(shard)?.names()).collect::<Result<Vec<_>>>()?;
                let twice = |name| Error::format(&folder, format!("holds the image '{name}' twice"));
                Names::build(&joined.join("\n"), images, &sizes)?.map_err(twice)?
            }
        };
        self.names.push((self.images - images, names));
        let folder = self.folders.paths()[0].clone();
        self.info = match number {
            0 => index.info,
            _ => together(&self.info, index.info, &folder, &self.folders.paths()[number])?,
        };
        Ok(())
    }

    /// A shard, checked against the index when it is first used.
    fn header(&self, number: usize) -> Result<&Shard> {
        let place = &self.shards[number];
        if let Some(shard) = place.opened.get() {
            return Ok(shard);
        }
        let shard = Shard::open(&place.path, &place.layout, number, &self.files)?;
        if shard.images != place.images {
            let reason = format!("{} images, but index.json says {}", shard.images, place.images);
            return Err(Error::format(&shard.path, reason));
        }
        Ok(place.opened.get_or_init(|| shard))
    }

    /// A shard that holds the images which the table of names says it does.
    fn shard(&self, number: usize) -> Result<&Shard> {
        let (shard, place) = (self.header(number)?, &self.shards[number]);
        if place.is_named.get().is_none() {
            let (first, names) = &self.names[place.folder];
            let start = self.first[number] - first;
            if shard.names()?.as_bytes() != names.joined(start..start + place.images) {
                let path = self.folders.paths()[place.folder].join(NAMES_FILE);
                let reason = format!("names other images than {} holds; delete it and run again", place.path.display());
                return Err(Error::format(path, reason));
            }
            place.is_named.get_or_init(|| ());
        }
        Ok(shard)
    }

    /// Writes each folder's table of names where there is none.
    pub(super) fn write_names(&self) -> Result<()> {
        self.folders.paths().iter().zip(&self.names).try_for_each(|(folder, (_, names))| names.write(folder))
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
        self.images
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.images == 0
    }

    /// The images' names, by number.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.names.iter().flat_map(|(_, names)| (0..names.len()).map(|number| names.get(number)))
    }

    /// The name of an image, by number; empty if there is no such image.
    pub fn name(&self, image: usize) -> &str {
        let folder = self.names.partition_point(|(first, _)| *first <= image).checked_sub(1);
        // Of folders that start at the same number, the last is not empty.
        folder.map(|folder| &self.names[folder]).map_or("", |(first, names)| names.get(image - first))
    }

    /// The number of the image with this name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.find(name).filter(|image| self.name(*image) == name)
    }

    /// The number of the image that `name` refers to, as [`NameFinder`](crate::image_names::NameFinder) finds it: other folders,
    /// another extension and another Unicode form are found where only one image can be meant.
    pub fn find(&self, name: &str) -> Option<usize> {
        image_names::find(self.names.iter().map(|(first, names)| (*first, names)), name)
    }

    /// How many shards there are.
    pub fn num_shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes of all shards.
    pub fn size_on_disk(&self) -> u64 {
        self.bytes
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
        Ok((self.shard(shard)?, image - self.first[shard]))
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
            return Err(Error::Argument(format!("region {region} of '{}', which has {n}", self.name(image))));
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
