//! Sentences for pre-training: captions and questions from many data sets, read from the original's files, or captions
//! alone.
//!
//! The original's JSON (`mscoco_train.json`, `vgnococo.json`, …; airsplay/lxmert) is a list of images, each `{"img_id",
//! "sentf": {"vqa": [sentences], "mscoco": […]}, "labelf": {"vqa": [{"answer": score}, …]}}`: sentences by category
//! and, for categories of questions, the answers in the order of the sentences. An example is one sentence with its
//! image. Files are read entry by entry, and sentences are stored as WordPieces ([`Sentences`]).

use super::names;
use super::rows::{Row, for_each_row};
use super::sentences::Sentences;
use crate::{Error, Result};
use lxmert_core::answers::AnswerTable;
use lxmert_core::captions::Captions;
use lxmert_core::features::FeatureStore;
use lxmert_core::text::WordPiece;
use rand::Rng;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// How many sentences to tokenise at a time.
const CHUNK: usize = 1 << 16;

/// The category of sentences from caption files.
pub const CAPTIONS: &str = "captions";

/// How to read [`PretrainingSentences`].
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions<'a> {
    /// Splits sentences into WordPieces.
    pub text: &'a WordPiece,
    /// Longest sentence in WordPieces, `[CLS]` and `[SEP]` included; 20 in the paper.
    pub max_length: usize,
    /// The answers to choose from in image question answering; if `None`, answers are dropped.
    pub answers: Option<&'a AnswerTable>,
    /// Whether any number of images may lack features.
    pub allow_missing_images: bool,
}

/// One sentence with its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Example {
    image: u32,
    category: u32,
    /// Whether the sentence is a question with known answers.
    labelled: bool,
}

/// Examples for pre-training, numbered from 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PretrainingSentences {
    images: Vec<String>,
    store_index: Vec<usize>,
    categories: Vec<String>,
    examples: Vec<Example>,
    sentences: Sentences,
    labels: Vec<(u32, f32)>,
    label_ends: Vec<u64>,
    answers_dropped: usize,
}

#[derive(Deserialize)]
struct Entry {
    img_id: String,
    sentf: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    labelf: BTreeMap<String, Vec<Option<BTreeMap<String, f32>>>>,
}

impl Row for Entry {
    const FORM: &'static str = r#"{"img_id": "…", "sentf": {"mscoco": ["…"]}, "labelf": {"vqa": [{"yes": 1.0}]}}"#;
}

impl PretrainingSentences {
    /// Reads the original's JSON files one after the other. Sentences of images without features are left out.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read or contains an invalid row (the error names it), if more than 1 % of
    /// the images lack features (unless allowed), or if no sentence is left.
    pub fn read(files: &[PathBuf], store: &FeatureStore, options: ReadOptions) -> Result<Self> {
        let mut builder = Builder::new(store, options);
        for path in files {
            let mut failed = Ok(());
            let read = for_each_row(path, |_, _, entry: Entry| {
                check(&entry)?;
                failed = builder.push_entry(entry);
                failed.is_ok().then_some(()).ok_or_else(String::new)
            });
            failed.and(read)?;
        }
        builder.finish(files)
    }

