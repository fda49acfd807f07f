//! Pairs of an image and a sentence, matched or not.
//!
//! Every caption of a split makes one pair. Half of the pairs are mismatched: the caption keeps its words and gets a
//! different image of the same split (airsplay's LXMERT swaps the sentence; by symmetry the distribution is the same).
//! Training draws new pairs each epoch from the seed and the epoch's number. Validation and test pairs depend only on
//! the data, so two runs are measured on the same pairs whatever their seeds.
//!
//! A *hard* mismatch keeps the image and uses the caption's false, minimally changed variant from `hard_negatives.csv`.

use crate::data::splits::Split;
use lxmert_core::procedural::splitmix64;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How the image and the sentence of a pair relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PairKind {
    /// The caption was written for the image.
    Matched,
    /// The caption was written for another image.
    Random,
    /// One word or so of the caption was changed, so that it is false of its own image.
    Hard,
}

/// One image and one sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The image, as an index into the captions' images.
    pub image: usize,
    /// The caption, as an index into the captions; for [`PairKind::Hard`] its false variant is meant.
    pub caption: usize,
    /// Whether and how they match.
    pub kind: PairKind,
}

impl Pair {
    /// Whether the sentence is true of the image.
    pub fn matched(&self) -> bool {
        self.kind == PairKind::Matched
    }
}

/// Draws the pairs of one split.
#[derive(Debug, Clone)]
pub struct PairSource {
    split: Split,
    /// (caption, its image, whether it has a false variant).
    captions: Vec<(usize, usize, bool)>,
    images: Vec<usize>,
    /// Per caption of the split: the images of the split with exactly the same sentence.
    same_text: Vec<Vec<usize>>,
}

