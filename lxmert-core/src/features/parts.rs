//! Parts of a store: several processes extract one set of images, each into a folder of its own, and a merge makes one
//! store of them.
//!
//! Part K of N takes the K-th contiguous block of the images and writes it to `part-0000K-of-0000N` in the store's folder.
//! That folder is a store in every respect, with a journal and a lock of its own, and `part.json` beside: which images were
//! asked of the part, and a hash of all parts' images.
//!
//! The merge checks the parts, writes `merging.json` (the index to be, and which shard goes where), renames the shards into
//! the store's folder in the order of the parts, writes `index.json`, removes the part folders, and at last `merging.json`.
//! A merge that was killed goes on from there; until it has, nothing else reads or writes the store.

use super::index::{INDEX_FILE, Index, NAMES_FILE, ShardEntry};
use super::journal::Journal;
use super::{FeatureStore, StoreSummary};
use crate::files::{atomic_write, hex, read_json, remove_leftovers};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub(super) const LIST_FILE: &str = "part.json";
const PLAN_FILE: &str = "merging.json";
/// Names that a message gives.
const NAMED: usize = 5;

/// Part `number` (from 1) of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    number: usize,
    of: usize,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        numbers
            .and_then(|(number, of)| Self::new(number, of))
            .ok_or_else(|| format!("'{text}' is not K/N with K from 1 to N, such as 2/8"))
    }
}

/// What was asked of a part: `part.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct PartList {
    part: usize,
    of: usize,
    /// Images of all parts.
    images: usize,
    /// Hash of the names of all parts, in order.
    sha256: String,
    /// The part's own, in order.
    names: Vec<String>,
}

impl Part {
    /// Part `number` of `of`; none unless 1 ≤ `number` ≤ `of` ≤ 99,999.
    pub fn new(number: usize, of: usize) -> Option<Self> {
        ((1..=of).contains(&number) && of < 100_000).then_some(Self { number, of })
    }

    /// The part's block of `count` images. The blocks of all parts follow each other and differ by at most one in length.
    pub fn block(self, count: usize) -> Range<usize> {
        let start = |part: usize| (count as u128 * part as u128 / self.of as u128) as usize;
        start(self.number - 1)..start(self.number)
    }

    /// The part's folder in that of the store.
    pub fn folder_in(self, store: &Path) -> PathBuf {
        store.join(format!("part-{:05}-of-{:05}", self.number, self.of))
    }

    fn of_folder(name: &str) -> Option<Self> {
        let (number, of) = name.strip_prefix("part-")?.split_once("-of-")?;
        Self::new(number.parse().ok()?, of.parse().ok()?)
            .filter(|part| part.folder_in(Path::new("")) == Path::new(name))
    }

    /// Makes the part's folder and writes down what is asked of it: its block of `names`, which are those of all parts. The
    /// folder is then opened as any store is.
    ///
    /// # Errors
    /// When the store is one already, holds parts of another number, or the part was begun with other images.
    pub fn begin(self, store: &Path, names: &[&str]) -> Result<PathBuf> {
        if store.join(PLAN_FILE).exists() {
            return Err(Error::format(store, interrupted_merge(store)));
        }
        if store.join(INDEX_FILE).exists() {
            let reason = "is a whole store already; leave --part out to add images to it, or choose another --output";
            return Err(Error::format(store, reason));
        }
        if let Some(other) = parts_in(store)?.into_iter().find(|other| other.of != self.of) {
            let reason = format!(
                "holds part {other}, so this cannot be part {self}; go on with parts of {}, or delete their folders",
                other.of
            );
            return Err(Error::format(store, reason));
        }
        let folder = self.folder_in(store);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let list = PartList {
            part: self.number,
            of: self.of,
            images: names.len(),
            sha256: hex(&Sha256::digest(names.join("\n"))),
            names: names[self.block(names.len())].iter().map(ToString::to_string).collect(),
        };
        let path = folder.join(LIST_FILE);
        if path.exists() {
            let begun: PartList = read_json(&path)?;
            if begun != list {
                let (then, now) = (begun.images, list.images);
                let reason = format!(
                    "was begun with other images ({then} then, {now} now, in all parts); extract the same images, or \
                     delete the folders of all parts and begin again"
                );
                return Err(Error::format(&folder, reason));
            }
        } else {
            let text = serde_json::to_vec(&list).map_err(Error::json(&path))?;
            atomic_write(&path, |file| file.write_all(&text))?;
        }
        Ok(folder)
    }
}

/// The parts in a store's folder, by number.
fn parts_in(store: &Path) -> Result<Vec<Part>> {
    let entries = match std::fs::read_dir(store) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io(store))?,
    };
    let mut parts = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io(store))?.file_name();
        parts.extend(Part::of_folder(&name.to_string_lossy()));
    }
    parts.sort_unstable();
    Ok(parts)
}

fn interrupted_merge(store: &Path) -> String {
    format!("its parts were being merged when that was interrupted; run `lxmert-extract merge {}`", store.display())
}

