//! What pre-training reads: sentences of three splits with their images' regions, and which tasks they support.

use super::regions::MaskedRegions;
use super::{Example, PretrainingBatch};
use crate::Result;
use crate::data::CaptionedImages;
use crate::data::answers::AnswerTable;
use crate::data::batches::Batch;
use crate::data::paths::Data;
use crate::data::pretraining::{Pretraining, ReadOptions};
use crate::data::splits::Split;
use crate::trainer::Job;
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The weight of each task; 0 leaves it out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskWeights {
    /// Masked words.
    pub words: f64,
    /// Cross-modality matching.
    pub matching: f64,
    /// Masked objects' classes.
    pub objects: f64,
    /// Masked objects' attributes.
    pub attributes: f64,
    /// Masked objects' features.
    pub features: f64,
    /// Image question answering.
    pub answers: f64,
}

impl Default for TaskWeights {
    fn default() -> Self {
        Self { words: 1.0, matching: 1.0, objects: 1.0, attributes: 1.0, features: 1.0, answers: 1.0 }
    }
}

impl TaskWeights {
    const NAMES: [&str; 6] = ["words", "matching", "objects", "attributes", "features", "answers"];

    fn all(&self) -> [(&'static str, f64); 6] {
        let values = [self.words, self.matching, self.objects, self.attributes, self.features, self.answers];
        std::array::from_fn(|i| (Self::NAMES[i], values[i]))
    }

    /// The weight of a task by name.
    pub fn of(&self, name: &str) -> Option<f64> {
        self.all().iter().find(|(known, _)| *known == name).map(|(_, weight)| *weight)
    }

    /// Whether nothing is learnt.
    pub fn all_zero(&self) -> bool {
        self.all().iter().all(|(_, weight)| *weight == 0.0)
    }

    /// Whether regions are masked.
    pub fn any_region(&self) -> bool {
        self.objects + self.attributes + self.features > 0.0
    }

    /// The weights of an epoch, from 0: answers are learnt from epoch `from` on (the paper: the last ten of twenty).
    pub fn in_epoch(&self, epoch: u64, from: u64) -> Self {
        Self { answers: if epoch >= from { self.answers } else { 0.0 }, ..*self }
    }

    /// The tasks that `asked` has and these weights have not.
    pub fn left_out(&self, asked: &Self) -> Vec<&'static str> {
        let both = self.all().into_iter().zip(asked.all());
        both.filter(|((_, now), (_, then))| *now == 0.0 && *then > 0.0).map(|((name, _), _)| name).collect()
    }
}

impl fmt::Display for TaskWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = self.all().into_iter().filter(|(_, weight)| *weight > 0.0);
        let texts: Vec<String> =
            on.map(|(name, weight)| if weight == 1.0 { name.into() } else { format!("{name} × {weight}") }).collect();
        f.write_str(&texts.join(", "))
    }
}

/// `words=1,answers=0`: tasks that are not named keep weight 1.
impl FromStr for TaskWeights {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut weights = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wanted = || format!("'{part}': expected TASK=WEIGHT, with TASK one of {}", Self::NAMES.join(", "));
            let (name, value) = part.split_once('=').ok_or_else(wanted)?;
            let value: f64 = value.trim().parse().map_err(|_| wanted())?;
            if !value.is_finite() || value < 0.0 {
                return Err(format!("'{part}': a weight is a number of at least 0"));
            }
            let place = match name.trim() {
                "words" => &mut weights.words,
                "matching" => &mut weights.matching,
                "objects" => &mut weights.objects,
                "attributes" => &mut weights.attributes,
                "features" => &mut weights.features,
                "answers" => &mut weights.answers,
                _ => return Err(wanted()),
            };
            *place = value;
        }
        Ok(weights)
    }
}

/// The sentences of the three splits.
pub struct Splits {
    /// The images' regions.
    pub store: FeatureStore,
    /// The answers that questions choose from.
    pub answers: Option<AnswerTable>,
    /// Sentences to learn from.
    pub train: Pretraining,
    /// Sentences that choose the best epoch.
    pub validation: Pretraining,
    /// Sentences that are measured at the end.
    pub test: Pretraining,
}

impl Splits {
    /// Reads the job's data: the original's JSON files, or captioned images.
    ///
    /// # Errors
    /// When a file cannot be understood, or too many images have no features.
    pub fn load(job: &Job, text: &WordPiece) -> Result<Self> {
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
                let read = |files| Pretraining::read(files, &store, options(answers.as_ref()));
                let (train, validation, test) = (read(&paths.train)?, read(&paths.valid)?, read(&paths.test)?);
                Ok(Self { store, answers, train, validation, test })
            }
            Data::Captions(paths) => {
                let CaptionedImages { captions, splits, store, .. } =
                    CaptionedImages::read(paths, job.recipe.seed, job.allow_missing_images)?;
                let read = |split| {
                    let wanted = splits.captions(&captions, split);
                    Pretraining::from_captions(&captions, &wanted, &store, options(None))
                };
                let (train, validation, test) = (read(Split::Train)?, read(Split::Val)?, read(Split::Test)?);
                Ok(Self { answers: None, train, validation, test, store })
            }
        }
    }

    /// `asked` without the tasks that the data has nothing for.
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
    /// When the store is damaged.
    pub fn read(&self, split: &Pretraining, examples: Vec<Example>, regions: usize) -> Result<PretrainingBatch> {
        let images: Vec<usize> = examples.iter().map(|example| split.store_index(example.image)).collect();
        let rows: Vec<(usize, &[u32])> =
            images.iter().zip(&examples).map(|(&image, example)| (image, split.tokens(example.sentence))).collect();
        let inputs = Batch::read(&self.store, regions, &rows)?;
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

    /// What a user should know at the start.
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
            lines.push(format!("{} of them are questions with an answer of the table", self.train.answered()));
        }
        if self.train.truncated() > 0 {
            lines.push(format!("{} sentences are longer than --max-length and were cut", self.train.truncated()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_by_name_and_told_again() {
        let weights: TaskWeights = "answers=0, words=2".parse().unwrap();
        assert_eq!(weights, TaskWeights { answers: 0.0, words: 2.0, ..TaskWeights::default() });
        assert_eq!(weights.to_string(), "words × 2, matching, objects, attributes, features");
        assert_eq!(weights.left_out(&TaskWeights::default()), ["answers"]);
        for (text, reason) in [("word=1", "TASK one of words"), ("words", "TASK=WEIGHT"), ("words=-1", "at least 0")] {
            assert!(text.parse::<TaskWeights>().unwrap_err().contains(reason), "{text}");
        }
    }

    #[test]
    fn answers_wait_for_their_epoch() {
        let weights = TaskWeights { answers: 2.0, ..TaskWeights::default() };
        assert_eq!((weights.in_epoch(9, 10).answers, weights.in_epoch(10, 10).answers), (0.0, 2.0));
    }
}
