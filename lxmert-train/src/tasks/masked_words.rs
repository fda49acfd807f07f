//! Masked words with the image in sight: the masked cross-modality language model of Tan & Bansal
//! (2019, §3.1.1), as a helper of matching. A binary answer per pair teaches slowly which word means
//! which region; a word that can only be read off the image teaches it directly.

use super::losses::cross_entropy;
use crate::Result;
use crate::data::batches::Batch;
use candle_core::{D, Tensor};
use lxmert_core::model::WordHead;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Share of the words that are chosen (Devlin et al. 2019).
const CHOSEN: f64 = 0.15;
/// Of the chosen: share that becomes `[MASK]`, and share up to which it becomes a random word; the
/// rest stays.
const MASKED: f64 = 0.8;
const RANDOM: f64 = 0.9;

/// Ids of `[CLS]`, `[SEP]`, `[MASK]` and `[PAD]` in BERT's vocabulary.
const CLS: u32 = 101;
const SEP: u32 = 102;
const MASK: u32 = 103;

/// The words of one batch that are to be guessed.
#[derive(Debug, Default)]
pub struct MaskedWords {
    /// Rows of the `[batch · words, hidden]` language output.
    rows: Vec<u32>,
    /// The word that stood there.
    targets: Vec<u32>,
}

/// What became of the guesses.
#[derive(Debug)]
pub struct Guesses {
    /// Mean cross entropy, a scalar to differentiate.
    pub loss: Tensor,
    /// Guesses that were right.
    pub right: usize,
    /// Guesses.
    pub count: usize,
}

impl MaskedWords {
    /// Words that are masked already: row of the `[batch · words, hidden]` output, and the word that stood there.
    pub fn given(words: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let (rows, targets) = words.into_iter().unzip();
        Self { rows, targets }
    }

    /// Masks words of `batch` in place, in every row alike, so that a mask says nothing about the
    /// match; those of the rows that `guessed` says yes to are to be guessed. The draw is a function of `seed` and
    /// `number`.
    pub fn draw(batch: &mut Batch, guessed: impl Fn(usize) -> bool, vocab_size: u32, seed: u64, number: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut words = Self::default();
        for (row, id) in batch.input_ids.iter_mut().enumerate() {
            let word = batch.attention_mask[row] > 0.0 && *id != CLS && *id != SEP;
            if !word || !rng.random_bool(CHOSEN) {
                continue;
            }
            if guessed(row / batch.length) {
                words.rows.push(row as u32);
                words.targets.push(*id);
            }
            let kind: f64 = rng.random();
            if kind < MASKED {
                *id = MASK;
            } else if kind < RANDOM {
                *id = rng.random_range(0..vocab_size);
            }
        }
        words
    }

    /// Mean cross entropy of the guesses; none when no word was chosen. `language`: `[batch, words, hidden]`.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn loss(&self, head: &WordHead, language: &Tensor) -> Result<Option<Guesses>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::from_slice(&self.rows, self.rows.len(), language.device())?;
        let logits = head.forward(&language.flatten_to(1)?.index_select(&rows, 0)?)?;
        let words = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        Ok(Some(Guesses {
            loss: cross_entropy(&logits, &self.targets)?.mean_all()?,
            right: words.iter().zip(&self.targets).filter(|(word, target)| word == target).count(),
            count: self.targets.len(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let ids = [CLS].into_iter().chain(2000..2398).chain([SEP]);
        Batch {
            rows: 2,
            length: 400,
            input_ids: ids.clone().chain(ids).collect(),
            attention_mask: vec![1.0; 800],
            ..Batch::default()
        }
    }

    #[test]
    fn chooses_fifteen_percent_and_guesses_only_the_rows_asked_for() {
        let (mut masked, original) = (batch(), batch());
        let words = MaskedWords::draw(&mut masked, |row| row == 0, 30522, 1, 2);
        assert!((40..=80).contains(&words.rows.len()), "{}", words.rows.len());
        assert!(words.rows.iter().all(|row| *row < 400));
        for (row, target) in words.rows.iter().zip(&words.targets) {
            assert_eq!(original.input_ids[*row as usize], *target);
        }
        let changed =
            |range: std::ops::Range<usize>| range.filter(|i| masked.input_ids[*i] != original.input_ids[*i]).count();
        assert!((30..=80).contains(&changed(400..800)));
        assert_eq!((masked.input_ids[0], masked.input_ids[399]), (CLS, SEP));
        let mut again = batch();
        MaskedWords::draw(&mut again, |_| true, 30522, 1, 2);
        assert_eq!(again.input_ids, masked.input_ids);
    }
}
