//! Image names of a data file, found in a feature store.

use crate::{Error, Result};
use lxmert_core::features::FeatureStore;
use std::collections::HashMap;

/// Share of the images that may lack features before loading refuses: detectors fail on a damaged file here and there,
/// but a store of another data set must not pass.
const MISSING_ALLOWED: f64 = 0.01;

/// Finds image names in a store: by the whole name, else by the file name where that is unique, else by the file name
/// without its extension where that is unique. So `1000092795.jpg` finds `flickr30k_images/1000092795.jpg`, and
/// `COCO_train2014_000000458752` finds `COCO_train2014_000000458752.jpg`, and the other way round.
pub struct NameFinder<'a> {
    store: &'a FeatureStore,
    by_file_name: HashMap<&'a str, Option<usize>>,
    by_stem: HashMap<&'a str, Option<usize>>,
}

impl<'a> NameFinder<'a> {
    /// A finder over the names of `store`.
    pub fn new(store: &'a FeatureStore) -> Self {
        let mut by_file_name = HashMap::with_capacity(store.len());
        let mut by_stem = HashMap::with_capacity(store.len());
        for (i, name) in store.names().iter().enumerate() {
            by_file_name.entry(file_name(name)).and_modify(|found| *found = None).or_insert(Some(i));
            by_stem.entry(stem(name)).and_modify(|found| *found = None).or_insert(Some(i));
        }
        Self { store, by_file_name, by_stem }
    }

    /// The number in the store of the image that `name` means.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.store
            .index_of(name)
            .or_else(|| self.by_file_name.get(file_name(name)).copied().flatten())
            .or_else(|| self.by_stem.get(stem(name)).copied().flatten())
    }

    /// The number in the store of each of `names`; `None` for those without features.
    ///
    /// # Errors
    /// When more than 1 % of them have no features, unless `allow_missing`; when none has.
    pub fn find_all(&self, names: &[String], allow_missing: bool) -> Result<Vec<Option<usize>>> {
        let found: Vec<Option<usize>> = names.iter().map(|name| self.find(name)).collect();
        let mut without = names.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(name, _)| name.as_str());
        let examples = without.by_ref().take(3).collect::<Vec<_>>();
        let (missing, total) = (examples.len() + without.count(), names.len());
        let examples = examples.join(", ");
        if missing > 0 {
            let too_many = missing as f64 > MISSING_ALLOWED * total as f64 && !allow_missing;
            if too_many || missing == total {
                return Err(Error::MissingFeatures { store: self.store.folder().into(), missing, total, examples });
            }
            log::warn!("{missing} of {total} images have no features and are left out: {examples}…");
        }
        Ok(found)
    }
}

fn file_name(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or(name)
}

fn stem(name: &str) -> &str {
    let name = file_name(name);
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && is_picture(extension) => stem,
        _ => name,
    }
}

fn is_picture(extension: &str) -> bool {
    ["jpg", "jpeg", "png", "webp", "bmp", "gif"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use lxmert_core::features::{Regions, StoreInfo, StoreWriter};
    use std::path::Path;

    /// A store of images without regions.
    pub fn store_of(folder: &Path, names: &[&str]) -> FeatureStore {
        let info = StoreInfo {
            detector: "test".into(),
            settings: [].into(),
            regions: 1,
            feature_dim: 1,
            dtype: Default::default(),
            label_names: vec![],
            attribute_names: vec![],
        };
        let mut writer = StoreWriter::open(folder, info).unwrap();
        let regions = Regions { image_width: 1, image_height: 1, feature_dim: 1, ..Regions::default() };
        for name in names {
            writer.push(name, &regions).unwrap();
        }
        writer.finish().unwrap();
        FeatureStore::open(folder).unwrap()
    }

    #[test]
    fn names_are_found_with_and_without_folder_and_extension() {
        let folder = tempfile::tempdir().unwrap();
        let there = ["photos/a.jpg", "COCO_train2014_000000458752", "x/same.jpg", "y/same.jpg", "b.v2.png"];
        let store = store_of(folder.path(), &there);
        let finder = NameFinder::new(&store);
        for (name, number) in [
            ("photos/a.jpg", Some(0)),
            ("a.jpg", Some(0)),
            ("a", Some(0)),
            ("other/a.PNG", Some(0)),
            ("COCO_train2014_000000458752.jpg", Some(1)),
            ("same.jpg", None),
            ("y/same.jpg", Some(3)),
            ("b.v2", Some(4)),
            ("b", None),
        ] {
            assert_eq!(finder.find(name), number, "{name}");
        }
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(finder.find_all(&names(&["a", "c"]), true).unwrap(), [Some(0), None]);
        let error = finder.find_all(&names(&["a", "c"]), false).unwrap_err().to_string();
        assert!(error.contains("1 of 2") && error.contains('c'), "{error}");
        assert!(finder.find_all(&names(&["c"]), true).is_err());
    }
}
