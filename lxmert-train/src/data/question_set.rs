//! Questions ready to be put before a model: tokenised, with their images found in a store and their answers as labels.

use super::answers::{AnswerTable, SoftLabel};
use super::image_examples::{ImageExample, ImageExamples};
use super::questions::{Question, Questions};
use crate::Result;
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use std::ops::Deref;
use std::path::{Path, PathBuf};

impl ImageExample<1> for Question {
    fn read(path: &Path) -> Result<(Vec<String>, Vec<Self>)> {
        Questions::read(path).map(|file| (file.images, file.questions))
    }

    fn images(&self) -> [usize; 1] {
        [self.image]
    }

    fn sentence(&self) -> &str {
        &self.sentence
    }
}

/// The questions of one or more files, with their answers as labels of a table.
#[derive(Debug)]
pub struct QuestionSet {
    questions: ImageExamples<Question, 1>,
    targets: Vec<SoftLabel>,
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
        text: (&WordPiece, usize),
        allow_missing_images: bool,
    ) -> Result<Self> {
        let questions = ImageExamples::<Question, 1>::read(files, store, text, allow_missing_images)?;
        let target = |question: &Question| {
            let scores = question.scores.iter().flatten().map(|(answer, score)| (answer.as_str(), *score));
            answers.soft_label(scores, false)
        };
        Ok(Self { targets: questions.examples().iter().map(target).collect(), questions })
    }

    /// The answers of question `index`, as labels of the table; empty where it has none there.
    pub fn target(&self, index: usize) -> &[(u32, f32)] {
        &self.targets[index]
    }
}

impl Deref for QuestionSet {
    type Target = ImageExamples<Question, 1>;

    fn deref(&self) -> &Self::Target {
        &self.questions
    }
}
