//! Splits sentences into WordPieces as BERT's tokeniser does (Wu et al. 2016; Devlin et al. 2019).

use crate::files::{Fields, read_json};
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;
use tokenizers::models::wordpiece::WordPiece as WordPieceModel;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{Tokenizer, TokenizerBuilder};

/// The vocabulary of `bert-base-uncased` (Apache-2.0), 30,522 entries.
const BUNDLED: &str = include_str!("../../data/vocab/bert-base-uncased-vocab.txt");

/// One sentence as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// WordPiece ids, `[CLS]` first and `[SEP]` last.
    pub ids: Vec<u32>,
    /// The WordPieces, one per id; continuations of a word begin with `##`.
    pub tokens: Vec<String>,
    /// Byte range of each WordPiece in the sentence; empty for `[CLS]` and `[SEP]`.
    pub offsets: Vec<(usize, usize)>,
    /// How many WordPieces were dropped because the sentence was too long.
    pub truncated: usize,
}

/// The ids of the special entries that every BERT vocabulary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// `[PAD]`: pads the shorter sentences of a batch.
    pub pad: u32,
    /// `[UNK]`: a word that the vocabulary cannot represent.
    pub unk: u32,
    /// `[CLS]`: before every sentence.
    pub cls: u32,
    /// `[SEP]`: after every sentence.
    pub sep: u32,
    /// `[MASK]`: a word to predict.
    pub mask: u32,
}

/// BERT's tokeniser over a vocabulary.
#[derive(Debug, Clone)]
pub struct WordPiece {
    tokenizer: Tokenizer,
    vocabulary: Vec<String>,
    special: SpecialIds,
    lower_case: bool,
}

impl WordPiece {
    /// The tokeniser of `bert-base-uncased`, which ships with this crate.
    ///
    /// # Errors
    /// Never for the bundled vocabulary; the signature matches [`WordPiece::from_vocab`].
    pub fn bundled() -> Result<Self> {
        Self::new(lines(BUNDLED), true, Path::new("the bundled vocabulary"))
    }

    /// The tokeniser of a `vocab.txt`, one entry per line. It is uncased unless a `tokenizer_config.json` beside it
    /// sets `do_lower_case` to false.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or the vocabulary repeats an entry or lacks a special one.
    pub fn from_vocab(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let settings = path.with_file_name("tokenizer_config.json");
        let lower_case = match settings.is_file() {
            true => read_json::<Fields>(&settings)?.get("do_lower_case").and_then(Value::as_bool),
            false => None,
        };
        Self::new(lines(text.strip_prefix('\u{feff}').unwrap_or(&text)), lower_case.unwrap_or(true), path)
    }

