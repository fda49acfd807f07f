//! Masked words with the image in view: the masked cross-modality language model of Tan & Bansal (2019, §3.1.1), as an
//! auxiliary loss for matching. One binary answer per pair teaches only slowly which word means which region; a word
//! that can only be read off the image teaches it directly.

use super::losses::{cross_entropy, right};
use crate::Result;
use crate::data::batches::Batch;
use candle_core::Tensor;
use lxmert_core::model::WordHead;
use lxmert_core::text::{SpecialIds, WordPiece};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Fraction of the words that are chosen (Devlin et al. 2019).
const CHOSEN: f64 = 0.15;
/// Of the chosen words, the fraction that becomes `[MASK]`, and the cumulative fraction up to which they become random
/// words; the rest stays.
const MASKED: f64 = 0.8;
const RANDOM: f64 = 0.9;

/// What masking needs to know about a vocabulary: the ids of special entries, and the number of ids.
#[derive(Debug, Clone, Copy)]
pub struct WordIds {
    special: SpecialIds,
    count: u32,
}

impl From<&WordPiece> for WordIds {
    fn from(text: &WordPiece) -> Self {
        Self { special: text.special(), count: text.vocabulary().len() as u32 }
    }
}

/// The words of one batch to be predicted.
#[derive(Debug, Default)]
pub struct MaskedWords {
    /// Rows of the `[batch · words, hidden]` language output.
    rows: Vec<u32>,
    /// The original words.
    targets: Vec<u32>,
}

/// The results of the predictions.
#[derive(Debug)]
pub struct Guesses {
    /// Mean cross entropy, a scalar to differentiate.
    pub loss: Tensor,
    /// Number of correct predictions, a scalar.
    pub right: Tensor,
    /// Number of predictions.
    pub count: usize,
}

impl MaskedWords {
    /// Words that are already masked: row of the `[batch · words, hidden]` output, and the original word.
    pub fn given(words: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let (rows, targets) = words.into_iter().unzip();
        Self { rows, targets }
    }

    /// Masks words of `batch` in place, in every row alike, so that a mask reveals nothing about the match. Only words
    /// in rows that `guessed` accepts are to be predicted. The draw is a function of `seed` and `number`.
    pub fn draw(batch: &mut Batch, guessed: impl Fn(usize) -> bool, ids: WordIds, seed: u64, number: u64) -> Self {
        let SpecialIds { cls, sep, mask, .. } = ids.special;
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut words = Self::default();
        for (row, id) in batch.input_ids.iter_mut().enumerate() {
            let word = batch.attention_mask[row] > 0.0 && *id != cls && *id != sep;
            if !word || !rng.random_bool(CHOSEN) {
                continue;
            }
            if guessed(row / batch.length) {
                words.rows.push(row as u32);
                words.targets.push(*id);
            }
            let kind: f64 = rng.random();
            if kind < MASKED {
                *id = mask;
            } else if kind < RANDOM {
                *id = rng.random_range(0..ids.count);
            }
        }
        words
    }

    /// Mean cross entropy of the predictions; `None` if no word was chosen. `language`: `[batch, words, hidden]`.
    ///
    /// # Errors
    /// Returns an error if the batch does not fit the model.
    pub fn loss(&self, head: &WordHead, language: &Tensor) -> Result<Option<Guesses>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::from_slice(&self.rows, self.rows.len(), language.device())?;
        let logits = head.forward(&language.flatten_to(1)?.index_select(&rows, 0)?)?;
        Ok(Some(Guesses {
            loss: cross_entropy(&logits, &self.targets)?.mean_all()?,
            right: right(&logits, &self.targets, None)?,
            count: self.targets.len(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(special: SpecialIds) -> Batch {
        let ids = [special.cls].into_iter().chain(2000..2398).chain([special.sep]);
        Batch {
            rows: 2,
            length: 400,
            input_ids: ids.clone().chain(ids).collect(),
            attention_mask: vec![1.0; 800],
            ..Batch::default()
        }
    }

    #[test]
    fn chooses_fifteen_percent_and_predicts_only_in_the_given_rows() {
        let ids = WordIds::from(&WordPiece::bundled().unwrap());
        let (mut masked, original) = (batch(ids.special), batch(ids.special));
        let words = MaskedWords::draw(&mut masked, |row| row == 0, ids, 1, 2);
        assert!((40..=80).contains(&words.rows.len()), "{}", words.rows.len());
        assert!(words.rows.iter().all(|row| *row < 400));
        for (row, target) in words.rows.iter().zip(&words.targets) {
            assert_eq!(original.input_ids[*row as usize], *target);
        }
        let changed =
            |range: std::ops::Range<usize>| range.filter(|i| masked.input_ids[*i] != original.input_ids[*i]).count();
        assert!((30..=80).contains(&changed(400..800)));
        assert_eq!((masked.input_ids[0], masked.input_ids[399]), (ids.special.cls, ids.special.sep));
        let mut again = batch(ids.special);
        MaskedWords::draw(&mut again, |_| true, ids, 1, 2);
        assert_eq!(again.input_ids, masked.input_ids);
    }

    #[test]
    fn masks_with_the_vocabularys_own_ids() {
        let special = SpecialIds { pad: 9, unk: 8, cls: 7, sep: 6, mask: 5 };
        let mut masked = batch(special);
        MaskedWords::draw(&mut masked, |_| true, WordIds { special, count: 5 }, 1, 2);
        assert_eq!((masked.input_ids[0], masked.input_ids[399]), (7, 6));
        let count = |id: u32| masked.input_ids.iter().filter(|&&found| found == id).count();
        assert!((60..=150).contains(&count(5)) && count(103) == 0, "{} [MASK]", count(5));
        assert!(masked.input_ids.iter().all(|id| !(8..2000).contains(id)), "random words must be in the vocabulary");
    }
}
