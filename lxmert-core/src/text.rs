//! Sentences to WordPieces, as BERT's uncased tokeniser cuts them (Wu et al. 2016; Devlin et al. 2019).

use crate::{Error, Result};
use std::path::Path;
use tokenizers::models::wordpiece::WordPiece as WordPieceModel;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{Tokenizer, TokenizerBuilder};

/// The vocabulary of `bert-base-uncased` (Apache-2.0), 30,522 entries.
const BUNDLED: &str = include_str!("../../data/vocab/bert-base-uncased-vocab.txt");

/// Entries that every BERT vocabulary has.
const SPECIAL: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];

/// One sentence as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// WordPiece ids, `[CLS]` first and `[SEP]` last.
    pub ids: Vec<u32>,
    /// The WordPieces themselves, one per id; a word's continuations begin with `##`.
    pub tokens: Vec<String>,
    /// Byte range of each WordPiece in the sentence; empty for `[CLS]` and `[SEP]`.
    pub offsets: Vec<(usize, usize)>,
    /// WordPieces dropped because the sentence was too long.
    pub truncated: usize,
}

/// BERT's uncased tokeniser over a vocabulary.
#[derive(Debug, Clone)]
pub struct WordPiece {
    tokenizer: Tokenizer,
    vocabulary: Vec<String>,
    sep: u32,
}

impl WordPiece {
    /// With the vocabulary that ships.
    ///
    /// # Errors
    /// Never for the vocabulary that ships; the signature is [`WordPiece::from_vocab`]'s.
    pub fn bundled() -> Result<Self> {
        Self::from_lines(BUNDLED, Path::new("the bundled vocabulary"))
    }

    /// With a `vocab.txt`, one entry a line.
    ///
    /// # Errors
    /// When the file cannot be read, repeats an entry, or lacks a special one.
    pub fn from_vocab(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::from_lines(&text, path)
    }

    fn from_lines(text: &str, path: &Path) -> Result<Self> {
        let vocabulary: Vec<String> = text.lines().map(|line| line.trim_end().to_string()).collect();
        let mut ids = ahash::AHashMap::with_capacity(vocabulary.len());
        for (id, entry) in vocabulary.iter().enumerate() {
            if let Some(first) = ids.insert(entry.clone(), id as u32) {
                let (first, line) = (first + 1, id + 1);
                return Err(Error::format(path, format!("line {line} repeats '{entry}' of line {first}")));
            }
        }
        if let Some(missing) = SPECIAL.iter().find(|entry| !ids.contains_key(**entry)) {
            return Err(Error::format(path, format!("no line '{missing}'; is this a BERT vocab.txt?")));
        }
        let (cls, sep) = (ids["[CLS]"], ids["[SEP]"]);
        let other = |e: tokenizers::Error| Error::format(path, e.to_string());
        let model = WordPieceModel::builder().vocab(ids).unk_token("[UNK]".into()).build().map_err(other)?;
        let tokenizer = TokenizerBuilder::new()
            .with_model(model)
            .with_normalizer(Some(BertNormalizer::new(true, true, None, true)))
            .with_pre_tokenizer(Some(BertPreTokenizer))
            .with_post_processor(Some(BertProcessing::new(("[SEP]".into(), sep), ("[CLS]".into(), cls))))
            .with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()))
            .build()
            .map_err(other)?;
        Ok(Self { tokenizer: tokenizer.into(), vocabulary, sep })
    }

    /// `[CLS] … [SEP]`, at most `max_length` WordPieces in all; what does not fit is dropped from
    /// the end and counted in [`Encoding::truncated`].
    ///
    /// # Errors
    /// When `max_length` is below 2 or the tokeniser fails.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Encoding> {
        if max_length < 2 {
            return Err(Error::Argument(format!(
                "a sentence of at most {max_length} WordPieces has no room for [CLS] and [SEP]"
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
            ids.push(self.sep);
            tokens.push("[SEP]".into());
            offsets.push((0, 0));
        }
        Ok(Encoding { ids, tokens, offsets, truncated })
    }

    /// The vocabulary, one entry per id.
    pub fn vocabulary(&self) -> &[String] {
        &self.vocabulary
    }

    /// The `vocab.txt` text.
    pub fn vocab_text(&self) -> String {
        let mut text = self.vocabulary.join("\n");
        text.push('\n');
        text
    }

    /// The `tokenizer.json` text of Hugging Face's tokenizers.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn tokenizer_json(&self) -> Result<String> {
        self.tokenizer.to_string(false).map_err(|e| Error::Argument(format!("tokenizer.json: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_becomes_bert_s_word_pieces() {
        let text = WordPiece::bundled().unwrap();
        let encoding = text.encode("A café's Unaffable dog, sitting.", 32).unwrap();
        let want = ["[CLS]", "a", "cafe", "'", "s", "una", "##ffa", "##ble", "dog", ",", "sitting", ".", "[SEP]"];
        assert_eq!(encoding.tokens, want);
        assert_eq!((encoding.ids[0], encoding.ids[12], encoding.truncated), (101, 102, 0));
        assert_eq!(encoding.ids.len(), encoding.offsets.len());
    }

    #[test]
    fn truncation_keeps_both_ends_and_says_how_much_went() {
        let text = WordPiece::bundled().unwrap();
        let encoding = text.encode("one two three four five", 5).unwrap();
        assert_eq!(encoding.tokens, ["[CLS]", "one", "two", "three", "[SEP]"]);
        assert_eq!(encoding.truncated, 2);
        assert!(text.encode("one", 1).is_err());
        assert_eq!(text.encode("", 8).unwrap().tokens, ["[CLS]", "[SEP]"]);
    }

    #[test]
    fn a_vocabulary_that_is_none_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocab.txt");
        std::fs::write(&path, "[PAD]\n[UNK]\nword\n").unwrap();
        let message = WordPiece::from_vocab(&path).unwrap_err().to_string();
        assert!(message.contains("vocab.txt") && message.contains("[CLS]"), "{message}");
    }
}
