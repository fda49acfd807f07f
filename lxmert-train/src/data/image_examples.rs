//! Sentences about images, out of many files: tokenised, with their images found in a feature store.

use super::batches::Batch;
use super::names::NameFinder;
use super::sentences::Sentences;
use crate::Result;
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use std::path::{Path, PathBuf};

/// An example in a file: a sentence about `IMAGES` images.
pub trait ImageExample<const IMAGES: usize>: Sized {
    /// Reads a file: the images' names, and the examples.
    ///
    /// # Errors
    /// When the file cannot be understood.
    fn read(path: &Path) -> Result<(Vec<String>, Vec<Self>)>;

    /// Its images, as indices into the file's names.
    fn images(&self) -> [usize; IMAGES];

    /// Its sentence.
    fn sentence(&self) -> &str;
}

/// The examples of one or more files, in their order, without those about an image that has no features.
#[derive(Debug)]
pub struct ImageExamples<T, const IMAGES: usize> {
    examples: Vec<T>,
    store_index: Vec<[usize; IMAGES]>,
    sentences: Sentences,
    images: usize,
}

impl<T: ImageExample<IMAGES>, const IMAGES: usize> ImageExamples<T, IMAGES> {
    /// Reads files of examples.
    ///
    /// # Errors
    /// When a file cannot be understood, or too many images have no features.
    pub fn read(
        files: &[PathBuf],
        store: &FeatureStore,
        text: (&WordPiece, usize),
        allow_missing_images: bool,
    ) -> Result<Self> {
        let read = files.iter().map(|path| T::read(path)).collect::<Result<_>>()?;
        Self::of(read, store, text, allow_missing_images)
    }

    /// The examples that were read from files, each with its images' names.
    ///
    /// # Errors
    /// When too many images have no features.
    pub fn of(
        read: Vec<(Vec<String>, Vec<T>)>,
        store: &FeatureStore,
        (text, max_length): (&WordPiece, usize),
        allow_missing_images: bool,
    ) -> Result<Self> {
        let finder = NameFinder::new(store);
        let (mut all, mut store_index, mut images) = (Vec::new(), Vec::new(), 0);
        for (names, examples) in read {
            let found = finder.find_all(&names, allow_missing_images)?;
            images += found.iter().flatten().count();
            for example in examples {
                let index = example.images().map(|image| found[image]);
                if index.iter().all(Option::is_some) {
                    store_index.push(index.map(|image| image.unwrap_or_default())); // none is absent
                    all.push(example);
                }
            }
        }
        let mut sentences = Sentences::default();
        sentences.extend(text, &all.iter().map(T::sentence).collect::<Vec<_>>(), max_length)?;
        Ok(Self { examples: all, store_index, sentences, images })
    }
}

impl<T, const IMAGES: usize> ImageExamples<T, IMAGES> {
    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// How many images they are about; an image of two files counts twice.
    pub fn num_images(&self) -> usize {
        self.images
    }

    /// The examples.
    pub fn examples(&self) -> &[T] {
        &self.examples
    }

    /// The WordPieces of example `index`.
    pub fn tokens(&self, index: usize) -> &[u32] {
        self.sentences.ids(index)
    }

    /// How many sentences were cut to the longest length.
    pub fn truncated(&self) -> usize {
        self.sentences.truncated()
    }

    /// Reads the regions of these examples' images, and pads the sentences: a row for each image, those of an example one
    /// after the other.
    ///
    /// # Errors
    /// When the store is damaged.
    pub fn batch(&self, store: &FeatureStore, regions: usize, indices: &[usize]) -> Result<Batch> {
        let rows = |&index: &usize| self.store_index[index].map(|image| (image, self.tokens(index)));
        Batch::read(store, regions, &indices.iter().flat_map(rows).collect::<Vec<_>>())
    }
}
