//! A caption file with its splits and features, tokenised: everything needed to make pairs and batches.

use super::batches::Batch;
use super::names;
use super::pairs::{Pair, PairKind, PairSource};
use super::paths::DataPaths;
use super::splits::{Split, Splits};
use crate::{Error, Result};
use lxmert_core::captions::{Captions, read_hard_negatives};
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use std::collections::HashSet;

/// A caption file with its splits, features and tokens: everything needed to make pairs and batches.
pub struct Dataset {
    /// The captions, without those of images that lack features.
    pub captions: Captions,
    /// The split of each image.
    pub splits: Splits,
    /// The feature store.
    pub store: FeatureStore,
    /// The number in the store of each image of the captions.
    pub store_index: Vec<usize>,
    /// The false, minimally changed variant of each caption.
    pub hard_negatives: Vec<Option<String>>,
    /// How many captions were truncated to the model's length.
    pub truncated: usize,
    /// Names of captioned images without features; their captions were left out.
    pub missing: Vec<String>,
    regions: usize,
    pad: u32,
    tokens: Vec<Vec<u32>>,
    hard_tokens: Vec<Vec<u32>>,
}

/// How to load a [`Dataset`].
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included.
    pub max_length: usize,
    /// Regions per image, best first; `None` for all in the store.
    pub regions: Option<usize>,
    /// Seed of the split, if the data does not define one.
    pub seed: u64,
    /// Whether any number of captioned images may lack features.
    pub allow_missing_images: bool,
    /// The splits that must have an image: all three to train, one to measure it.
    pub needed: Vec<Split>,
}

/// Captioned images with their splits and features, before tokenisation.
pub struct CaptionedImages {
    /// The captions, without those of images that lack features.
    pub captions: Captions,
    /// The split of each image.
    pub splits: Splits,
    /// The feature store.
    pub store: FeatureStore,
    /// The number in the store of each image of the captions; `None` if it lacks features.
    pub store_index: Vec<Option<usize>>,
    /// The false, minimally changed variant of each caption.
    pub hard_negatives: Vec<Option<String>>,
    /// Names of captioned images without features; their captions were left out.
    pub missing: Vec<String>,
}

impl CaptionedImages {
    /// Reads captions, splits and hard negatives, and opens the store. Logs what was repaired or left out.
    ///
    /// # Errors
    /// Returns an error if a file cannot be parsed, the store is missing, or too many images lack features.
    pub fn read(paths: &DataPaths, needed: &[Split], seed: u64, allow_missing_images: bool) -> Result<Self> {
        let mut captions = Captions::read(&paths.captions)?;
        paths.check_features()?;
        let store = FeatureStore::open(&paths.features)?;
        if store.is_unfinished() {
            log::warn!("{}: extraction has not finished; images may be missing", paths.features);
        }
        let mut hard_negatives = match &paths.hard_negatives {
            Some(path) => read_hard_negatives(path, &captions)?,
            None => vec![None; captions.captions.len()],
        };

        let (found, missing) = {
            let found = names::find_all(&store, &captions.images, allow_missing_images)?;
            let without = captions.images.iter().zip(&found).filter(|(_, found)| found.is_none());
            let missing = without.map(|(name, _)| name.clone()).collect();
            (found, missing)
        };
        let splits = {
            let all = Splits::choose(&captions, paths.splits.as_deref(), seed, needed)?;
            let of = all.of.iter().zip(&found).map(|(split, found)| found.and(*split)).collect();
            Splits { of, source: all.source }
        };
        // Drop captions of images without features; images keep their numbers.
        let keep: Vec<bool> = captions.captions.iter().map(|c| found[c.image].is_some()).collect();
        let mut kept = keep.iter();
        captions.captions.retain(|_| kept.next().copied().unwrap_or(false));
        let mut kept = keep.iter();
        hard_negatives.retain(|_| kept.next().copied().unwrap_or(false));
        let unused = splits.of.iter().zip(&found).filter(|(s, f)| s.is_none() && f.is_some()).count();
        if unused > 0 {
            log::warn!("{unused} captioned images are in no split of {} and were left out", splits.source);
        }
        for &split in needed {
            if splits.images(split).next().is_none() {
                return Err(Error::Argument(format!(
                    "no image of the {split} split has features in {}",
                    paths.features
                )));
            }
        }
        let mut texts = captions.captions.iter().map(|caption| caption.text.as_str());
        let first = texts.next().unwrap_or_default();
        if texts.all(|text| text == first) && hard_negatives.iter().all(Option::is_none) {
            return Err(Error::Argument(format!(
                "{}: every caption is '{first}', so there are no mismatched pairs and nothing to learn",
                paths.captions.display()
            )));
        }
        let alike = needed.iter().filter(|split| !has_mismatches(&captions, &splits, **split));
        let alike: Vec<String> = alike.map(ToString::to_string).collect();
        if !alike.is_empty() {
            log::warn!(
                "{}: no mismatched pair is possible in {}: all its images have the same captions",
                paths.captions.display(),
                alike.join(", ")
            );
        }
        Ok(Self { captions, splits, store, store_index: found, hard_negatives, missing })
    }
}

