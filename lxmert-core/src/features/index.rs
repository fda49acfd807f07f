//! `index.json`: what a store holds, how it was made, and its shards.

use super::{Regions, StoreDtype, parts};
use crate::files::atomic_write;
use crate::{Error, Result, nearby};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

pub(super) const FORMAT: &str = "lxmert-regions";
pub(super) const VERSION: u32 = 1;
pub(super) const INDEX_FILE: &str = "index.json";
/// Limit of regions per image and of the feature width, so that no product of sizes overflows.
pub(super) const MOST: usize = 1 << 20;

/// The properties that all images of a store share. Two extractions can use one folder only if all of them are equal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoreInfo {
    /// The detector's name.
    pub detector: String,
    /// Everything else that shaped the regions, by name: weights, selection, thresholds.
    pub settings: BTreeMap<String, String>,
    /// The largest number of regions of an image.
    pub regions: usize,
    /// Length of a region's feature.
    pub feature_dim: usize,
    /// How the features' numbers are stored.
    pub dtype: StoreDtype,
    /// Label names; a label is an index into this list.
    pub label_names: Vec<String>,
    /// Names of the attributes; empty when the store has none.
    #[serde(default)]
    pub attribute_names: Vec<String>,
}

impl StoreInfo {
    /// Whether regions carry attributes.
    pub fn has_attributes(&self) -> bool {
        !self.attribute_names.is_empty()
    }

    /// What a region shows, in words: its label, after its attribute where the detector is at all sure of one (above 0.1, as in
    /// bottom-up attention's demo): "red shirt".
    pub fn region_name(&self, regions: &Regions, region: usize) -> String {
        const SURE: f32 = 0.1;
        let name = |names: &[String], labels: &[u32]| names.get(*labels.get(region)? as usize).cloned();
        let label = name(&self.label_names, &regions.labels).unwrap_or_default();
        let sure = regions.attributes.as_ref().filter(|of| of.scores.get(region).is_some_and(|score| *score > SURE));
        match sure.and_then(|attributes| name(&self.attribute_names, &attributes.labels)) {
            Some(attribute) => format!("{attribute} {label}"),
            None => label,
        }
    }

    /// Every point in which `wanted` differs, with both values, as readable text.
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, here: &str, wanted: &str| {
            if here != wanted {
                found.push(format!("{what}: {here} there, {wanted} now"));
            }
        };
        compare("detector", &self.detector, &wanted.detector);
        compare("regions", &self.regions.to_string(), &wanted.regions.to_string());
        compare("feature_dim", &self.feature_dim.to_string(), &wanted.feature_dim.to_string());
        compare("dtype", self.dtype.name(), wanted.dtype.name());
        let keys: BTreeSet<&String> = self.settings.keys().chain(wanted.settings.keys()).collect();
        for key in keys {
            let value = |info: &Self| info.settings.get(key).cloned().unwrap_or_else(|| "not set".into());
            compare(key, &value(self), &value(wanted));
        }
        for (what, here, wanted) in [
            ("label names", &self.label_names, &wanted.label_names),
            ("attribute names", &self.attribute_names, &wanted.attribute_names),
        ] {
            if here != wanted {
                let first = (0..).find(|&i| here.get(i) != wanted.get(i)).unwrap_or(0);
                let name = |names: &[String]| names.get(first).map_or("none".into(), |name| format!("'{name}'"));
                compare(&format!("{what}, number {first}"), &name(here), &name(wanted));
            }
        }
        found
    }
}

/// One shard, as the index names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name in the store's folder.
    pub file: String,
    /// How many images it holds.
    pub images: usize,
}

impl ShardEntry {
    /// The name of a store's shard `number`, from 0.
    pub(super) fn file_name(number: usize) -> String {
        format!("shard-{number:05}.safetensors")
    }
}

/// The content of `index.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: String,
    version: u32,
    #[serde(flatten)]
    pub info: StoreInfo,
    images: usize,
    pub shards: Vec<ShardEntry>,
}

impl Index {
    pub fn new(info: StoreInfo) -> Self {
        Self { format: FORMAT.into(), version: VERSION, info, images: 0, shards: Vec::new() }
    }

    /// How many images all shards hold.
    pub fn images(&self) -> usize {
        self.shards.iter().map(|shard| shard.images).fold(0, usize::saturating_add)
    }

    pub fn read(folder: &Path) -> Result<Self> {
        if let Some(reason) = parts::unmerged(folder) {
            return Err(Error::format(folder, reason));
        }
        let path = folder.join(INDEX_FILE);
        let text = std::fs::read(&path).map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                let missing = nearby::missing(folder).unwrap_or_else(|| "it has no index.json".into());
                Error::format(folder, format!("not a feature store: {missing}; make one with lxmert-extract"))
            } else {
                Error::io(&path)(source)
            }
        })?;
        // Check the format first, so that the error for another kind of file names its format and not a missing field.
        let kind: serde_json::Value = serde_json::from_slice(&text).map_err(Error::json(&path))?;
        if kind["format"] != FORMAT {
            return Err(Error::format(&path, format!("format is {}, not \"{FORMAT}\"", kind["format"])));
        }
        if kind["version"] != VERSION {
            return Err(Error::format(&path, format!("version {}; this program reads version 1", kind["version"])));
        }
        let index: Self = serde_json::from_value(kind).map_err(Error::json(&path))?;
        for (field, number) in [("regions", index.info.regions), ("feature_dim", index.info.feature_dim)] {
            if !(1..=MOST).contains(&number) {
                return Err(Error::format(&path, format!("{field} is {number}, not a number from 1 to {MOST}")));
            }
        }
        let mut files = BTreeSet::new();
        for shard in &index.shards {
            // These files will be opened, so they must lie in the folder.
            if shard.file.contains(['/', '\\']) || !files.insert(&shard.file) {
                return Err(Error::format(&path, format!("names the shard '{}'", shard.file)));
            }
        }
        if index.images != index.images() {
            let (said, are) = (index.images, index.images());
            return Err(Error::format(&path, format!("states {said} images, but its shards hold {are}")));
        }
        Ok(index)
    }

    pub fn write(&mut self, folder: &Path) -> Result<()> {
        self.images = self.images();
        let path = folder.join(INDEX_FILE);
        let text = serde_json::to_string_pretty(self).map_err(Error::json(&path))?;
        atomic_write(&path, |file| file.write_all(text.as_bytes()))
    }
}
