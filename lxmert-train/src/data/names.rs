//! Finds image names of a data file in a feature store.

use crate::{Error, Result};
use lxmert_core::features::FeatureStore;

/// Maximum fraction of images without features: a detector fails on a damaged file now and then, but the store of
/// another data set must be rejected.
const MISSING_ALLOWED: f64 = 0.01;

/// The number in `store` of each of `names`; `None` for those without features.
///
/// # Errors
/// Returns an error if more than 1 % of them lack features (unless `allow_missing`), or if all do.
pub fn find_all(store: &FeatureStore, names: &[String], allow_missing: bool) -> Result<Vec<Option<usize>>> {
    let found: Vec<Option<usize>> = names.iter().map(|name| store.find(name)).collect();
    let mut without = names.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(name, _)| name.as_str());
    let examples = without.by_ref().take(3).collect::<Vec<_>>();
    let (missing, total) = (examples.len() + without.count(), names.len());
    let examples = examples.join(", ");
    if missing > 0 {
        let too_many = missing as f64 > MISSING_ALLOWED * total as f64 && !allow_missing;
        if too_many || missing == total {
            return Err(Error::MissingFeatures { store: store.folder().into(), missing, total, examples });
        }
        log::warn!("{missing} of {total} images have no features and were left out: {examples}…");
    }
    Ok(found)
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
    fn rejects_too_many_images_without_features() {
        let folder = tempfile::tempdir().unwrap();
        let store = store_of(folder.path(), &["photos/a.jpg", "b.jpg"]);
        let find = |names: &[&str], allow_missing: bool| {
            let names = names.iter().map(ToString::to_string).collect::<Vec<_>>();
            find_all(&store, &names, allow_missing).map_err(|error| error.to_string())
        };
        assert_eq!(find(&["a", "c"], true).unwrap(), [Some(0), None]);
        let error = find(&["a", "c"], false).unwrap_err();
        assert!(error.contains("1 of 2") && error.contains('c'), "{error}");
        assert!(find(&["c"], true).is_err());
    }
}
