//! Many tokenised sentences in two buffers: four bytes per WordPiece and eight per sentence, so that the nine million
//! sentences of pre-training take about half a gigabyte.

use crate::Result;
use lxmert_core::text::WordPiece;
use rayon::prelude::*;

/// Sentences as WordPiece ids; each starts with `[CLS]` and ends with `[SEP]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sentences {
    ids: Vec<u32>,
    ends: Vec<u64>,
    truncated: usize,
}

impl Sentences {
    /// Appends sentences, each truncated to at most `max_length` WordPieces; uses all cores.
    ///
    /// # Errors
    /// Returns an error if `max_length` is below 2 or the tokeniser fails.
    pub fn extend<S: AsRef<str> + Sync>(&mut self, text: &WordPiece, sentences: &[S], max_length: usize) -> Result<()> {
        let encoded = sentences
            .par_iter()
            .map(|sentence| text.encode(sentence.as_ref(), max_length))
            .collect::<lxmert_core::Result<Vec<_>>>()?;
        for encoding in encoded {
            self.ids.extend(encoding.ids);
            self.ends.push(self.ids.len() as u64);
            self.truncated += usize::from(encoding.truncated > 0);
        }
        Ok(())
    }

    /// How many sentences there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many sentences were truncated.
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// The WordPiece ids of sentence `index`, which must be below [`Sentences::len`].
    pub fn ids(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.ids[start as usize..self.ends[index] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_counts_truncated_sentences() {
        let text = WordPiece::bundled().unwrap();
        let mut sentences = Sentences::default();
        sentences.extend(&text, &["a red circle", "", "one two three four five"], 5).unwrap();
        sentences.extend(&text, &["a star"], 5).unwrap();
        assert_eq!((sentences.len(), sentences.truncated()), (4, 1));
        for (index, sentence) in ["a red circle", "", "one two three four five", "a star"].iter().enumerate() {
            assert_eq!(sentences.ids(index), text.encode(sentence, 5).unwrap().ids);
        }
    }
}
