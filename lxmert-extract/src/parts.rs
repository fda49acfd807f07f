//! Several processes on one extraction: which part is this process's, and one store of all parts.

use crate::Result;
use crate::failures::{self, Failure};
use lxmert_core::features::{FeatureStore, Merge, Part, StoreSummary};
use lxmert_core::launcher;
use std::path::Path;

/// `--part`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartChoice {
    /// As the launcher's variables say.
    Auto,
    /// This one.
    Given(Part),
}

impl std::str::FromStr for PartChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Given).map_err(|error| format!("{error}, or auto")),
        }
    }
}

impl PartChoice {
    /// The part.
    ///
    /// # Errors
    /// When it is to be as the launcher says and none says anything.
    pub fn part(self) -> Result<Part> {
        let given = match self {
            Self::Given(part) => return Ok(part),
            Self::Auto => launcher::place(|name| std::env::var(name).ok())?,
        };
        let part = Part::new(given.index + 1, given.count).ok_or_else(|| {
            lxmert_core::Error::Argument(format!("--part auto: {} parts are more than 99,999", given.count))
        })?;
        log::info!("part {part}");
        Ok(part)
    }
}

/// A store of parts that have been merged.
#[derive(Debug, Clone)]
pub struct Merged {
    /// The store.
    pub store: StoreSummary,
    /// How many parts there were; 0 where it was one store already.
    pub parts: usize,
    /// Images that failed in their part.
    pub failures: Vec<Failure>,
}

impl Merged {
    /// What was done, in a line.
    pub fn describe(&self) -> String {
        let StoreSummary { folder, images, shards, bytes } = &self.store;
        let done = match self.parts {
            0 => "one store already".to_string(),
            parts => format!("merged {parts} parts"),
        };
        format!("{}: {done}; {images} images in {shards} shards, {}", folder.display(), indicatif::HumanBytes(*bytes))
    }
}

/// Makes one store of the parts in `store`; see [`Merge`].
///
/// # Errors
/// As [`Merge::start`] and [`Merge::finish`].
pub fn merge(store: &Path) -> Result<Merged> {
    // Of an image, the name alone is needed.
    let failed = |part: &Path| Ok(failures::read(part)?.into_iter().map(|failure| failure.name).collect());
    // What a merge that was interrupted has written already.
    let mut failures = failures::read(store)?;
    let Some(merge) = Merge::start(store, failed)? else {
        let there = FeatureStore::open(store)?;
        let (images, shards, bytes) = (there.len(), there.num_shards(), there.size_on_disk());
        let store = StoreSummary { folder: store.to_path_buf(), images, shards, bytes };
        return Ok(Merged { store, parts: 0, failures });
    };
    for part in merge.parts() {
        for failure in failures::read(part)? {
            if !failures.contains(&failure) {
                failures.push(failure);
            }
        }
    }
    failures::write(store, &failures)?;
    let parts = merge.parts().len();
    Ok(Merged { store: merge.finish()?, parts, failures })
}