    /// The captions of a caption file with the numbers `wanted`, as examples without answers.
    ///
    /// # Errors
    /// See [`PretrainingSentences::read`].
    pub fn from_captions(
        captions: &Captions,
        wanted: &[usize],
        store: &FeatureStore,
        options: ReadOptions,
    ) -> Result<Self> {
        let mut builder = Builder::new(store, options);
        for &caption in wanted {
            let Some(caption) = captions.captions.get(caption) else { continue };
            builder.push(&captions.images[caption.image], CAPTIONS, &caption.text, None)?;
        }
        builder.finish(std::slice::from_ref(&captions.path))
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// How many images have sentences.
    pub fn num_images(&self) -> usize {
        self.images.len()
    }

    /// The number in the store of an example's image.
    pub fn store_index(&self, example: usize) -> usize {
        self.store_index[self.examples[example].image as usize]
    }

    /// The name of an example's image.
    pub fn image_name(&self, example: usize) -> &str {
        &self.images[self.examples[example].image as usize]
    }

    /// The category of an example's sentence.
    pub fn category(&self, example: usize) -> &str {
        &self.categories[self.examples[example].category as usize]
    }

    /// The WordPiece ids of an example's sentence, `[CLS]` first and `[SEP]` last.
    pub fn tokens(&self, example: usize) -> &[u32] {
        self.sentences.ids(example)
    }

    /// The answers to an example's question, as labels with scores; `None` if the sentence is not a question. If the
    /// table has none of a question's answers, the label is empty.
    pub fn label(&self, example: usize) -> Option<&[(u32, f32)]> {
        let start = if example == 0 { 0 } else { self.label_ends[example - 1] };
        let label = &self.labels[start as usize..self.label_ends[example] as usize];
        self.examples[example].labelled.then_some(label)
    }

    /// How many sentences each category has, and how many of them have an answer in the table.
    pub fn categories(&self) -> Vec<(&str, usize, usize)> {
        let mut counts: Vec<_> = self.categories.iter().map(|name| (name.as_str(), 0, 0)).collect();
        for (index, example) in self.examples.iter().enumerate() {
            let count = &mut counts[example.category as usize];
            count.1 += 1;
            count.2 += usize::from(self.label(index).is_some_and(|label| !label.is_empty()));
        }
        counts
    }

    /// How many examples have an answer in the table.
    pub fn answered(&self) -> usize {
        self.categories().iter().map(|(_, _, answered)| answered).sum()
    }

    /// How many answers were dropped because the table lacks them.
    pub fn answers_dropped(&self) -> usize {
        self.answers_dropped
    }

    /// How many sentences were truncated to the maximum length.
    pub fn truncated(&self) -> usize {
        self.sentences.truncated()
    }

    /// Another example whose sentence makes a mismatch with this one's image: it belongs to a different image and has
    /// different words. `None` if there is none.
    pub fn mismatch(&self, example: usize, rng: &mut impl Rng) -> Option<usize> {
        let differs = |&other: &usize| {
            self.examples[other].image != self.examples[example].image && self.tokens(other) != self.tokens(example)
        };
        let draw = |_| rng.random_range(0..self.len());
        (0..64).map(draw).find(differs).or_else(|| (0..self.len()).find(differs))
    }
}

/// Checks a row.
fn check(entry: &Entry) -> std::result::Result<(), String> {
    if entry.img_id.is_empty() {
        return Err("img_id is empty".into());
    }
    for (category, labels) in &entry.labelf {
        let sentences = entry.sentf.get(category).map_or(0, Vec::len);
        if sentences != labels.len() {
            let count = labels.len();
            return Err(format!("{}: {sentences} sentences of '{category}', but {count} labels", entry.img_id));
        }
        let scores = labels.iter().flatten().flatten();
        if let Some((answer, score)) = scores.into_iter().find(|(_, score)| !(0.0..=1.0).contains(*score)) {
            return Err(format!("{}: the score of '{answer}' is {score}, not between 0 and 1", entry.img_id));
        }
    }
    match entry.sentf.iter().find(|(_, list)| list.iter().any(|sentence| sentence.trim().is_empty())) {
        Some((category, _)) => Err(format!("{}: an empty sentence of '{category}'", entry.img_id)),
        None => Ok(()),
    }
}

/// Collects examples; sentences are tokenised in large chunks.
struct Builder<'a> {
    store: &'a FeatureStore,
    options: ReadOptions<'a>,
    data: PretrainingSentences,
    waiting: Vec<String>,
    /// Every image, with its number in the data if it has features.
    images: HashMap<String, Option<u32>>,
    categories: HashMap<String, u32>,
}

