//! Sentences about images, from any number of files: tokenised, with their images found in a feature store.
//!
//! A reader of a benchmark's files implements [`ImageExample`] for the content of a row and uses a [`Collector`] for
//! the checks that every reader needs; [`ImageExamples`] does the rest.

use super::batches::Batch;
use super::names;
use super::sentences::Sentences;
use super::splits::Split;
use crate::{Error, Result};
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// An example in a file: a sentence about `IMAGES` images.
pub trait ImageExample<const IMAGES: usize>: Sized {
    /// What messages call an example, in the singular.
    const NOUN: &'static str;

    /// Reads a file: the images' names, and the examples. `split` is the split to read; it matters only if one file
    /// holds several splits.
    ///
    /// # Errors
    /// Returns an error if the file cannot be parsed.
    fn read(path: &Path, split: Split) -> Result<(Vec<String>, Vec<Self>)>;

    /// Its images, as indices into the file's names.
    fn images(&self) -> [usize; IMAGES];

    /// Its sentence.
    fn sentence(&self) -> &str;

    /// Whether the file contains the label; false for the hidden labels of a test split.
    fn labelled(&self) -> bool;
}

/// Collects a file's examples. Images are numbered in order of first appearance.
pub struct Collector<E, const IMAGES: usize> {
    names: Vec<String>,
    numbers: HashMap<String, usize>,
    ids: HashSet<String>,
    examples: Vec<E>,
}

impl<E, const IMAGES: usize> Default for Collector<E, IMAGES> {
    fn default() -> Self {
        Self { names: Vec::new(), numbers: HashMap::new(), ids: HashSet::new(), examples: Vec::new() }
    }
}

impl<E: ImageExample<IMAGES>, const IMAGES: usize> Collector<E, IMAGES> {
    /// Adds the example that `make` builds from its images' numbers.
    ///
    /// # Errors
    /// The reason, if the sentence or an image's name is empty, or the id was used before.
    pub fn push(
        &mut self,
        id: impl Display,
        images: [&str; IMAGES],
        make: impl FnOnce([usize; IMAGES]) -> E,
    ) -> std::result::Result<(), String> {
        let numbers = images.map(|name| match self.numbers.get(name) {
            Some(&number) => number,
            None => {
                self.names.push(name.to_string());
                self.numbers.insert(name.to_string(), self.names.len() - 1);
                self.names.len() - 1
            }
        });
        let example = make(numbers);
        if example.sentence().trim().is_empty() {
            return Err(format!("{} {id} is empty", E::NOUN));
        }
        if images.contains(&"") {
            return Err(format!("{} {id} names no image", E::NOUN));
        }
        if !self.ids.insert(id.to_string()) {
            return Err(format!("{} {id} appears twice", E::NOUN));
        }
        self.examples.push(example);
        Ok(())
    }

    /// Returns the images' names and the examples.
    ///
    /// # Errors
    /// Returns an error if there is no example; `path` is for the message.
    pub fn finish(self, path: &Path) -> Result<(Vec<String>, Vec<E>)> {
        if self.examples.is_empty() {
            return Err(Error::file(path, format!("the file holds no {}", E::NOUN)));
        }
        Ok((self.names, self.examples))
    }
}

/// The examples of one or more files, in order, without those about an image that lacks features.
#[derive(Debug)]
pub struct ImageExamples<T, const IMAGES: usize> {
    examples: Vec<T>,
    store_index: Vec<[usize; IMAGES]>,
    sentences: Sentences,
    images: usize,
    pad: u32,
}

impl<T: ImageExample<IMAGES>, const IMAGES: usize> ImageExamples<T, IMAGES> {
    /// Reads the examples of `split` from files.
    ///
    /// # Errors
    /// Returns an error if a file cannot be parsed, or too many images lack features.
    pub fn read(
        split: Split,
        files: &[PathBuf],
        store: &FeatureStore,
        (text, max_length): (&WordPiece, usize),
        allow_missing_images: bool,
    ) -> Result<Self> {
        let (mut all, mut store_index, mut images) = (Vec::new(), Vec::new(), 0);
        for path in files {
            let (names, examples) = T::read(path, split)?;
            let found = names::find_all(store, &names, allow_missing_images)?;
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
        Ok(Self { examples: all, store_index, sentences, images, pad: text.special().pad })
    }
}

impl<T, const IMAGES: usize> ImageExamples<T, IMAGES> {
    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// How many images they are about; an image in two files counts twice.
    pub fn num_images(&self) -> usize {
        self.images
    }

    /// The examples.
    pub fn examples(&self) -> &[T] {
        &self.examples
    }

    /// The images of example `index`, as numbers in the store.
    pub fn store_index(&self, index: usize) -> [usize; IMAGES] {
        self.store_index[index]
    }

    /// The WordPieces of example `index`.
    pub fn tokens(&self, index: usize) -> &[u32] {
        self.sentences.ids(index)
    }

    /// How many sentences were truncated to the maximum length.
    pub fn truncated(&self) -> usize {
        self.sentences.truncated()
    }

    /// Reads the regions of these examples' images and pads the sentences. There is one row per image; those of an
    /// example are adjacent.
    ///
    /// # Errors
    /// Returns an error if the store is damaged.
    pub fn batch(&self, store: &FeatureStore, regions: usize, indices: &[usize]) -> Result<Batch> {
        let rows = |&index: &usize| self.store_index[index].map(|image| (image, self.tokens(index)));
        Ok(Batch::read(store, regions, &indices.iter().flat_map(rows).collect::<Vec<_>>(), self.pad)?)
    }
}