    /// The tokeniser of a WordPiece model in a Hugging Face `tokenizer.json`, cased or uncased as its normaliser says.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or holds another model; otherwise as [`WordPiece::from_vocab`].
    pub fn from_tokenizer_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json: Value = read_json(path)?;
        let kind = json.pointer("/model/type").and_then(Value::as_str).unwrap_or("WordPiece");
        let Some(ids) = json.pointer("/model/vocab").and_then(Value::as_object).filter(|_| kind == "WordPiece") else {
            return Err(Error::format(path, format!("holds a {kind} model without WordPieces; LXMERT reads BERT's")));
        };
        let mut entries: Vec<(&Value, &String)> = ids.iter().map(|(entry, id)| (id, entry)).collect();
        entries.sort_by_key(|(id, _)| id.as_u64());
        if let Some((place, (id, entry))) =
            entries.iter().enumerate().find(|(i, (id, _))| id.as_u64() != Some(*i as u64))
        {
            return Err(Error::format(
                path,
                format!("'{entry}' has id {id}, but ids must count from 0 without a gap (expected {place})"),
            ));
        }
        let lower_case = json.pointer("/normalizer/lowercase").and_then(Value::as_bool).unwrap_or(true);
        Self::new(entries.into_iter().map(|(_, entry)| entry.clone()).collect(), lower_case, path)
    }

    fn new(vocabulary: Vec<String>, lower_case: bool, path: &Path) -> Result<Self> {
        let mut ids = ahash::AHashMap::with_capacity(vocabulary.len());
        for (id, entry) in vocabulary.iter().enumerate() {
            if let Some(first) = ids.insert(entry.clone(), id as u32) {
                let (first, line) = (first + 1, id + 1);
                return Err(Error::format(path, format!("line {line} repeats '{entry}' of line {first}")));
            }
        }
        let id = |entry: &str| {
            let missing = || Error::format(path, format!("no entry '{entry}'; is this a BERT vocabulary?"));
            ids.get(entry).copied().ok_or_else(missing)
        };
        let special = SpecialIds {
            pad: id("[PAD]")?,
            unk: id("[UNK]")?,
            cls: id("[CLS]")?,
            sep: id("[SEP]")?,
            mask: id("[MASK]")?,
        };
        let other = |e: tokenizers::Error| Error::format(path, e.to_string());
        let model = WordPieceModel::builder().vocab(ids).unk_token("[UNK]".into()).build().map_err(other)?;
        let ends = BertProcessing::new(("[SEP]".into(), special.sep), ("[CLS]".into(), special.cls));
        let tokenizer = TokenizerBuilder::new()
            .with_model(model)
            .with_normalizer(Some(BertNormalizer::new(true, true, None, lower_case)))
            .with_pre_tokenizer(Some(BertPreTokenizer))
            .with_post_processor(Some(ends))
            .with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()))
            .build()
            .map_err(other)?;
        Ok(Self { tokenizer: tokenizer.into(), vocabulary, special, lower_case })
    }

    /// Encodes `[CLS] … [SEP]` in at most `max_length` WordPieces. WordPieces that do not fit are dropped from the end
    /// of the sentence and counted in [`Encoding::truncated`].
    ///
    /// # Errors
    /// Returns an error if `max_length` is below 2 or the tokeniser fails.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Encoding> {
        if max_length < 2 {
            return Err(Error::Argument(format!(
                "a maximum length of {max_length} WordPieces leaves no room for [CLS] and [SEP]"
            )));
        }
        let encoded = self.tokenizer.encode(text, true).map_err(|e| Error::Argument(format!("'{text}': {e}")))?;
        let (mut ids, mut tokens) = (encoded.get_ids().to_vec(), encoded.get_tokens().to_vec());
        let mut offsets = encoded.get_offsets().to_vec();
        let truncated = ids.len().saturating_sub(max_length);
        if truncated > 0 {
            ids.truncate(max_length - 1);
            tokens.truncate(max_length - 1);
            offsets.truncate(max_length - 1);
            ids.push(self.special.sep);
            tokens.push("[SEP]".into());
            offsets.push((0, 0));
        }
        Ok(Encoding { ids, tokens, offsets, truncated })
    }

    /// The vocabulary, one entry per id.
    pub fn vocabulary(&self) -> &[String] {
        &self.vocabulary
    }

    /// The ids of `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]`.
    pub fn special(&self) -> SpecialIds {
        self.special
    }

    /// Whether sentences are lower-cased and stripped of accents first.
    pub fn lower_case(&self) -> bool {
        self.lower_case
    }

    /// The vocabulary as the text of a `vocab.txt`.
    pub fn vocab_text(&self) -> String {
        let mut text = self.vocabulary.join("\n");
        text.push('\n');
        text
    }

    /// The tokeniser as the text of a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// Returns an error if it cannot be written as JSON.
    pub fn tokenizer_json(&self) -> Result<String> {
        self.tokenizer.to_string(false).map_err(|e| Error::Argument(format!("tokenizer.json: {e}")))
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim_end().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_a_sentence_into_berts_word_pieces() {
        let text = WordPiece::bundled().unwrap();
        let encoding = text.encode("A café's Unaffable dog, sitting.", 32).unwrap();
        let want = ["[CLS]", "a", "cafe", "'", "s", "una", "##ffa", "##ble", "dog", ",", "sitting", ".", "[SEP]"];
        assert_eq!(encoding.tokens, want);
        assert_eq!((encoding.ids[0], encoding.ids[12], encoding.truncated), (101, 102, 0));
        assert_eq!(encoding.ids.len(), encoding.offsets.len());
    }

    #[test]
    fn truncation_keeps_both_ends_and_counts_what_was_dropped() {
        let text = WordPiece::bundled().unwrap();
        let encoding = text.encode("one two three four five", 5).unwrap();
        assert_eq!(encoding.tokens, ["[CLS]", "one", "two", "three", "[SEP]"]);
        assert_eq!(encoding.truncated, 2);
        assert!(text.encode("one", 1).is_err());
        assert_eq!(text.encode("", 8).unwrap().tokens, ["[CLS]", "[SEP]"]);
    }

    #[test]
    fn rejects_a_vocabulary_with_missing_or_repeated_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocab.txt");
        for (text, part) in [
            ("[PAD]\n[UNK]\nword\n", "'[CLS]'"),
            ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "line 7 repeats 'a' of line 6"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = WordPiece::from_vocab(&path).unwrap_err().to_string();
            assert!(message.contains("vocab.txt") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn special_ids_and_case_come_from_the_vocabulary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocab.txt");
        std::fs::write(&path, "A\na\n[MASK]\n[SEP]\n[CLS]\n[UNK]\n[PAD]\n").unwrap();
        let text = WordPiece::from_vocab(&path).unwrap();
        assert_eq!(text.special(), SpecialIds { pad: 6, unk: 5, cls: 4, sep: 3, mask: 2 });
        assert_eq!(text.encode("A b", 8).unwrap().ids, [4, 1, 5, 3]);
        assert_eq!(text.encode("a a a a", 4).unwrap().ids, [4, 1, 1, 3]);

        std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
        let cased = WordPiece::from_vocab(&path).unwrap();
        assert_eq!((cased.encode("A", 8).unwrap().ids, cased.lower_case()), (vec![4, 0, 3], false));
    }

    #[test]
    fn tokenizer_json_equals_its_vocabulary() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\n##s\nDog\n").unwrap();
        let path = dir.path().join("tokenizer.json");
        for lower_case in [true, false] {
            let settings = format!(r#"{{"do_lower_case": {lower_case}}}"#);
            std::fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
            let text = WordPiece::from_vocab(dir.path().join("vocab.txt")).unwrap();
            std::fs::write(&path, text.tokenizer_json().unwrap()).unwrap();
            let read = WordPiece::from_tokenizer_json(&path).unwrap();
            assert_eq!((read.vocabulary(), read.lower_case()), (text.vocabulary(), lower_case));
            assert_eq!(read.encode("Dogs", 8).unwrap(), text.encode("Dogs", 8).unwrap());
        }
        for (text, part) in [
            (r#"{"model": {"type": "BPE", "vocab": {"a": 0}}}"#, "a BPE model"),
            (r#"{"model": {"vocab": {"[PAD]": 0, "a": 3000000000}}}"#, "'a' has id 3000000000"),
            (r#"{"model": {"vocab": {"[PAD]": 0, "a": 0}}}"#, "has id 0"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = WordPiece::from_tokenizer_json(&path).unwrap_err().to_string();
            assert!(message.contains("tokenizer.json") && message.contains(part), "{message}");
        }
    }
}
