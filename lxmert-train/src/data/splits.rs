//! Which images are for training, validation and test.
//!
//! **Images** are split. If caption rows were split, training would see other captions of nearly every validation
//! image, and validation accuracy would measure memorisation.

use crate::{Error, Result};
use lxmert_core::captions::Captions;
pub use lxmert_core::captions::Split;
use lxmert_core::files::read_json;
use lxmert_core::image_names::NameFinder;
use lxmert_core::procedural::splitmix64;
use serde::Deserialize;
use std::path::Path;

/// The split of every image of a caption file.
#[derive(Debug, Clone)]
pub struct Splits {
    /// The split of each of [`Captions::images`]; `None` for images that the split file omits.
    pub of: Vec<Option<Split>>,
    /// Where the split comes from, for messages.
    pub source: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SplitFile {
    Karpathy { images: Vec<KarpathyEntry> },
    Lists { train: Vec<String>, val: Vec<String>, test: Vec<String> },
}

#[derive(Deserialize)]
struct KarpathyEntry {
    filename: String,
    split: String,
}

impl Splits {
    /// The split from `file`, otherwise the caption file's own, otherwise one drawn by `seed`: a tenth of the images
    /// (at least one) for validation, a tenth for test, the rest for training.
    ///
    /// # Errors
    /// Returns an error if the split file cannot be read, puts an image into two splits, or leaves a split empty.
    pub fn choose(captions: &Captions, file: Option<&Path>, seed: u64) -> Result<Self> {
        let splits = match (file, &captions.splits) {
            (Some(path), _) => Self::read(path, &captions.images)?,
            (None, Some(own)) => {
                Self { of: own.iter().copied().map(Some).collect(), source: captions.path.display().to_string() }
            }
            (None, None) => Self::seeded(&captions.images, seed),
        };
        for split in Split::ALL {
            if splits.images(split).next().is_none() {
                return Err(Error::Argument(format!(
                    "{}: no captioned image is in the {split} split (from {}); at least one image is needed in each of train, val and test",
                    captions.path.display(),
                    splits.source
                )));
            }
        }
        Ok(splits)
    }

    /// Reads `{"train": [names], "val": […], "test": […]}` or Karpathy's JSON.
    ///
    /// # Errors
    /// Returns an error if the file is neither, or puts an image into two splits.
    pub fn read(path: &Path, images: &[String]) -> Result<Self> {
        let file: SplitFile = read_json(path).map_err(|error| match error {
            lxmert_core::Error::Json { source, .. } if source.is_data() => Error::file(
                path,
                "expected {\"train\": [image names], \"val\": […], \"test\": […]} or Karpathy's dataset JSON",
            ),
            other => other.into(),
        })?;
        let mut entries = Vec::new();
        match file {
            SplitFile::Lists { train, val, test } => {
                for (split, names) in [(Split::Train, train), (Split::Val, val), (Split::Test, test)] {
                    entries.extend(names.into_iter().map(|name| (name, split)));
                }
            }
            SplitFile::Karpathy { images } => {
                for KarpathyEntry { filename, split } in images {
                    let split = Split::from_name(&split)
                        .map_err(|reason| Error::file(path, format!("'{filename}': {reason}")))?;
                    entries.push((filename, split));
                }
            }
        }
        let finder = NameFinder::new(images);
        let mut of: Vec<Option<Split>> = vec![None; images.len()];
        for (name, split) in entries {
            let Some(image) = finder.find(&name) else { continue };
            match of[image].replace(split) {
                Some(other) if other != split => {
                    return Err(Error::file(path, format!("'{name}' is in both {other} and {split}")));
                }
                _ => {}
            }
        }
        Ok(Self { of, source: path.display().to_string() })
    }

    /// 80/10/10 by image. Images are ordered by a hash of their name and the seed, so the split depends neither on the
    /// file's order nor on how many captions an image has.
    pub fn seeded(images: &[String], seed: u64) -> Self {
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|&i| (name_hash(&images[i], seed), i));
        let tenth = images.len().div_ceil(10).min(images.len() / 3);
        let mut of = vec![Some(Split::Train); images.len()];
        for (rank, &i) in order.iter().enumerate() {
            if rank < tenth {
                of[i] = Some(Split::Test);
            } else if rank < 2 * tenth {
                of[i] = Some(Split::Val);
            }
        }
        Self { of, source: format!("80/10/10 by image, seed {seed}") }
    }

