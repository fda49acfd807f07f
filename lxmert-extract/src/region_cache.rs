//! Regions of photos seen before, in the user's cache folder: a feature store of one image for each photo and region source.

use crate::finder::Found;
use crate::images::DecodedImage;
use lxmert_core::Result;
use lxmert_core::features::{FeatureStore, StoreWriter};
use lxmert_core::files::{FolderDraft, sha256_of};
use std::path::{Path, PathBuf};

/// How many photos are kept; the oldest are removed first. One takes 0.3 MB at 36 regions of 2048 numbers.
const MOST: usize = 500;

/// The cache of one region source.
#[derive(Debug, Clone)]
pub struct RegionCache {
    folder: PathBuf,
    source: String,
}

impl RegionCache {
    /// The user's cache, for the source that `source` identifies; none where the user has no cache folder.
    pub fn of_user(source: &str) -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
        Some(Self { folder: cache.join("lxmert/regions"), source: source.into() })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The key of a photo: a hash of its pixels, their layout and the source.
    pub fn key(&self, photo: &DecodedImage) -> String {
        let pixels = sha256_of(&photo.rgb);
        sha256_of(format!("{} {}x{} {pixels}", self.source, photo.width, photo.height).as_bytes())
    }

    /// The regions under a key. An entry that cannot be read counts as absent.
    pub fn get(&self, key: &str) -> Option<Found> {
        let folder = self.folder.join(key);
        if !folder.exists() {
            return None;
        }
        let read = || -> Result<Found> {
            let store = FeatureStore::open(&folder)?;
            Ok(Found { regions: store.regions(0)?, info: store.info().clone() })
        };
        read().inspect_err(|error| log::warn!("{error}; the photo's regions are found anew")).ok()
    }

    /// Keeps regions. If the cache cannot be written, only the next run is slower.
    pub fn put(&self, key: &str, found: &Found) {
        let write = || -> Result<()> {
            let draft = FolderDraft::start(self.folder.join(key))?;
            let mut store = StoreWriter::open(draft.path(), found.info.clone())?;
            store.push("photo", &found.regions)?;
            store.finish()?;
            draft.finish(true)
        };
        if let Err(error) = write() {
            log::warn!("the photo's regions could not be kept: {error}");
        }
        self.remove_oldest();
    }

    fn remove_oldest(&self) {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut dated: Vec<_> =
            entries.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
        dated.sort();
        for (_, path) in dated.iter().take(dated.len().saturating_sub(MOST)) {
            // Another process may have been faster.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxmert_core::features::{Regions, StoreDtype, StoreInfo};

    fn found() -> Found {
        let info = StoreInfo {
            detector: "test".into(),
            settings: Default::default(),
            regions: 2,
            feature_dim: 3,
            dtype: StoreDtype::F32,
            label_names: vec!["thing".into()],
            attribute_names: Vec::new(),
        };
        let regions = Regions {
            image_width: 4,
            image_height: 2,
            feature_dim: 3,
            features: vec![0.25; 3],
            boxes: vec![[0.0, 0.0, 1.0, 1.0]],
            labels: vec![0],
            scores: vec![0.5],
            attributes: None,
        };
        Found { regions, info }
    }

    #[test]
    fn keeps_regions_by_pixels_and_source_and_no_more_than_its_share() {
        let folder = tempfile::tempdir().unwrap();
        let cache = |source: &str| RegionCache { folder: folder.path().join("regions"), source: source.into() };
        let photo = DecodedImage { width: 4, height: 2, rgb: vec![7; 24] };
        let key = cache("a").key(&photo);
        assert_ne!(key, cache("b").key(&photo));
        assert_ne!(key, cache("a").key(&DecodedImage { width: 2, height: 4, ..photo.clone() }));
        assert_ne!(key, cache("a").key(&DecodedImage { rgb: vec![8; 24], ..photo }));
        assert!(cache("a").get(&key).is_none());
        cache("a").put(&key, &found());
        let kept = cache("a").get(&key).unwrap();
        assert_eq!((kept.regions, kept.info), (found().regions, found().info));
        // The regions of a damaged entry are found again.
        std::fs::write(folder.path().join("regions").join(&key).join("index.json"), "{").unwrap();
        assert!(cache("a").get(&key).is_none());
        cache("a").put(&key, &found());
        assert!(cache("a").get(&key).is_some());
        for other in 0..MOST + 3 {
            std::fs::create_dir_all(folder.path().join("regions").join(other.to_string())).unwrap();
        }
        cache("a").put("newest", &found());
        assert_eq!(std::fs::read_dir(folder.path().join("regions")).unwrap().count(), MOST);
        assert!(cache("a").get("newest").is_some() && cache("a").get(&key).is_none());
    }
}
