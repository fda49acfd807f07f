//! Where a store lies: one folder, or several that are read as one.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The folders of a store. One is read from and written to JSON as a text, several as a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct StoreFolders(Vec<PathBuf>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl StoreFolders {
    /// The folders, in the order in which they were named.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// The same folders as absolute paths.
    #[must_use]
    pub fn absolute(&self) -> Self {
        self.0.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect()
    }
}

impl std::fmt::Display for StoreFolders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&names.join(" and "))
    }
}

impl From<OneOrMany> for StoreFolders {
    fn from(folders: OneOrMany) -> Self {
        match folders {
            OneOrMany::One(folder) => Self(vec![folder]),
            OneOrMany::Many(folders) => Self(folders),
        }
    }
}

impl From<StoreFolders> for OneOrMany {
    fn from(StoreFolders(mut folders): StoreFolders) -> Self {
        if folders.len() == 1 { Self::One(folders.remove(0)) } else { Self::Many(folders) }
    }
}

impl<P: AsRef<Path>> From<P> for StoreFolders {
    fn from(folder: P) -> Self {
        Self(vec![folder.as_ref().to_path_buf()])
    }
}

impl From<&StoreFolders> for StoreFolders {
    fn from(folders: &StoreFolders) -> Self {
        folders.clone()
    }
}

impl FromIterator<PathBuf> for StoreFolders {
    fn from_iter<I: IntoIterator<Item = PathBuf>>(folders: I) -> Self {
        Self(folders.into_iter().collect())
    }
}