/// Whether a split has an image, and a sentence of another image that is not also its own.
fn has_mismatches(captions: &Captions, splits: &Splits, split: Split) -> bool {
    let (mut images, mut texts, mut pairs) = (HashSet::new(), HashSet::new(), HashSet::new());
    for caption in splits.captions(captions, split).into_iter().map(|c| &captions.captions[c]) {
        images.insert(caption.image);
        texts.insert(caption.text.as_str());
        pairs.insert((caption.image, caption.text.as_str()));
    }
    images.len() * texts.len() > pairs.len()
}

impl Dataset {
    /// Reads the captioned images ([`CaptionedImages::read`]) and tokenises every sentence once.
    ///
    /// # Errors
    /// See [`CaptionedImages::read`].
    pub fn load(paths: &DataPaths, text: &WordPiece, options: &LoadOptions) -> Result<Self> {
        let CaptionedImages { captions, splits, store, store_index, hard_negatives, missing } =
            CaptionedImages::read(paths, &options.needed, options.seed, options.allow_missing_images)?;
        let mut truncated = 0;
        let mut encode = |sentence: &str| -> Result<Vec<u32>> {
            let encoding = text.encode(sentence, options.max_length)?;
            truncated += usize::from(encoding.truncated > 0);
            Ok(encoding.ids)
        };
        let tokens = captions.captions.iter().map(|c| encode(&c.text)).collect::<Result<_>>()?;
        let hard_tokens =
            hard_negatives.iter().map(|h| h.as_deref().map_or(Ok(Vec::new()), &mut encode)).collect::<Result<_>>()?;
        if truncated > 0 {
            log::warn!("{truncated} captions are longer than --max-length {} and were truncated", options.max_length);
        }
        let regions = options.regions.map_or(store.info().regions, |n| n.min(store.info().regions));
        let store_index = store_index.into_iter().map(|index| index.unwrap_or(usize::MAX)).collect();
        Ok(Self {
            captions,
            splits,
            store,
            store_index,
            hard_negatives,
            truncated,
            missing,
            regions,
            pad: text.special().pad,
            tokens,
            hard_tokens,
        })
    }

    /// Regions per image in a batch.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// Width of a region's feature vector.
    pub fn feature_dim(&self) -> usize {
        self.store.info().feature_dim
    }

    /// The pairs of one split.
    pub fn pairs(&self, split: Split) -> PairSource {
        let captions = self.splits.captions(&self.captions, split);
        let describe = |c: usize| {
            let caption = &self.captions.captions[c];
            (c, caption.image, caption.text.as_str(), self.hard_negatives[c].is_some())
        };
        PairSource::new(split, captions.into_iter().map(describe))
    }

    /// The sentence of a pair.
    pub fn sentence(&self, pair: &Pair) -> &str {
        match (pair.kind, &self.hard_negatives[pair.caption]) {
            (PairKind::Hard, Some(sentence)) => sentence,
            _ => &self.captions.captions[pair.caption].text,
        }
    }

    /// The image name of a pair, as in the caption file.
    pub fn image_name(&self, pair: &Pair) -> &str {
        &self.captions.images[pair.image]
    }

    /// Reads a batch of pairs.
    ///
    /// # Errors
    /// Returns an error if the store is damaged.
    pub fn read(&self, pairs: &[Pair]) -> Result<Batch> {
        let rows: Vec<_> = pairs.iter().map(|pair| (self.store_index[pair.image], self.tokens(pair))).collect();
        Ok(Batch::read(&self.store, self.regions, &rows, self.pad)?)
    }

    /// The WordPiece ids of a pair's sentence.
    pub fn tokens(&self, pair: &Pair) -> &[u32] {
        match pair.kind {
            PairKind::Hard => &self.hard_tokens[pair.caption],
            _ => &self.tokens[pair.caption],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::tests::store_of;
    use super::*;

    /// Six images, each with a row of `caption`, and a store of their regions.
    fn read(folder: &std::path::Path, caption: impl Fn(usize) -> String) -> Result<CaptionedImages> {
        let names: Vec<String> = (0..6).map(|i| format!("{i}.jpg")).collect();
        let rows: String = names.iter().enumerate().map(|(i, name)| format!("{name}| 0| {}\n", caption(i))).collect();
        std::fs::write(folder.join("results.csv"), rows).unwrap();
        let features = folder.join("features");
        store_of(&features, &names.iter().map(String::as_str).collect::<Vec<_>>());
        CaptionedImages::read(&DataPaths::of_files(folder.join("results.csv"), None, features), &Split::ALL, 0, false)
    }

    #[test]
    fn rejects_captions_without_a_mismatched_pair() {
        let folder = tempfile::tempdir().unwrap();
        let error = read(folder.path(), |_| "A dog .".into()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("results.csv") && error.contains("no mismatched pair"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path(), |i| format!("Dog {i} .")).unwrap().captions.captions.len(), 6);
    }

    #[test]
    fn a_mismatched_pair_needs_a_sentence_that_an_image_lacks() {
        let mismatched = |rows: &str| {
            let captions = Captions::of_text("x".as_ref(), rows).unwrap();
            let splits = Splits { of: vec![Some(Split::Train); captions.images.len()], source: String::new() };
            has_mismatches(&captions, &splits, Split::Train)
        };
        assert!(!mismatched("a.jpg| 0| x\na.jpg| 1| y\n"));
        assert!(!mismatched("a.jpg| 0| x\na.jpg| 1| y\nb.jpg| 0| y\nb.jpg| 1| x\n"));
        assert!(mismatched("a.jpg| 0| x\na.jpg| 1| y\nb.jpg| 0| x\n"));
    }
}