impl PairSource {
    /// `captions`: the split's captions as (caption index, image index, sentence, has a false variant).
    pub fn new<'a>(split: Split, captions: impl IntoIterator<Item = (usize, usize, &'a str, bool)>) -> Self {
        let mut by_text: std::collections::HashMap<&str, Vec<usize>> = std::collections::HashMap::new();
        let mut list = Vec::new();
        let mut texts = Vec::new();
        let mut images = Vec::new();
        for (caption, image, text, hard) in captions {
            by_text.entry(text).or_default().push(image);
            list.push((caption, image, hard));
            texts.push(text);
            images.push(image);
        }
        images.sort_unstable();
        images.dedup();
        let same_text = texts.iter().map(|text| by_text[text].clone()).collect();
        Self { split, captions: list, images, same_text }
    }

    /// Pairs in one epoch: one per caption.
    pub fn len(&self) -> usize {
        self.captions.len()
    }

    /// Whether the split has no captions.
    pub fn is_empty(&self) -> bool {
        self.captions.is_empty()
    }

    /// Whether any caption has a false variant.
    pub fn has_hard(&self) -> bool {
        self.captions.iter().any(|c| c.2)
    }

    /// The training pairs of an epoch in shuffled order, one per caption. Half of them (rounded down) are mismatched,
    /// and of these the fraction `hard_fraction` (0..1) is hard, as far as the captions have false variants.
    pub fn epoch(&self, seed: u64, epoch: u64, hard_fraction: f64) -> Vec<Pair> {
        self.draw(splitmix64(seed ^ splitmix64(epoch.wrapping_add(0x7061_6972))), hard_fraction)
    }

    /// The fixed pairs for validation and test: half matched, half with the image of another caption; in caption order.
    pub fn fixed(&self) -> Vec<Pair> {
        let mut pairs = self.draw(splitmix64(0x6669_7865_6400 + self.split as u64), 0.0);
        pairs.sort_by_key(|p| p.caption);
        pairs
    }

    /// The hard set: every caption that has a false sibling, once true and once false.
    pub fn hard(&self) -> Vec<Pair> {
        let with_sibling = self.captions.iter().filter(|c| c.2);
        with_sibling
            .flat_map(|&(caption, image, _)| {
                [PairKind::Matched, PairKind::Hard].map(|kind| Pair { image, caption, kind })
            })
            .collect()
    }

    fn draw(&self, key: u64, hard_fraction: f64) -> Vec<Pair> {
        let mut rng = ChaCha8Rng::seed_from_u64(key);
        let mut order: Vec<usize> = (0..self.captions.len()).collect();
        order.shuffle(&mut rng);
        let mismatched = order.len() / 2;
        let mut hard_left = (mismatched as f64 * hard_fraction.clamp(0.0, 1.0)).round() as usize;
        let mut pairs: Vec<Pair> = order
            .iter()
            .enumerate()
            .map(|(rank, &i)| {
                let (caption, image, has_hard) = self.captions[i];
                if rank >= mismatched {
                    return Pair { image, caption, kind: PairKind::Matched };
                }
                if has_hard && hard_left > 0 {
                    hard_left -= 1;
                    return Pair { image, caption, kind: PairKind::Hard };
                }
                match self.other_image(i, &mut rng) {
                    Some(image) => Pair { image, caption, kind: PairKind::Random },
                    None => Pair { image, caption, kind: PairKind::Matched },
                }
            })
            .collect();
        pairs.shuffle(&mut rng);
        pairs
    }

    /// An image of the split without a caption of exactly these words; `None` if there is none.
    fn other_image(&self, i: usize, rng: &mut ChaCha8Rng) -> Option<usize> {
        let taken = &self.same_text[i];
        for _ in 0..64 {
            let image = self.images[rng.random_range(0..self.images.len())];
            if !taken.contains(&image) {
                return Some(image);
            }
        }
        let free: Vec<usize> = self.images.iter().copied().filter(|image| !taken.contains(image)).collect();
        free.choose(rng).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `images` images with `each` captions; caption `c` belongs to image `c / each`.
    fn source(split: Split, images: usize, each: usize) -> PairSource {
        let texts: Vec<String> = (0..images * each).map(|c| format!("caption {c}")).collect();
        PairSource::new(split, texts.iter().enumerate().map(|(c, t)| (c, c / each, t.as_str(), c % 2 == 0)))
    }

    proptest! {
        #[test]
        fn half_of_an_epoch_is_mismatched_and_from_a_different_image(
            images in 2usize..30, each in 1usize..6, seed in any::<u64>(), epoch in 0u64..50, hard in 0.0f64..1.0
        ) {
            let pairs = source(Split::Train, images, each).epoch(seed, epoch, hard);
            let mut captions: Vec<usize> = pairs.iter().map(|p| p.caption).collect();
            captions.sort_unstable();
            prop_assert_eq!(captions, (0..images * each).collect::<Vec<_>>());
            prop_assert_eq!(pairs.iter().filter(|p| !p.matched()).count(), images * each / 2);
            for p in &pairs {
                prop_assert_eq!(p.image == p.caption / each, p.kind != PairKind::Random);
                prop_assert!(p.kind != PairKind::Hard || p.caption % 2 == 0);
            }
        }
    }

    #[test]
    fn mismatches_differ_between_epochs_and_repeat_for_the_same_epoch() {
        let source = source(Split::Train, 40, 5);
        let of = |epoch| source.epoch(3, epoch, 0.5);
        assert_eq!(of(1), of(1));
        let mismatched = |pairs: Vec<Pair>| {
            let mut m: Vec<(usize, usize)> =
                pairs.iter().filter(|p| !p.matched()).map(|p| (p.caption, p.image)).collect();
            m.sort_unstable();
            m
        };
        assert_ne!(mismatched(of(1)), mismatched(of(2)));
        assert_ne!(mismatched(of(1)), mismatched(source.epoch(4, 1, 0.5)));
    }

    #[test]
    fn keeps_the_share_of_hard_pairs() {
        let pairs = source(Split::Train, 100, 4).epoch(0, 0, 0.5);
        let count = |kind| pairs.iter().filter(|p| p.kind == kind).count();
        assert_eq!((count(PairKind::Matched), count(PairKind::Random), count(PairKind::Hard)), (200, 100, 100));
    }

    #[test]
    fn fixed_pairs_never_change_and_differ_between_splits() {
        let val = source(Split::Val, 20, 5);
        assert_eq!(val.fixed(), val.fixed());
        assert_ne!(val.fixed(), source(Split::Test, 20, 5).fixed());
        assert_eq!(val.fixed().iter().filter(|p| p.matched()).count(), 50);
    }

    #[test]
    fn an_image_with_the_same_caption_is_not_a_mismatch() {
        let texts = ["a red circle", "a red circle", "a blue square"];
        let source = PairSource::new(Split::Train, texts.iter().enumerate().map(|(i, t)| (i, i, *t, false)));
        for epoch in 0..50 {
            for p in source.epoch(0, epoch, 0.0).iter().filter(|p| p.kind == PairKind::Random) {
                assert_ne!(texts[p.caption], texts[p.image]);
            }
        }
    }

    #[test]
    fn the_hard_set_has_each_caption_true_and_false() {
        let hard = source(Split::Test, 3, 2).hard();
        assert_eq!(hard.len(), 6);
        assert!(
            hard.chunks(2)
                .all(|two| two[0].matched() && two[1].kind == PairKind::Hard && two[0].caption == two[1].caption)
        );
    }
}
