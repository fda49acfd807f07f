//! A sentence's words, and their word pieces.

use crate::{Error, Result};
use lxmert_core::text::Encoding;

/// A word as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// As written, with its punctuation.
    pub text: String,
    /// The positions of its pieces among the word pieces; empty if they were truncated.
    pub pieces: Vec<usize>,
}

impl Word {
    /// The word in lower case without surrounding punctuation.
    pub fn plain(&self) -> String {
        self.text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
    }
}

/// The words of `text`, split at white space, with the pieces of `encoding` in each.
pub fn words(text: &str, encoding: &Encoding) -> Vec<Word> {
    let mut words = Vec::new();
    let mut end = 0;
    for part in text.split_whitespace() {
        // `part` was taken from `text` after `end`, so it is found there.
        let start = text[end..].find(part).map_or(end, |offset| end + offset);
        end = start + part.len();
        let inside = |(from, to): &(usize, usize)| *from >= start && *to <= end && to > from;
        let pieces = encoding.offsets.iter().enumerate().filter(|(_, o)| inside(o)).map(|(i, _)| i).collect();
        words.push(Word { text: part.to_string(), pieces });
    }
    words
}

/// The positions among `words` that `wanted` refers to: every "bike" for `bike`, the second one for `bike:2`.
///
/// # Errors
/// [`Error::Argument`] that lists the words if there is no such word.
pub fn find(words: &[Word], wanted: &str) -> Result<Vec<usize>> {
    let (name, which) = match wanted.rsplit_once(':').map(|(name, n)| (name, n.parse::<usize>())) {
        Some((name, Ok(n))) if n > 0 => (name, Some(n)),
        _ => (wanted, None),
    };
    let plain = name.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let all: Vec<usize> =
        (0..words.len()).filter(|i| words[*i].plain() == plain && !words[*i].pieces.is_empty()).collect();
    let found = which.map_or_else(|| all.clone(), |n| all.get(n - 1).copied().into_iter().collect());
    if plain.is_empty() || found.is_empty() {
        let mut there: Vec<String> = words.iter().map(Word::plain).filter(|word| !word.is_empty()).collect();
        there.dedup();
        return Err(Error::Argument(format!("no word '{wanted}' in the sentence; it has: {}", there.join(", "))));
    }
    Ok(found)
}

/// The positions of all word pieces that belong to words with letters or digits, so no `[CLS]`, `[SEP]` or punctuation.
pub fn spoken_pieces(words: &[Word]) -> Vec<usize> {
    words.iter().filter(|word| !word.plain().is_empty()).flat_map(|word| word.pieces.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lxmert_core::text::WordPiece;

    fn cut(text: &str) -> Vec<Word> {
        words(text, &WordPiece::bundled().unwrap().encode(text, 40).unwrap())
    }

    #[test]
    fn pieces_are_grouped_into_their_words() {
        let words = cut("An unaffable café-dog, sitting .");
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(texts, ["An", "unaffable", "café-dog,", "sitting", "."]);
        // [CLS] an una ##ffa ##ble cafe - dog , sitting . [SEP]
        assert_eq!(words[1].pieces, [2, 3, 4]);
        assert_eq!(words[2].pieces, [5, 6, 7, 8]);
        assert_eq!(words[3].pieces, [9]);
        assert_eq!(spoken_pieces(&words), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_word_is_found_by_name_and_by_number() {
        let words = cut("A red circle above a red square .");
        assert_eq!(find(&words, "Red").unwrap(), [1, 5]);
        assert_eq!(find(&words, "red:2").unwrap(), [5]);
        let message = find(&words, "red:3").unwrap_err().to_string();
        assert!(message.contains("'red:3'") && message.contains("circle, above"), "{message}");
        assert!(find(&words, ".").is_err());
        assert!(find(&words, "dog").is_err());
    }
}