/// Why a folder is not one store yet, and what to run, where it holds parts.
pub fn unmerged(store: &Path) -> Option<String> {
    if store.join(PLAN_FILE).exists() {
        return Some(interrupted_merge(store));
    }
    if store.join(INDEX_FILE).exists() {
        return None;
    }
    let parts = parts_in(store).ok()?;
    let of = parts.last()?.of;
    let (there, merge) = (parts.len(), format!("`lxmert-extract merge {}`", store.display()));
    Some(match there < of {
        true => format!("holds {there} of {of} parts of a store; extract the others, then run {merge}"),
        false => format!("holds the {of} parts of a store; run {merge}"),
    })
}

/// The store to be, and where its shards are.
#[derive(Serialize, Deserialize)]
struct Plan {
    index: Index,
    /// Each shard's path now, below the store's folder.
    from: Vec<String>,
}

/// A merge whose parts have been checked.
pub struct Merge {
    store: PathBuf,
    plan: Plan,
    /// The part folders that are there.
    parts: Vec<PathBuf>,
    lock: Option<Journal>,
}

impl Merge {
    /// Checks the parts in a store's folder, and keeps other writers out. None where there are no parts: it is one store already.
    /// `failed`: given a part's folder, the names of the images that could not be extracted, which are not missed.
    ///
    /// # Errors
    /// When a part or an image is missing, a part is at work or was not finished, parts were made with other settings or from
    /// other images, or an image is in two; the message names what, and says what to run.
    pub fn start(store: &Path, failed: impl Fn(&Path) -> Result<Vec<String>>) -> Result<Option<Self>> {
        let parts = parts_in(store)?;
        let begun = store.join(PLAN_FILE);
        if !begun.exists() && (parts.is_empty() || store.join(INDEX_FILE).exists()) {
            // A merge that could not remove all of its parts was done nevertheless.
            let merged = parts.iter().map(|part| part.folder_in(store)).filter(|part| !holds_shards(part));
            merged.for_each(|part| drop(remove_rest(&part)));
            Journal::remove_empty(store);
            return match store.join(INDEX_FILE).exists() {
                // What is left to do where a merge was killed at its very end.
                true => FeatureStore::open(store)?.write_names().map(|()| None),
                false => Err(Error::format(store, "holds no parts; extract them with --part K/N")),
            };
        }
        let lock = Some(Journal::open(store, 0)?);
        // From here on the lock's file is removed again, whatever happens.
        let empty = Plan { index: Index::new(super::StoreInfo::default()), from: Vec::new() };
        let folders = parts.iter().map(|part| part.folder_in(store)).collect();
        let mut merge = Self { store: store.to_path_buf(), plan: empty, parts: folders, lock };
        merge.plan = match begun.exists() {
            true => read_json(&begun)?,
            false => check(store, &parts, failed)?,
        };
        Ok(Some(merge))
    }

    /// The part folders that are there.
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }

    /// Makes one store of the parts. Shards are renamed; only one that lies on another file system is copied.
    ///
    /// # Errors
    /// When the folder cannot be written to. What was done stays done: the merge can be run again.
    pub fn finish(self) -> Result<StoreSummary> {
        let begun = self.store.join(PLAN_FILE);
        let text = serde_json::to_vec(&self.plan).map_err(Error::json(&begun))?;
        atomic_write(&begun, |file| file.write_all(&text))?;
        let mut index = self.plan.index.clone();
        for (from, ShardEntry { file, .. }) in self.plan.from.iter().zip(&index.shards) {
            let (from, to) = (self.store.join(from), self.store.join(file));
            if !to.exists() {
                move_file(&from, &to)?;
            }
        }
        index.write(&self.store)?;
        for part in &self.parts {
            let shards = self.plan.from.iter().map(|from| self.store.join(from)).filter(|from| from.starts_with(part));
            shards.for_each(|file| drop(std::fs::remove_file(file)));
            if let Err(error) = remove_rest(part) {
                log::warn!("{}: merged, but not removed: {error}", part.display());
            }
        }
        std::fs::remove_file(&begun).map_err(Error::io(&begun))?;
        let store = FeatureStore::open(&self.store)?;
        store.write_names()?;
        Ok(StoreSummary::of(&store, self.store.clone()))
    }
}

impl Drop for Merge {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.lock.take().map(Journal::remove) {
            log::warn!("{error}");
        }
    }
}

/// Removes a part's folder after its shards. What else lies there is not ours to delete, and the folder then stays.
fn remove_rest(part: &Path) -> std::io::Result<()> {
    remove_leftovers(part, |_| true);
    [INDEX_FILE, LIST_FILE, NAMES_FILE, "failures.csv"]
        .iter()
        .for_each(|name| drop(std::fs::remove_file(part.join(name))));
    std::fs::remove_dir(part)
}

fn holds_shards(part: &Path) -> bool {
    let names = std::fs::read_dir(part).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().starts_with("shard-"))
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            let mut source = std::fs::File::open(from).map_err(Error::io(from))?;
            atomic_write(to, |file| std::io::copy(&mut source, file).map(drop))
        }
        other => other.map_err(Error::io(from)),
    }
}

