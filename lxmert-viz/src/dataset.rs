//! A data set, opened: captions, splits, regions and photos.

use crate::explain::scorer::{PairInput, keep_regions};
use crate::places::Places;
use crate::{Error, Result, photo};
use image::RgbImage;
use lxmert_core::captions::{Captions, image_folder_of, read_hard_negatives};
use lxmert_core::features::{FeatureStore, Regions};
use lxmert_core::image_names::{ImageFolder, NameFinder};
use lxmert_train::data::pairs::{Pair, PairKind, PairSource};
use lxmert_train::data::splits::{Split, Splits};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Captions, splits and features, opened. A run on questions or statements has features alone.
pub struct DataSet {
    /// Where they came from.
    pub places: Places,
    /// The regions of the images.
    pub store: FeatureStore,
    captioned: Option<Captioned>,
    images: PathBuf,
    /// The most regions of an image that the model looks at.
    regions: usize,
}

struct Captioned {
    captions: Captions,
    splits: Splits,
    hard: Vec<Option<String>>,
    /// The number in the store of each image that is there.
    stored: HashMap<String, usize>,
}

impl Captioned {
    fn is_stored(&self, image: usize) -> bool {
        self.stored.contains_key(&self.captions.images[image])
    }
}

/// A sentence and an image, with the truth.
#[derive(Debug, Clone)]
pub struct Example {
    /// The image's name.
    pub image: String,
    /// The sentence.
    pub text: String,
    /// Whether it is a caption of the image, and if not, of which kind.
    pub kind: PairKind,
}

impl Example {
    /// Whether a model that gives this probability of a match is right.
    pub fn agrees(&self, probability: f32) -> bool {
        (probability >= 0.5) == (self.kind == PairKind::Matched)
    }
}

impl DataSet {
    /// Opens a data set for a model that looks at `regions` regions of an image.
    ///
    /// # Errors
    /// [`Error::Missing`] with the command that makes what is missing; [`Error::Core`] and [`Error::Train`] when a file is
    /// damaged.
    pub fn open(places: Places, regions: usize) -> Result<Self> {
        let captions = places.captions.iter().map(|path| ("the caption file", path));
        for (what, path) in captions.chain(places.features.paths().iter().map(|path| ("the feature store", path))) {
            if !path.exists() {
                let advice = "run `cargo run -p lxmert-extract` first, or name another by --captions and --features";
                return Err(Error::Missing { what, path: path.clone(), advice: advice.into() });
            }
        }
        let store = FeatureStore::open(&places.features)?;
        let captioned = places.captions.as_deref().map(|path| Captioned::open(path, &places, &store)).transpose()?;
        let images = places.images.clone().or_else(|| match &captioned {
            Some(captioned) => image_folder_of(&places.beside, &captioned.captions.images),
            None => image_folder_of(&places.beside, store.names()),
        });
        let images = images.unwrap_or_else(|| places.beside.clone());
        Ok(Self { places, store, captioned, images, regions })
    }

    fn captioned(&self) -> Result<&Captioned> {
        self.captioned.as_ref().ok_or_else(|| {
            let run = self.places.run.display();
            Error::Argument(format!("{run} was not trained on captions; name a caption file by --captions"))
        })
    }

    /// Whether there are captions.
    pub fn is_captioned(&self) -> bool {
        self.captioned.is_some()
    }

    /// Whether the store holds an image of this name.
    pub fn holds(&self, image: &str) -> bool {
        self.store.find(image).is_some()
    }

    /// The names of the images of a split that the store holds.
    ///
    /// # Errors
    /// [`Error::Argument`] when the data set has no captions.
    pub fn images(&self, split: Split) -> Result<Vec<&str>> {
        let all = self.captioned()?;
        let images = all.splits.images(split).filter(|image| all.is_stored(*image));
        Ok(images.map(|image| all.captions.images[image].as_str()).collect())
    }

    /// The names of the test images that the store holds.
    ///
    /// # Errors
    /// [`Error::Argument`] when the data set has no captions.
    pub fn test_images(&self) -> Result<Vec<&str>> {
        self.images(Split::Test)
    }

    /// The first test image, or the first of the store when there are no captions.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is none.
    pub fn first_image(&self) -> Result<String> {
        let first = match &self.captioned {
            Some(_) => self.test_images()?.first().map(ToString::to_string),
            None => self.store.names().next().map(String::from),
        };
        first.ok_or_else(|| Error::Argument("no test image in the feature store; name one with --image".into()))
    }

    /// The sentences of an image; none when the data set has no captions.
    pub fn captions_of(&self, image: &str) -> Vec<&str> {
        let Some(Captioned { captions, .. }) = &self.captioned else { return Vec::new() };
        let image = NameFinder::new(&captions.images).find(image);
        captions.captions.iter().filter(|c| Some(c.image) == image).map(|c| c.text.as_str()).collect()
    }

