//! Filling a store, one image at a time.

use super::index::{INDEX_FILE, Index, MOST, NAMES_FILE, ShardEntry, StoreInfo};
use super::journal::{Journal, MAX_NAME};
use super::shard::{Layout, OpenFiles, Shard, write_shard};
use super::{FeatureStore, Regions, parts};
use crate::files::UNFINISHED;
use crate::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A shard is closed when it reaches this size: large enough that a data set is few files, small enough that copying
/// the journal into it takes a second.
const SHARD_BYTES: usize = 256 << 20;

/// Appends images to a store; the [module docs](super) say what a kill does.
pub struct StoreWriter {
    folder: PathBuf,
    index: Index,
    layout: Arc<Layout>,
    journal: Journal,
    names: HashSet<String>,
    images_per_shard: usize,
}

/// A finished store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSummary {
    /// The store's folder.
    pub folder: PathBuf,
    /// Images in the store.
    pub images: usize,
    /// Shards they are in.
    pub shards: usize,
    /// Bytes of all shards.
    pub bytes: u64,
}

impl StoreSummary {
    pub(super) fn of(store: &FeatureStore, folder: PathBuf) -> Self {
        let (images, shards, bytes) = (store.len(), store.num_shards(), store.size_on_disk());
        Self { folder, images, shards, bytes }
    }
}

impl StoreWriter {
    /// Creates the store, or continues the existing one.
    ///
    /// # Errors
    /// Returns an error if the folder holds a store made with other settings ([`Error::StoreDiffers`] names every
    /// difference), holds something else, is being written to, or is not writable.
    pub fn open(folder: impl AsRef<Path>, info: StoreInfo) -> Result<Self> {
        Self::open_with(folder, info, SHARD_BYTES)
    }