/// Checks all parts and plans their merge.
fn check(store: &Path, parts: &[Part], failed: impl Fn(&Path) -> Result<Vec<String>>) -> Result<Plan> {
    let refuse = |reason: String| Err(Error::format(store, reason));
    let of = parts.iter().map(|part| part.of).max().unwrap_or(0);
    if let Some(other) = parts.iter().find(|part| part.of != of) {
        return refuse(format!("holds part {other} beside parts of {of}; delete the folders of one kind"));
    }
    let missing: Vec<String> = (1..=of)
        .map(|number| Part { number, of })
        .filter(|part| !parts.contains(part))
        .map(|p| p.to_string())
        .collect();
    if !missing.is_empty() {
        return refuse(format!("lacks {}; extract with --part {}", counted("part", &missing), missing[0]));
    }
    let mut first: Option<(Index, PartList)> = None;
    let mut plan: Option<Plan> = None;
    let mut names = HashSet::new();
    for &part in parts {
        let folder = part.folder_in(store);
        let again = format!("run the extraction with --part {part} again");
        if Journal::exists_in(&folder) {
            Journal::refuse_at_work(&folder)?;
            return refuse(format!("part {part} was not finished; {again}"));
        }
        if !folder.join(INDEX_FILE).exists() || !folder.join(LIST_FILE).exists() {
            return refuse(format!("part {part} was not begun; {again}"));
        }
        let (index, list): (Index, PartList) = (Index::read(&folder)?, read_json(folder.join(LIST_FILE))?);
        if let Some((first, list_of_first)) = &first {
            let differences = first.info.differences(&index.info);
            if !differences.is_empty() {
                return refuse(format!(
                    "part {part} (now) was made otherwise than part {} (there): {}; delete one folder and extract it again",
                    parts[0],
                    differences.join("; ")
                ));
            }
            if (&list_of_first.sha256, list_of_first.images) != (&list.sha256, list.images) {
                let (a, b) = (list_of_first.images, list.images);
                return refuse(format!(
                    "part {part} is of other images than part {} ({b} and {a} in all); extract all parts of the same images",
                    parts[0]
                ));
            }
        }
        let there = FeatureStore::open(&folder)?;
        let failed: HashSet<String> = failed(&folder)?.into_iter().collect();
        let missing: Vec<String> = (list.names.iter())
            .filter(|name| there.index_of(name).is_none() && !failed.contains(*name))
            .map(|name| format!("'{name}'"))
            .collect();
        if !missing.is_empty() {
            return refuse(format!("part {part} lacks {}; {again}", counted("image", &missing)));
        }
        if let Some(twice) = there.names().find(|name| !names.insert(name.to_string())) {
            return refuse(format!(
                "'{twice}' is in part {part} and in an earlier one; delete one part and extract it again"
            ));
        }
        let plan = plan.get_or_insert_with(|| Plan { index: Index::new(index.info.clone()), from: Vec::new() });
        let folder_name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for ShardEntry { file, images } in &index.shards {
            plan.from.push(format!("{folder_name}/{file}"));
            let file = ShardEntry::file_name(plan.index.shards.len());
            if store.join(&file).exists() {
                return refuse(format!("holds '{file}' and no index.json; move it away"));
            }
            plan.index.shards.push(ShardEntry { file, images: *images });
        }
        first.get_or_insert((index, list));
    }
    plan.map_or_else(|| refuse("holds no parts".into()), Ok)
}

/// "3 images ('a', 'b', 'c')", of many the first few.
fn counted(noun: &str, names: &[String]) -> String {
    let (plural, more) = (if names.len() == 1 { "" } else { "s" }, if names.len() > NAMED { ", …" } else { "" });
    format!("{} {noun}{plural} ({}{more})", names.len(), names[..names.len().min(NAMED)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_and_are_about_equally_long() {
        for (count, of) in [(0, 3), (1, 3), (10, 3), (12, 4), (7, 7), (200_001, 64)] {
            let blocks: Vec<Range<usize>> = (1..=of).map(|number| Part { number, of }.block(count)).collect();
            assert!(blocks[0].start == 0 && blocks[of - 1].end == count);
            assert!(blocks.windows(2).all(|pair| pair[0].end == pair[1].start));
            let lengths = || blocks.iter().map(ExactSizeIterator::len);
            assert!(lengths().max().unwrap() - lengths().min().unwrap() <= 1, "{blocks:?}");
        }
    }

    #[test]
    fn parts_are_read_and_written_as_k_of_n() {
        let part: Part = "2/8".parse().unwrap();
        assert_eq!(part.to_string(), "2/8");
        assert_eq!(part.folder_in(Path::new("x")), Path::new("x/part-00002-of-00008"));
        assert_eq!(Part::of_folder("part-00002-of-00008"), Some(part));
        for wrong in ["part-2-of-8", "part-00009-of-00008", "part-00000-of-00008", "shard-00000.safetensors"] {
            assert_eq!(Part::of_folder(wrong), None, "{wrong}");
        }
        for wrong in ["0/8", "9/8", "2", "2/", "x/8", "1/100000"] {
            assert!(wrong.parse::<Part>().unwrap_err().contains("not K/N"), "{wrong}");
        }
    }
}
