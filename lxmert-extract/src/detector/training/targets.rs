//! What each anchor and each proposal should predict: matching with the true objects, and the sample that the losses
//! see (torchvision's `_utils.py`: `Matcher`, `BalancedPositiveNegativeSampler`).

use lxmert_core::boxes::{BoxXyxy, iou};
use rand::Rng;
use rand::seq::SliceRandom;

/// What a candidate box matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The true object with this index.
    Object(usize),
    /// Nothing.
    Background,
    /// Between the thresholds: ignored by the losses.
    Between,
}

/// The thresholds of matching, by intersection over union.
#[derive(Debug, Clone, Copy)]
pub struct Matcher {
    /// An object from this IoU on.
    pub high: f32,
    /// Background below this IoU.
    pub low: f32,
    /// Whether the best candidates of an object match it however little they overlap, so that every object has one (Ren
    /// et al. 2015, §3.1.2 (i)).
    pub keep_best_of_each_object: bool,
}

impl Matcher {
    /// Anchors: 0.7 and 0.3; each object keeps its best.
    pub const ANCHORS: Self = Self { high: 0.7, low: 0.3, keep_best_of_each_object: true };
    /// Proposals: 0.5.
    pub const PROPOSALS: Self = Self { high: 0.5, low: 0.5, keep_best_of_each_object: false };

    /// One match per candidate. Both sets of boxes must be in the same frame.
    pub fn match_boxes(&self, candidates: &[BoxXyxy], objects: &[BoxXyxy]) -> Vec<Match> {
        let mut best_of_object = vec![0.0f32; objects.len()];
        let overlaps: Vec<Vec<f32>> = candidates
            .iter()
            .map(|candidate| {
                let row: Vec<f32> = objects.iter().map(|object| iou(candidate, object)).collect();
                best_of_object.iter_mut().zip(&row).for_each(|(best, &overlap)| *best = best.max(overlap));
                row
            })
            .collect();
        let nearest = |row: &[f32]| {
            let first_best = |best: (usize, f32), (index, &overlap): (usize, &f32)| {
                if overlap > best.1 { (index, overlap) } else { best }
            };
            row.iter().enumerate().fold((0, -1.0), first_best)
        };
        overlaps
            .iter()
            .map(|row| {
                let (object, overlap) = nearest(row);
                let best_of_some = self.keep_best_of_each_object
                    && row.iter().zip(&best_of_object).any(|(&own, &best)| own > 0.0 && own == best);
                match overlap {
                    o if o >= self.high || best_of_some => Match::Object(object),
                    o if o < self.low => Match::Background,
                    _ => Match::Between,
                }
            })
            .collect()
    }
}

/// Candidates sampled for the losses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Indices of a candidate and of its matched object.
    pub positives: Vec<(usize, usize)>,
    /// Indices of background candidates.
    pub negatives: Vec<usize>,
}

/// Samples `count` candidates, at most the fraction `positive_share` of them objects; the rest is background.
pub fn sample(matches: &[Match], count: usize, positive_share: f32, rng: &mut impl Rng) -> Sample {
    let mut positives: Vec<(usize, usize)> = Vec::new();
    let mut negatives: Vec<usize> = Vec::new();
    for (index, matched) in matches.iter().enumerate() {
        match matched {
            Match::Object(object) => positives.push((index, *object)),
            Match::Background => negatives.push(index),
            Match::Between => {}
        }
    }
    positives.shuffle(rng);
    positives.truncate((count as f32 * positive_share) as usize);
    negatives.shuffle(rng);
    negatives.truncate(count - positives.len());
    Sample { positives, negatives }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn candidates_are_matched_by_overlap() {
        let objects = [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]];
        let candidates = [
            [0.0, 0.0, 10.0, 9.0],    // 0.9 of the first
            [0.0, 0.0, 10.0, 5.0],    // 0.5
            [0.0, 0.0, 10.0, 2.0],    // 0.2
            [55.0, 55.0, 65.0, 65.0], // 25 / 175 of the second, and its best
            [80.0, 0.0, 90.0, 10.0],  // nothing
        ];
        let anchors = Matcher::ANCHORS.match_boxes(&candidates, &objects);
        assert_eq!(anchors, [Match::Object(0), Match::Between, Match::Background, Match::Object(1), Match::Background]);
        let proposals = Matcher::PROPOSALS.match_boxes(&candidates, &objects);
        assert_eq!(proposals[1], Match::Object(0));
        assert_eq!(proposals[3], Match::Background);
    }

    #[test]
    fn without_objects_all_is_background() {
        let matches = Matcher::ANCHORS.match_boxes(&[[0.0, 0.0, 1.0, 1.0]; 3], &[]);
        assert_eq!(matches, [Match::Background; 3]);
    }

    #[test]
    fn a_sample_has_its_share_of_objects_and_no_ignored_candidate() {
        let mut matches = vec![Match::Background; 100];
        matches[..30].fill(Match::Object(1));
        matches[30..50].fill(Match::Between);
        let drawn = sample(&matches, 40, 0.25, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!((drawn.positives.len(), drawn.negatives.len()), (10, 30));
        assert!(drawn.positives.iter().all(|&(index, object)| index < 30 && object == 1));
        assert!(drawn.negatives.iter().all(|&index| index >= 50));
        let few = sample(&matches[28..80], 40, 0.25, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!((few.positives.len(), few.negatives.len()), (2, 30), "all of them");
    }
}