    /// The captions of a split whose image the store holds: image, sentence, and its false sibling where there is one.
    ///
    /// # Errors
    /// [`Error::Argument`] when the data set has no captions.
    pub fn captions(&self, split: Split) -> Result<Vec<(&str, &str, Option<&str>)>> {
        let all = self.captioned()?;
        let captions = all.splits.captions(&all.captions, split).into_iter();
        let row = |c: usize| {
            let caption = &all.captions.captions[c];
            let image = all.captions.images[caption.image].as_str();
            all.is_stored(caption.image).then_some((image, caption.text.as_str(), all.hard[c].as_deref()))
        };
        Ok(captions.filter_map(row).collect())
    }

    /// The fixed test pairs: half captions, half captions of other images; and, when there are any, the hard
    /// ones: true captions and minimally changed false ones.
    ///
    /// # Errors
    /// [`Error::Argument`] when the data set has no captions.
    pub fn test_pairs(&self) -> Result<(Vec<Example>, Vec<Example>)> {
        let all = self.captioned()?;
        let Captioned { captions, splits, hard, .. } = all;
        let indices = splits.captions(captions, Split::Test).into_iter();
        let rows = indices.filter(|c| all.is_stored(captions.captions[*c].image)).map(|c| {
            let caption = &captions.captions[c];
            (c, caption.image, caption.text.as_str(), hard[c].is_some())
        });
        let source = PairSource::new(Split::Test, rows);
        let example = |pair: Pair| {
            let caption = &captions.captions[pair.caption];
            let text = match (pair.kind, &hard[pair.caption]) {
                (PairKind::Hard, Some(text)) => text.clone(),
                _ => caption.text.clone(),
            };
            Example { image: captions.images[pair.image].clone(), text, kind: pair.kind }
        };
        Ok((source.fixed().into_iter().map(example).collect(), source.hard().into_iter().map(example).collect()))
    }

    /// The regions of an image that the model looks at: the best ones, as many as it was trained on.
    ///
    /// # Errors
    /// [`Error::Argument`] when the store does not hold it.
    pub fn regions(&self, image: &str) -> Result<Regions> {
        let known = self.captioned.as_ref().and_then(|all| all.stored.get(image).copied());
        let index = known.or_else(|| self.store.find(image)).ok_or_else(|| {
            let some: Vec<&str> = self.store.names().take(3).collect();
            Error::Argument(format!(
                "no image '{image}' in {}; it holds {} images, such as {}",
                self.store.folder().display(),
                self.store.len(),
                some.join(", ")
            ))
        })?;
        let regions = self.store.regions(index)?;
        let kept: Vec<usize> = (0..regions.num_regions().min(self.regions)).collect();
        Ok(if kept.len() < regions.num_regions() { keep_regions(&regions, &kept) } else { regions })
    }

    /// The photo of an image.
    ///
    /// # Errors
    /// [`Error::Missing`] when it is not there; [`Error::Extract`] when it is no picture.
    pub fn photo(&self, image: &str) -> Result<RgbImage> {
        let path = ImageFolder::new(&self.images).locate(image);
        if !path.exists() {
            let advice = "name the folder of the photos with --images".into();
            return Err(Error::Missing { what: "the photo", path, advice });
        }
        photo::read(&path)
    }
}

impl Captioned {
    fn open(path: &Path, places: &Places, store: &FeatureStore) -> Result<Self> {
        let captions = Captions::read(path)?;
        let split_file = places.splits.as_deref().filter(|path| path.is_file());
        let splits = Splits::choose(&captions, split_file, places.seed, &[Split::Test])?;
        let hard = match places.hard_negatives.as_deref().filter(|path| path.is_file()) {
            Some(path) => read_hard_negatives(path, &captions)?,
            None => vec![None; captions.captions.len()],
        };
        let stored = captions.images.iter().filter_map(|name| Some((name.clone(), store.find(name)?))).collect();
        Ok(Self { captions, splits, hard, stored })
    }
}

/// The pairs of `examples` with the regions of each.
pub fn inputs<'a>(examples: &'a [Example], regions: &'a [Regions]) -> Vec<PairInput<'a>> {
    examples.iter().zip(regions).map(|(example, regions)| PairInput { regions, text: &example.text }).collect()
}

/// `count` of `all`, evenly spread from the first on.
pub fn spread<T>(all: &[T], count: usize) -> Vec<&T> {
    let count = count.min(all.len());
    (0..count).map(|i| &all[i * all.len() / count]).collect()
}

/// The stem of an image's name, for file names: letters, digits, `-` and `_`.
pub fn slug(name: &str) -> String {
    let stem = Path::new(name).file_stem().map_or(name.into(), |stem| stem.to_string_lossy());
    let clean: String = stem.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let clean: String = clean.trim_matches('-').chars().take(60).collect();
    if clean.is_empty() { "picture".into() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_takes_evenly_and_never_too_many() {
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(spread(&all, 4), [&0, &2, &5, &7]);
        assert_eq!(spread(&all, 20).len(), 10);
        assert!(spread(&Vec::<u8>::new(), 3).is_empty());
    }

    #[test]
    fn slugs_are_safe_file_names() {
        assert_eq!(slug("a/b/IMG 01.jpeg"), "IMG-01");
        assert_eq!(slug("../.."), "picture");
        assert_eq!(slug("größe.png"), "größe");
    }
}
