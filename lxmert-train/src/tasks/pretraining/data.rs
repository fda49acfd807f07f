//! The data of pre-training: sentences of three splits with their images' regions, and which tasks they support.

use super::regions::MaskedRegions;
use crate::Result;
use crate::data::CaptionedImages;
use crate::data::batches::Batch;
use crate::data::paths::Data;
use crate::data::pretraining::{PretrainingSentences, ReadOptions};
use crate::data::splits::Split;
use crate::job::Job;
use crate::task_weights::TaskWeights;
use lxmert_core::answers::AnswerTable;
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;

/// One sentence with one image: the sentence of example `sentence` and the image of example `image`, which is another
/// example if they do not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Example {
    /// The example that gives the image.
    pub image: usize,
    /// The example that gives the sentence.
    pub sentence: usize,
}

impl Example {
    /// Whether the sentence belongs to the image.
    pub fn matched(self) -> bool {
        self.image == self.sentence
    }
}

/// A batch, before its words and regions are masked.
pub struct PretrainingBatch {
    /// Its examples.
    pub examples: Vec<Example>,
    /// Their images and sentences.
    pub inputs: Batch,
    /// What to predict about the regions.
    pub regions: MaskedRegions,
    /// Per example its question's answers, as labels with scores; empty if there is none to learn from.
    pub answers: Vec<Vec<(u32, f32)>>,
}

/// The sentences of the three splits.
pub struct PretrainingData {
    /// The images' regions.
    pub store: FeatureStore,
    /// The answers to choose from.
    pub answers: Option<AnswerTable>,
    /// Sentences for training.
    pub train: PretrainingSentences,
    /// Sentences for choosing the best epoch.
    pub validation: PretrainingSentences,
    /// Sentences to measure at the end.
    pub test: PretrainingSentences,
    /// `[PAD]`, which pads the shorter sentences of a batch.
    pad: u32,
}

impl PretrainingData {
    /// Reads the job's data: the original's JSON files, or captioned images.
    ///
    /// # Errors
    /// Returns an error if a file cannot be parsed, or too many images lack features.
    pub fn load(job: &Job, text: &WordPiece) -> Result<Self> {
        let pad = text.special().pad;
        let options = |answers| ReadOptions {
            text,
            max_length: job.recipe.max_length,
            answers,
            allow_missing_images: job.allow_missing_images,
        };
        match &job.data {
            Data::Examples(paths) => {
                let store = FeatureStore::open(&paths.features)?;
                let answers = paths.answers.as_deref().map(AnswerTable::read).transpose()?;
                let read = |files| PretrainingSentences::read(files, &store, options(answers.as_ref()));
                let (train, validation, test) = (read(&paths.train)?, read(&paths.valid)?, read(&paths.test)?);
                Ok(Self { store, answers, train, validation, test, pad })
            }
            Data::Captions(paths) => {
                let CaptionedImages { captions, splits, store, .. } =
                    CaptionedImages::read(paths, job.recipe.seed, job.allow_missing_images)?;
                let read = |split| {
                    let wanted = splits.captions(&captions, split);
                    PretrainingSentences::from_captions(&captions, &wanted, &store, options(None))
                };
                let (train, validation, test) = (read(Split::Train)?, read(Split::Val)?, read(Split::Test)?);
                Ok(Self { answers: None, train, validation, test, store, pad })
            }
        }
    }

    /// `asked` without the tasks that the data cannot support.
    pub fn supported(&self, asked: &TaskWeights) -> TaskWeights {
        let info = self.store.info();
        let when = |there: bool, weight: f64| if there { weight } else { 0.0 };
        TaskWeights {
            objects: when(!info.label_names.is_empty(), asked.objects),
            attributes: when(info.has_attributes(), asked.attributes),
            answers: when(self.train.answered() > 0, asked.answers),
            ..*asked
        }
    }

    /// Reads a batch of a split.
    ///
    /// # Errors
    /// Returns an error if the store is damaged.
    pub fn read(
        &self,
        split: &PretrainingSentences,
        examples: Vec<Example>,
        regions: usize,
    ) -> Result<PretrainingBatch> {
        let images: Vec<usize> = examples.iter().map(|example| split.store_index(example.image)).collect();
        let rows: Vec<(usize, &[u32])> =
            images.iter().zip(&examples).map(|(&image, example)| (image, split.tokens(example.sentence))).collect();
        let inputs = Batch::read(&self.store, regions, &rows, self.pad)?;
        let answers = examples.iter().map(|example| {
            let label = split.label(example.sentence).filter(|_| example.matched());
            label.map(<[_]>::to_vec).unwrap_or_default()
        });
        Ok(PretrainingBatch {
            regions: MaskedRegions::read(&self.store, &images, &inputs)?,
            answers: answers.collect(),
            inputs,
            examples,
        })
    }

    /// Notes for the user at the start.
    pub fn introduction(&self) -> Vec<String> {
        let categories: Vec<String> =
            self.train.categories().iter().map(|(name, count, _)| format!("{count} of {name}")).collect();
        let mut lines = vec![format!(
            "{} training sentences ({}) of {} images, {} to validate, {} to test",
            self.train.len(),
            categories.join(", "),
            self.train.num_images(),
            self.validation.len(),
            self.test.len()
        )];
        if self.train.answered() > 0 {
            lines.push(format!("{} of them are questions with an answer in the table", self.train.answered()));
        }
        if self.train.truncated() > 0 {
            lines.push(format!("{} sentences are longer than --max-length and were truncated", self.train.truncated()));
        }
        lines
    }

    /// The splits as a Markdown table.
    pub fn table(&self) -> String {
        let mut table = String::from("| split | images | sentences | with an answer |\n| --- | ---: | ---: | ---: |\n");
        for (name, split) in [("train", &self.train), ("validation", &self.validation), ("test", &self.test)] {
            let (images, sentences, answered) = (split.num_images(), split.len(), split.answered());
            table.push_str(&format!("| {name} | {images} | {sentences} | {answered} |\n"));
        }
        table
    }
}