impl<'a> Builder<'a> {
    fn new(store: &'a FeatureStore, options: ReadOptions<'a>) -> Self {
        Self {
            store,
            options,
            data: PretrainingSentences::default(),
            waiting: Vec::new(),
            images: HashMap::new(),
            categories: HashMap::new(),
        }
    }

    fn push_entry(&mut self, mut entry: Entry) -> Result<()> {
        for (category, sentences) in &entry.sentf {
            let labels = entry.labelf.remove(category);
            for (i, sentence) in sentences.iter().enumerate() {
                // `check` made sure that every sentence of a labelled category has a label.
                let label = labels.as_ref().and_then(|labels| labels.get(i)?.as_ref());
                self.push(&entry.img_id, category, sentence, label)?;
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        image: &str,
        category: &str,
        sentence: &str,
        label: Option<&BTreeMap<String, f32>>,
    ) -> Result<()> {
        let known = self.images.get(image).copied();
        let image = known.unwrap_or_else(|| {
            let found = self.store.find(image).map(|index| {
                self.data.images.push(image.to_string());
                self.data.store_index.push(index);
                self.data.images.len() as u32 - 1
            });
            self.images.insert(image.to_string(), found);
            found
        });
        let Some(image) = image else { return Ok(()) };
        let category = *self.categories.entry(category.to_string()).or_insert_with_key(|name| {
            self.data.categories.push(name.clone());
            self.data.categories.len() as u32 - 1
        });
        let label = label.filter(|_| self.options.answers.is_some());
        if let (Some(scores), Some(table)) = (label, self.options.answers) {
            let labels = table.soft_label(scores.iter().map(|(answer, score)| (answer.as_str(), *score)), true);
            self.data.answers_dropped += scores.len() - labels.len();
            self.data.labels.extend(labels);
        }
        self.data.label_ends.push(self.data.labels.len() as u64);
        self.data.examples.push(Example { image, category, labelled: label.is_some() });
        self.waiting.push(sentence.to_string());
        if self.waiting.len() >= CHUNK { self.tokenise() } else { Ok(()) }
    }

    fn tokenise(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.data.sentences.extend(self.options.text, &waiting, self.options.max_length)
    }

    fn finish(mut self, files: &[PathBuf]) -> Result<PretrainingSentences> {
        self.tokenise()?;
        let mut names: Vec<String> = self.images.into_keys().collect();
        names.sort_unstable(); // so that messages always list the same examples
        names::find_all(self.store, &names, self.options.allow_missing_images)?;
        if self.data.is_empty() {
            let path = files.first().map_or(Path::new("no file"), PathBuf::as_path);
            return Err(Error::file(path, "the files hold no sentence for pre-training"));
        }
        Ok(self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::tests::store_of;
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    struct Fixture {
        folder: tempfile::TempDir,
        store: FeatureStore,
        text: WordPiece,
        answers: AnswerTable,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = store_of(&folder.path().join("store"), &["COCO_train2014_000000000009.jpg", "b.jpg"]);
            let answers = AnswerTable::new(vec!["2".into(), "cat".into(), "yes".into()]).unwrap();
            Self { folder, store, text: WordPiece::bundled().unwrap(), answers }
        }

        fn options(&self) -> ReadOptions<'_> {
            let answers = Some(&self.answers);
            ReadOptions { text: &self.text, max_length: 20, answers, allow_missing_images: false }
        }

        fn read(&self, json: &str, allow_missing_images: bool) -> Result<PretrainingSentences> {
            let path = self.folder.path().join("pretrain.json");
            std::fs::write(&path, json).unwrap();
            PretrainingSentences::read(&[path], &self.store, ReadOptions { allow_missing_images, ..self.options() })
        }
    }

    const TWO_IMAGES: &str = r#"[
        {"img_id": "COCO_train2014_000000000009",
         "sentf": {"mscoco": ["a cat", "two cats"], "vqa": ["What is it?", "How many?", "Why?"]},
         "labelf": {"vqa": [{"a cat": 1, "dog": 0.3}, {"two": 0.6, "2": 1}, {"because": 1}]}},
        {"img_id": "b", "sentf": {"vg": ["a cat"]}, "labelf": {}}]"#;

    #[test]
    fn reads_the_originals_files() {
        let fixture = Fixture::new();
        let data = fixture.read(TWO_IMAGES, false).unwrap();
        assert_eq!((data.len(), data.num_images(), data.answered(), data.answers_dropped()), (6, 2, 2, 3));
        assert_eq!(
            (data.image_name(0), data.store_index(0), data.category(0)),
            ("COCO_train2014_000000000009", 0, "mscoco")
        );
        assert_eq!(data.tokens(0), fixture.text.encode("a cat", 20).unwrap().ids);
        assert_eq!(data.tokens(3), fixture.text.encode("How many?", 20).unwrap().ids);
        let labels: Vec<_> = (0..6).map(|example| data.label(example).map(<[_]>::to_vec)).collect();
        assert_eq!(labels, [None, None, Some(vec![(1, 1.0)]), Some(vec![(0, 1.0)]), Some(vec![]), None]);
        assert_eq!(data.categories(), [("mscoco", 2, 0), ("vqa", 3, 2), ("vg", 1, 0)]);
        assert_eq!((data.image_name(5), data.store_index(5)), ("b", 1));
    }

    #[test]
    fn mismatch_has_another_image_and_other_words() {
        let data = Fixture::new().read(TWO_IMAGES, false).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..50 {
            assert_eq!(data.mismatch(0, &mut rng), None, "the other image has the very same caption");
            assert_eq!(data.mismatch(1, &mut rng), Some(5));
            assert!(data.mismatch(5, &mut rng).is_some_and(|other| (1..5).contains(&other)));
        }
    }

    #[test]
    fn names_bad_rows_and_missing_images() {
        let fixture = Fixture::new();
        for (second, reason) in [
            (
                r#"{"img_id": "b", "sentf": {"vqa": ["x"]}, "labelf": {"vqa": []}}"#,
                "row 2: b: 1 sentences of 'vqa', but 0",
            ),
            (
                r#"{"img_id": "b", "sentf": {"vqa": ["x"]}, "labelf": {"vqa": [{"y": 2}]}}"#,
                "row 2: b: the score of 'y'",
            ),
            (r#"{"img_id": "b", "sentf": {"vg": [""]}}"#, "row 2: b: an empty sentence"),
            (r#"{"img_id": "b"}"#, "row 2: it lacks sentf; its fields are img_id"),
            (r#"{"img_id": "c.jpg", "sentf": {"vg": ["x"]}}"#, "1 of 2"),
        ] {
            let json = format!(r#"[{{"img_id": "b", "sentf": {{"vg": ["x"]}}}}, {second}]"#);
            let error = fixture.read(&json, false).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let some = r#"[{"img_id": "b", "sentf": {"vg": ["x"]}}, {"img_id": "c", "sentf": {"vg": ["x"]}}]"#;
        assert_eq!(fixture.read(some, true).unwrap().len(), 1);
        assert!(fixture.read("[]", true).unwrap_err().to_string().contains("no sentence"));
    }

    #[test]
    fn captions_alone_make_examples_without_answers() {
        let fixture = Fixture::new();
        let path = fixture.folder.path().join("results.csv");
        std::fs::write(&path, "image_name| comment_number| comment\nb.jpg| 0| a cat\nb.jpg| 1| a dog\n").unwrap();
        let captions = Captions::read(&path).unwrap();
        let data = PretrainingSentences::from_captions(&captions, &[1], &fixture.store, fixture.options()).unwrap();
        assert_eq!((data.len(), data.category(0), data.label(0), data.answered()), (1, CAPTIONS, None, 0));
        assert_eq!(data.tokens(0), fixture.text.encode("a dog", 20).unwrap().ids);
    }
}
