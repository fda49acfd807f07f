//! Where a run, its features, its photos and its sentences lie.

use crate::scorer::PairInput;
use crate::{Error, Result, photo};
use image::RgbImage;
use lxmert_core::captions::{CaptionFolder, Captions, image_folder_of, read_hard_negatives};
use lxmert_core::features::{FeatureStore, Regions};
use lxmert_core::image_names::{ImageFolder, NameFinder};
use lxmert_core::workspace::Workspace;
use lxmert_train::data::pairs::{Pair, PairKind, PairSource};
use lxmert_train::data::splits::{Split, Splits};
use std::path::{Path, PathBuf};

/// The folders and files of one data set and the run trained on it.
#[derive(Debug, Clone)]
pub struct Places {
    /// "scenes", "flickr30k": for titles.
    pub name: String,
    /// The run: checkpoints, `metrics.jsonl`, `plots/`.
    pub run: PathBuf,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The feature store.
    pub features: PathBuf,
    /// The folder that the photos' names are relative to; none where it is to be found beside the captions.
    pub images: Option<PathBuf>,
    /// The caption file.
    pub captions: PathBuf,
    /// The split file, when there is one.
    pub splits: Option<PathBuf>,
    /// False captions, when there are any.
    pub hard_negatives: Option<PathBuf>,
    /// The folder with `scenes.json`, when the data set is drawn.
    pub scenes: Option<PathBuf>,
}

impl Places {
    /// The generated scenes.
    pub fn scenes(workspace: &Workspace) -> Self {
        let data = workspace.data("scenes");
        Self {
            name: "scenes".into(),
            run: workspace.run("scenes"),
            checkpoint: workspace.run("scenes").join("best"),
            features: workspace.features("scenes"),
            images: Some(data.join("images")),
            captions: data.join("results.csv"),
            splits: Some(data.join("splits.json")),
            hard_negatives: Some(data.join("hard_negatives.csv")),
            scenes: Some(data),
        }
    }

    /// The run on Flickr30k, whose photos and captions lie in `folder` in any layout that [`CaptionFolder::find`] knows.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is no caption file in the folder.
    pub fn flickr30k(workspace: &Workspace, folder: &Path) -> Result<Self> {
        let CaptionFolder { captions, splits, hard_negatives } =
            CaptionFolder::find(folder).ok_or_else(|| Error::Missing {
                what: "Flickr30k's results.csv",
                path: folder.join("results.csv"),
                advice: "data/README.md says how Flickr30k is laid out".into(),
            })?;
        Ok(Self {
            name: "flickr30k".into(),
            run: workspace.run("flickr30k"),
            checkpoint: workspace.run("flickr30k").join("best"),
            features: workspace.features("flickr30k"),
            images: None,
            captions,
            splits,
            hard_negatives,
            scenes: None,
        })
    }
}

/// The captions, splits and features, opened.
pub struct DataSet {
    /// Where they came from.
    pub places: Places,
    /// The regions of the images.
    pub store: FeatureStore,
    /// The captions.
    pub captions: Captions,
    /// The split of each image.
    pub splits: Splits,
    hard: Vec<Option<String>>,
    /// Per image of the captions: its number in the store, where it is there.
    store_index: Vec<Option<usize>>,
    /// The folder of the photos.
    images: PathBuf,
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

impl DataSet {
    /// Opens a data set. `seed` is that of the training, for data sets without a split file.
    ///
    /// # Errors
    /// [`Error::Missing`] with the command that makes what is missing; [`Error::Core`] and
    /// [`Error::Train`] when a file is damaged.
    pub fn open(places: Places, seed: u64) -> Result<Self> {
        let extract = "run `cargo run -p lxmert-extract` first";
        let needed =
            [("the caption file", &places.captions, extract), ("the feature store", &places.features, extract)];
        for (what, path, advice) in needed {
            if !path.exists() {
                return Err(Error::Missing { what, path: path.clone(), advice: advice.into() });
            }
        }
        let store = FeatureStore::open(&places.features)?;
        let captions = Captions::read(&places.captions)?;
        let split_file = places.splits.as_deref().filter(|path| path.is_file());
        let splits = Splits::choose(&captions, split_file, seed)?;
        let hard = match places.hard_negatives.as_deref().filter(|path| path.is_file()) {
            Some(path) => read_hard_negatives(path, &captions)?,
            None => vec![None; captions.captions.len()],
        };
        let finder = NameFinder::new(store.names());
        let store_index = captions.images.iter().map(|name| finder.find(name)).collect();
        let images = places.images.clone().or_else(|| image_folder_of(&captions.path, &captions.images));
        let images = images.or_else(|| Some(captions.path.parent()?.to_path_buf())).unwrap_or_default();
        Ok(Self { places, store, captions, splits, hard, store_index, images })
    }

    /// The names of the test images that the store holds.
    pub fn test_images(&self) -> Vec<&str> {
        let images = self.splits.images(Split::Test).filter(|image| self.store_index[*image].is_some());
        images.map(|image| self.captions.images[image].as_str()).collect()
    }

    /// The sentences of an image.
    pub fn captions_of(&self, image: &str) -> Vec<&str> {
        let image = NameFinder::new(&self.captions.images).find(image);
        let captions = self.captions.captions.iter();
        captions.filter(|caption| Some(caption.image) == image).map(|caption| caption.text.as_str()).collect()
    }

    /// The fixed test pairs: half captions, half captions of other images; and, when there are any, the hard
    /// ones: true captions and minimally changed false ones.
    pub fn test_pairs(&self) -> (Vec<Example>, Vec<Example>) {
        let indices = self.splits.captions(&self.captions, Split::Test).into_iter();
        let indices = indices.filter(|c| self.store_index[self.captions.captions[*c].image].is_some());
        let rows = indices.map(|c| {
            let caption = &self.captions.captions[c];
            (c, caption.image, caption.text.as_str(), self.hard[c].is_some())
        });
        let source = PairSource::new(Split::Test, rows);
        let example = |pair: Pair| {
            let caption = &self.captions.captions[pair.caption];
            let text = match (pair.kind, &self.hard[pair.caption]) {
                (PairKind::Hard, Some(text)) => text.clone(),
                _ => caption.text.clone(),
            };
            Example { image: self.captions.images[pair.image].clone(), text, kind: pair.kind }
        };
        (source.fixed().into_iter().map(example).collect(), source.hard().into_iter().map(example).collect())
    }

    /// The regions of an image.
    ///
    /// # Errors
    /// [`Error::Argument`] when the store does not hold it.
    pub fn regions(&self, image: &str) -> Result<Regions> {
        let index = NameFinder::new(self.store.names()).find(image).ok_or_else(|| {
            let some: Vec<&str> = self.store.names().iter().take(3).map(String::as_str).collect();
            Error::Argument(format!(
                "no image '{image}' in {}; it holds {} images, such as {}",
                self.store.folder().display(),
                self.store.len(),
                some.join(", ")
            ))
        })?;
        Ok(self.store.regions(index)?)
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
