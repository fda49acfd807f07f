//! What tasks over files of examples share: three splits with their images' regions, and one loop over a split.

use crate::data::batches::{self, Batch};
use crate::data::image_examples::{ImageExample, ImageExamples};
use crate::data::paths::Data;
use crate::data::splits::Split;
use crate::evaluate::{Evaluation, share_out};
use crate::job::Job;
use crate::recipe::Recipe;
use crate::{Error, Result};
use indicatif::ProgressBar;
use lxmert_core::features::FeatureStore;
use lxmert_core::pretrained::Preprocessing;
use lxmert_core::text::WordPiece;
use std::path::{Path, PathBuf};

/// The examples of a training run.
pub struct ExampleSplits<E, const IMAGES: usize> {
    /// The images' regions.
    pub store: FeatureStore,
    /// Regions per image.
    pub regions: usize,
    /// Examples to train on.
    pub train: ImageExamples<E, IMAGES>,
    /// Examples that choose the best epoch.
    pub validation: ImageExamples<E, IMAGES>,
    /// Examples that are measured, or predicted, at the end.
    pub test: ImageExamples<E, IMAGES>,
    /// The training examples that are learnt from.
    pub learnt: Vec<usize>,
}

/// A batch of training examples.
pub struct ExampleBatch {
    /// Their numbers.
    pub examples: Vec<usize>,
    /// Their images and sentences; a row for each image.
    pub inputs: Batch,
}

impl<E: ImageExample<IMAGES>, const IMAGES: usize> ExampleSplits<E, IMAGES> {
    /// Reads the job's files. Training learns from the labelled examples that `learn` says yes to.
    ///
    /// # Errors
    /// When a file cannot be understood, too many images have no features, or nothing is left to train or to validate on.
    pub fn load(job: &Job, text: &WordPiece, learn: impl Fn(&E) -> bool) -> Result<Self> {
        let paths = job.data.examples()?;
        let store = FeatureStore::open(&paths.features)?;
        let text = (text, job.recipe.max_length);
        let read = |split, files: &[PathBuf]| {
            ImageExamples::<E, IMAGES>::read(split, files, &store, text, job.allow_missing_images)
        };
        let train = read(Split::Train, &paths.train)?;
        let (validation, test) = (read(Split::Val, &paths.valid)?, read(Split::Test, &paths.test)?);
        let learnt: Vec<usize> =
            (0..train.len()).filter(|&i| train.examples()[i].labelled() && learn(&train.examples()[i])).collect();
        for (what, files, usable) in [
            ("train", &paths.train, !learnt.is_empty()),
            ("validate", &paths.valid, validation.examples().iter().any(E::labelled)),
        ] {
            if !usable {
                let first = files.first().map_or(Path::new("no file"), PathBuf::as_path);
                return Err(Error::file(first, format!("no {} with a label to {what} on", E::NOUN)));
            }
        }
        let regions = job.recipe.regions_of(store.info().regions);
        Ok(Self { store, regions, train, validation, test, learnt })
    }

    /// The test examples of files and a store that a checkpoint is measured on, and how many regions an image has there.
    ///
    /// # Errors
    /// As [`ImageExamples::read`], and when the data is captions.
    pub fn test_split(
        data: &Data,
        store: &FeatureStore,
        (text, preprocessing): (&WordPiece, &Preprocessing),
        allow_missing_images: bool,
    ) -> Result<(ImageExamples<E, IMAGES>, usize)> {
        let text = (text, preprocessing.max_length);
        let set = ImageExamples::read(Split::Test, &data.examples()?.test, store, text, allow_missing_images)?;
        Ok((set, preprocessing.regions.min(store.info().regions)))
    }

    /// Lines on how many examples there are, for the start of a run.
    pub fn introduction(&self, max_length: usize) -> Vec<String> {
        let noun = E::NOUN;
        let mut lines = vec![
            format!(
                "{} training {noun}s about {} images, {} to validate, {} to test",
                self.learnt.len(),
                self.train.num_images(),
                self.validation.len(),
                self.test.len(),
            ),
            format!("{} regions of {} numbers", self.regions, self.store.info().feature_dim),
        ];
        let cut = self.train.truncated() + self.validation.truncated() + self.test.truncated();
        if cut > 0 {
            lines.push(format!("{cut} {noun}s are longer than --max-length {max_length} and were cut"));
        }
        lines
    }

    /// The splits' sizes as a Markdown table.
    pub fn table(&self) -> String {
        let (train, validation, test) = (self.learnt.len(), self.validation.len(), self.test.len());
        format!(
            "| split | {}s |\n| --- | ---: |\n| train | {train} |\n| validation | {validation} |\n| test | {test} |\n",
            E::NOUN
        )
    }

    /// Training batches per epoch.
    pub fn batches_per_epoch(&self, batch_size: usize) -> usize {
        self.learnt.len().div_ceil(batch_size)
    }

    /// The batches of an epoch.
    pub fn epoch(&self, &Recipe { seed, batch_size, .. }: &Recipe, epoch: u64) -> Vec<Vec<usize>> {
        let order = batches::shuffled(&self.learnt, seed, epoch);
        batches::plan(&order, |&example| self.train.tokens(example).len(), batch_size, seed, epoch)
    }

    /// Reads a training batch.
    ///
    /// # Errors
    /// When the store is damaged.
    pub fn read(&self, examples: Vec<usize>) -> Result<ExampleBatch> {
        Ok(ExampleBatch { inputs: self.train.batch(&self.store, self.regions, &examples)?, examples })
    }
}

/// Numbers that `work` makes of each example of `set`: it is called with batches of about equally long sentences, the examples'
/// numbers and their inputs, and gives as many numbers for each of them. The batches are shared out among the ranks. Gives, in the
/// batches' order, each example's number and what was made of it. `place`: the store, and regions per image.
///
/// # Errors
/// The first error of reading or of `work`, or when Ctrl-C was pressed.
pub fn judge_all<E: Sync, const IMAGES: usize>(
    set: &ImageExamples<E, IMAGES>,
    (store, regions): (&FeatureStore, usize),
    how: Evaluation,
    bar: &ProgressBar,
    mut work: impl FnMut(&[usize], &Batch) -> Result<Vec<f64>>,
) -> Result<Vec<(usize, Vec<f64>)>> {
    let all: Vec<usize> = (0..set.len()).collect();
    let order = batches::plan_in_order(&all, |&i| set.tokens(i).len(), how.batch_size);
    let found = share_out(
        order.clone(),
        |examples: Vec<usize>| Ok((set.batch(store, regions, &examples)?, examples)),
        |_, (inputs, examples)| {
            let made = work(&examples, &inputs)?;
            bar.inc(examples.len() as u64);
            Ok(made)
        },
    )?;
    let each = |(examples, numbers): (&Vec<usize>, &Vec<f64>)| {
        let width = (numbers.len() / examples.len().max(1)).max(1);
        examples.iter().copied().zip(numbers.chunks(width).map(<[f64]>::to_vec)).collect::<Vec<_>>()
    };
    Ok(order.iter().zip(&found).flat_map(each).collect())
}
