//! Questions ready to be put before a model: tokenised, with their images found in a store and their answers as labels.

use super::answers::{AnswerTable, SoftLabel};
use super::batches::Batch;
use super::names::NameFinder;
use super::questions::{Question, Questions};
use super::sentences::Sentences;
use crate::Result;
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use std::path::PathBuf;

/// The questions of one or more files, in their order, without those of images that have no features.
#[derive(Debug, Default)]
pub struct QuestionSet {
    questions: Vec<Question>,
    store_index: Vec<usize>,
    sentences: Sentences,
    targets: Vec<SoftLabel>,
    images: usize,
}

impl QuestionSet {
    /// Reads files of questions; answers are looked up in `answers` as they are written.
    ///
    /// # Errors
    /// When a file cannot be understood (see [`Questions::read`]), or too many images have no features.
    pub fn read(
        files: &[PathBuf],
        store: &FeatureStore,
        answers: &AnswerTable,
        (text, max_length): (&WordPiece, usize),
        allow_missing_images: bool,
    ) -> Result<Self> {
        let finder = NameFinder::new(store);
        let mut set = Self::default();
        for path in files {
            let Questions { images, questions, .. } = Questions::read(path)?;
            let found = finder.find_all(&images, allow_missing_images)?;
            set.images += found.iter().flatten().count();
            for question in questions {
                let Some(index) = found[question.image] else { continue };
                let scores = question.scores.iter().flatten().map(|(answer, score)| (answer.as_str(), *score));
                set.targets.push(answers.soft_label(scores, false));
                set.store_index.push(index);
                set.questions.push(question);
            }
        }
        let sentences: Vec<&str> = set.questions.iter().map(|question| question.sentence.as_str()).collect();
        set.sentences.extend(text, &sentences, max_length)?;
        Ok(set)
    }

    /// How many questions there are.
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// How many images they are about; an image of two files counts twice.
    pub fn num_images(&self) -> usize {
        self.images
    }

    /// The questions.
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    /// The answers of question `index`, as labels of the table; empty where it has none there.
    pub fn target(&self, index: usize) -> &[(u32, f32)] {
        &self.targets[index]
    }

    /// The WordPieces of question `index`.
    pub fn tokens(&self, index: usize) -> &[u32] {
        self.sentences.ids(index)
    }

    /// How many questions were cut to the longest length.
    pub fn truncated(&self) -> usize {
        self.sentences.truncated()
    }

    /// Reads the regions of these questions' images, and pads the questions.
    ///
    /// # Errors
    /// When the store is damaged.
    pub fn batch(&self, store: &FeatureStore, regions: usize, indices: &[usize]) -> Result<Batch> {
        let rows: Vec<_> = indices.iter().map(|&index| (self.store_index[index], self.tokens(index))).collect();
        Batch::read(store, regions, &rows)
    }
}