    /// [`StoreWriter::open`] with another shard size in bytes.
    ///
    /// # Errors
    /// See [`StoreWriter::open`].
    pub fn open_with(folder: impl AsRef<Path>, info: StoreInfo, shard_bytes: usize) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        check_info(&info)?;
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let there = if folder.join(INDEX_FILE).exists() { Some(Index::read(&folder)?) } else { None };
        if let Some(index) = &there {
            let differences = index.info.differences(&info);
            if !differences.is_empty() {
                return Err(Error::StoreDiffers { path: folder, differences: differences.join("; ") });
            }
        } else {
            refuse_foreign(&folder)?;
        }
        let layout = Arc::new(Layout::of(&info));
        let journal = Journal::open(&folder, layout.row_bytes())?;
        // Read it again, now that no other writer can be at work.
        let index = match there {
            Some(_) => Index::read(&folder)?,
            None => {
                let mut index = Index::new(info);
                index.write(&folder)?;
                index
            }
        };
        let images_per_shard = (shard_bytes / layout.row_bytes()).max(1);
        let mut writer = Self { folder, index, layout, journal, names: HashSet::new(), images_per_shard };
        writer.recover()?;
        Ok(writer)
    }

    /// Reads what an earlier writer left.
    fn recover(&mut self) -> Result<()> {
        let mut changed = false;
        for entry in std::mem::take(&mut self.index.shards) {
            let path = self.folder.join(&entry.file);
            if !path.exists() {
                log::warn!("{}: gone; its {} images are extracted again", path.display(), entry.images);
                changed = true;
                continue;
            }
            let shard = Shard::open(&path, &self.layout, 0, &OpenFiles::new())?;
            self.take_in(&shard, entry)?;
        }
        // The killed writer may have renamed a shard and not yet written the index.
        let file = self.next_file();
        let path = self.folder.join(&file);
        if path.exists() {
            match Shard::open(&path, &self.layout, 0, &OpenFiles::new()) {
                Ok(shard) => {
                    let images = shard.images;
                    self.take_in(&shard, ShardEntry { file, images })?;
                    changed = true;
                }
                Err(error) => log::warn!("{error}; the index does not list it, so it will be replaced"),
            }
        }
        if changed {
            self.write_index()?;
        }
        let names = &self.names;
        self.journal.retain(|name| !names.contains(name));
        if self.journal.len() == 0 {
            self.journal.clear()?;
        }
        let pending: Vec<String> = self.journal.names().map(String::from).collect();
        self.names.extend(pending);
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            if path.to_string_lossy().ends_with(UNFINISHED) {
                let _ = std::fs::remove_file(path);
            }
        }
        if self.journal.len() >= self.images_per_shard { self.seal() } else { Ok(()) }
    }

    fn take_in(&mut self, shard: &Shard, entry: ShardEntry) -> Result<()> {
        if shard.images != entry.images {
            return Err(Error::format(
                &shard.path,
                format!("{} images, but index.json says {}; it is from another store", shard.images, entry.images),
            ));
        }
        for name in shard.names()?.split('\n').take(shard.images) {
            if !self.names.insert(name.to_string()) {
                return Err(Error::format(&shard.path, format!("holds '{name}', which another shard holds too")));
            }
        }
        self.index.shards.push(entry);
        Ok(())
    }

    fn next_file(&self) -> String {
        let number = |entry: &ShardEntry| entry.file.strip_prefix("shard-")?.split('.').next()?.parse::<usize>().ok();
        let next = self.index.shards.iter().filter_map(number).max().map_or(0, |last| last + 1);
        ShardEntry::file_name(next)
    }

    /// The store's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the store already has this image.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// How many images the store has.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the store has no image yet.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Appends an image's regions. Once this returns, a kill cannot lose them.
    ///
    /// # Errors
    /// Returns an error if the image is already there, the regions do not fit the store, or the disk is full.
    pub fn push(&mut self, name: &str, regions: &Regions) -> Result<()> {
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\n') {
            return Err(Error::Argument(format!("'{}' cannot be an image's name in a store", name.escape_debug())));
        }
        if self.contains(name) {
            return Err(Error::Argument(format!("'{name}' is already in {}", self.folder.display())));
        }
        if let Some(fault) = regions.fault(&self.index.info) {
            return Err(Error::Argument(format!("regions of '{name}': {fault}")));
        }
        self.journal.append(name, &self.layout.encode(regions))?;
        self.names.insert(name.to_string());
        if self.journal.len() >= self.images_per_shard { self.seal() } else { Ok(()) }
    }

    /// Turns the journal into a shard.
    fn seal(&mut self) -> Result<()> {
        let file = self.next_file();
        let names: Vec<String> = self.journal.names().map(String::from).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let journal = &mut self.journal;
        write_shard(&self.folder.join(&file), &self.layout, &names, |image, range, bytes| {
            journal.part(image, range, bytes)
        })?;
        self.index.shards.push(ShardEntry { file, images: names.len() });
        self.write_index()?;
        self.journal.clear()
    }

    /// Writes the index after a change of the shards, without the table of names, which would be of the shards before.
    fn write_index(&mut self) -> Result<()> {
        let names = self.folder.join(NAMES_FILE);
        match std::fs::remove_file(&names) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&names)(error)),
            _ => self.index.write(&self.folder),
        }
    }

    /// Writes what is left into a last shard, writes the table of names, and removes the journal. Opening the folder again
    /// allows adding more.
    ///
    /// # Errors
    /// Returns an error if the disk is full.
    pub fn finish(mut self) -> Result<StoreSummary> {
        if self.journal.len() > 0 {
            self.seal()?;
        }
        let store = FeatureStore::open(&self.folder)?;
        store.write_names()?;
        self.journal.remove()?;
        Ok(StoreSummary::of(&store, self.folder))
    }
}

fn check_info(info: &StoreInfo) -> Result<()> {
    if !(1..=MOST).contains(&info.regions) || !(1..=MOST).contains(&info.feature_dim) {
        return Err(Error::Argument(format!("a store of {} regions × {} values", info.regions, info.feature_dim)));
    }
    Ok(())
}

/// Refuses a folder with files that is not a store, so that a mistyped output folder is not polluted.
fn refuse_foreign(folder: &Path) -> Result<()> {
    if let Some(reason) = parts::unmerged(folder) {
        return Err(Error::format(folder, reason));
    }
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        let name = name.to_string_lossy();
        if !Journal::is_journal(&name) && name != parts::LIST_FILE && !name.ends_with(UNFINISHED) {
            return Err(Error::format(
                folder,
                format!("holds '{name}' and no index.json, so it is not a feature store; choose an empty folder"),
            ));
        }
    }
    Ok(())
}