    /// The images of one split, in file order.
    pub fn images(&self, split: Split) -> impl Iterator<Item = usize> + '_ {
        self.of.iter().enumerate().filter(move |(_, s)| **s == Some(split)).map(|(i, _)| i)
    }

    /// The captions of one split, as indices into [`Captions::captions`], in file order.
    pub fn captions(&self, captions: &Captions, split: Split) -> Vec<usize> {
        (0..captions.captions.len()).filter(|&c| self.of[captions.captions[c].image] == Some(split)).collect()
    }
}

fn name_hash(name: &str, seed: u64) -> u64 {
    name.bytes().fold(splitmix64(seed ^ 0x5911_7000), |h, byte| splitmix64(h ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("{i}.jpg")).collect()
    }

    proptest! {
        #[test]
        fn a_seeded_split_is_complete_and_independent_of_order(n in 3usize..300, seed in any::<u64>()) {
            let images = names(n);
            let splits = Splits::seeded(&images, seed);
            let count = |s| splits.images(s).count();
            prop_assert_eq!(count(Split::Train) + count(Split::Val) + count(Split::Test), n);
            prop_assert!(count(Split::Val) >= 1 && count(Split::Test) >= 1 && count(Split::Train) >= 1);
            prop_assert!(count(Split::Val) == count(Split::Test) && count(Split::Val) <= n.div_ceil(10));
            let reversed: Vec<String> = images.iter().rev().cloned().collect();
            let again = Splits::seeded(&reversed, seed);
            for (i, split) in splits.of.iter().enumerate() {
                prop_assert_eq!(*split, again.of[n - 1 - i]);
            }
        }

        #[test]
        fn no_image_has_captions_in_two_splits(rows in proptest::collection::vec(0usize..20, 30..120), seed in any::<u64>()) {
            // Captions of an image are scattered over the file: row i belongs to image rows[i].
            let mut text = String::new();
            for (i, image) in rows.iter().enumerate() {
                text.push_str(&format!("{image}.jpg| {i}| a caption\n"));
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let captions = Captions::read(file.path()).unwrap();
            prop_assume!(captions.images.len() >= 3);
            let splits = Splits::choose(&captions, None, seed).unwrap();
            let mut seen: HashMap<usize, Split> = HashMap::new();
            let mut total = 0;
            for split in Split::ALL {
                for c in splits.captions(&captions, split) {
                    total += 1;
                    let image = captions.captions[c].image;
                    prop_assert_eq!(*seen.entry(image).or_insert(split), split);
                }
            }
            prop_assert_eq!(total, rows.len());
        }
    }

    #[test]
    fn another_seed_gives_another_split() {
        let images = names(100);
        assert_ne!(Splits::seeded(&images, 0).of, Splits::seeded(&images, 1).of);
    }

    #[test]
    fn reads_both_kinds_of_split_files_and_rejects_contradictions() {
        let images = names(4);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"train":["0.jpg"],"val":["1.jpg"],"test":["2.jpg"]}"#).unwrap();
        let splits = Splits::read(file.path(), &images).unwrap();
        assert_eq!(splits.of, [Some(Split::Train), Some(Split::Val), Some(Split::Test), None]);
        std::fs::write(
            file.path(),
            r#"{"images":[{"filename":"0.jpg","split":"restval"},{"filename":"3.jpg","split":"val"}]}"#,
        )
        .unwrap();
        assert_eq!(Splits::read(file.path(), &images).unwrap().of, [Some(Split::Train), None, None, Some(Split::Val)]);
        std::fs::write(file.path(), r#"{"train":["0.jpg"],"val":["0.jpg"],"test":[]}"#).unwrap();
        let error = Splits::read(file.path(), &images).unwrap_err().to_string();
        assert!(error.contains("'0.jpg' is in both train and val"), "{error}");
    }
}
