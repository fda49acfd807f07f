//! Measures over scored pairs: loss, accuracy, precision, recall, F1, area under the curve.

use crate::data::pairs::Pair;
use crate::measures::Measures;
use serde::{Deserialize, Serialize};

/// Measures of a binary classifier over one set of pairs; "positive" is "the caption matches".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Number of pairs.
    pub pairs: usize,
    /// Mean binary cross entropy, in nats.
    pub loss: f64,
    /// Share of pairs on the right side of probability 0.5.
    pub accuracy: f64,
    /// Of the pairs called matched, the share that is. 0 if none is called so.
    pub precision: f64,
    /// Of the matched pairs, the share called so. 0 if there is none.
    pub recall: f64,
    /// Harmonic mean of precision and recall. 0 if both are.
    pub f1: f64,
    /// Probability that a matched pair scores above a mismatched one, with ties counting half (the area under the ROC
    /// curve). 0.5 if one kind is absent.
    pub auc: f64,
}

impl Metrics {
    /// Of pairs and their match logits.
    pub fn of_pairs(logits: &[f32], pairs: &[Pair]) -> Self {
        Self::new(logits, &pairs.iter().map(Pair::matched).collect::<Vec<_>>())
    }

    /// Computes the measures from match logits and whether each pair matches.
    pub fn new(logits: &[f32], matched: &[bool]) -> Self {
        debug_assert_eq!(logits.len(), matched.len());
        let n = logits.len();
        let (mut tp, mut fp, mut fn_, mut right, mut loss) = (0usize, 0usize, 0usize, 0usize, 0f64);
        for (&logit, &is) in logits.iter().zip(matched) {
            let called = logit > 0.0;
            right += usize::from(called == is);
            tp += usize::from(called && is);
            fp += usize::from(called && !is);
            fn_ += usize::from(!called && is);
            loss += cross_entropy(logit, is);
        }
        let ratio = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        let (precision, recall) = (ratio(tp, tp + fp), ratio(tp, tp + fn_));
        let f1 = if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
        Self {
            pairs: n,
            loss: if n == 0 { 0.0 } else { loss / n as f64 },
            accuracy: ratio(right, n),
            precision,
            recall,
            f1,
            auc: area_under_curve(logits, matched),
        }
    }
}

impl Metrics {
    /// How many pairs are on the right side.
    pub fn right(&self) -> usize {
        (self.accuracy * self.pairs as f64).round() as usize
    }

    /// Adds every measure to a set of `measures`.
    pub fn add_to(&self, measures: &mut Measures, set: &str) {
        let values = [
            ("pairs", self.pairs as f64),
            ("loss", self.loss),
            ("accuracy", self.accuracy),
            ("precision", self.precision),
            ("recall", self.recall),
            ("f1", self.f1),
            ("auc", self.auc),
        ];
        measures.extend(set, values);
    }
}

/// Binary cross entropy of one logit, computed without overflow: `max(x, 0) - x·y + ln(1 + e^-|x|)`.
pub fn cross_entropy(logit: f32, matched: bool) -> f64 {
    let x = f64::from(logit);
    x.max(0.0) - if matched { x } else { 0.0 } + (-x.abs()).exp().ln_1p()
}

/// The probability of a logit.
pub fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// The area under the ROC curve in its rank-sum form; ties share their mean rank.
fn area_under_curve(scores: &[f32], positive: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut rank_sum, mut start) = (0f64, 0);
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && scores[order[end]] == scores[order[start]] {
            end += 1;
        }
        let mean_rank = (start + 1 + end) as f64 / 2.0;
        rank_sum += mean_rank * order[start..end].iter().filter(|&&i| positive[i]).count() as f64;
        start = end;
    }
    let p = positive.iter().filter(|&&x| x).count() as f64;
    let n = scores.len() as f64 - p;
    if p == 0.0 || n == 0.0 { 0.5 } else { (rank_sum - p * (p + 1.0) / 2.0) / (p * n) }
}

/// How high the right answers rank if every query scores every candidate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ranking {
    /// Number of queries.
    pub queries: usize,
    /// Number of candidates that each query ranks.
    pub candidates: usize,
    /// Share of queries with a right answer at rank 1.
    pub recall_at_1: f64,
    /// Share of queries with a right answer among the first 5.
    pub recall_at_5: f64,
    /// Share of queries with a right answer among the first 10.
    pub recall_at_10: f64,
    /// Median over the queries of the rank (from 1) of the best right answer.
    pub median_rank: f64,
}

impl Ranking {
    /// Computes the measures from the rank (0 = first) of each query's best right answer.
    pub fn new(mut ranks: Vec<usize>, candidates: usize) -> Self {
        ranks.sort_unstable();
        let n = ranks.len();
        let within = |k: usize| if n == 0 { 0.0 } else { ranks.partition_point(|&r| r < k) as f64 / n as f64 };
        let median_rank = match n {
            0 => 0.0,
            _ if n % 2 == 1 => ranks[n / 2] as f64 + 1.0,
            _ => (ranks[n / 2 - 1] + ranks[n / 2]) as f64 / 2.0 + 1.0,
        };
        Self {
            queries: n,
            candidates,
            recall_at_1: within(1),
            recall_at_5: within(5),
            recall_at_10: within(10),
            median_rank,
        }
    }
}

impl Ranking {
    /// Adds every measure to a set of `measures`.
    pub fn add_to(&self, measures: &mut Measures, set: &str) {
        let values = [
            ("queries", self.queries as f64),
            ("candidates", self.candidates as f64),
            ("recall@1", self.recall_at_1),
            ("recall@5", self.recall_at_5),
            ("recall@10", self.recall_at_10),
            ("median_rank", self.median_rank),
        ];
        measures.extend(set, values);
    }
}

/// Rank of the best right answer: the number of wrong candidates that score at least as high (ties count against the
/// model, so a constant score ranks last, not first).
pub fn best_rank(scores: &[f32], is_right: impl Fn(usize) -> bool) -> usize {
    let best =
        scores.iter().enumerate().filter(|(i, _)| is_right(*i)).map(|(_, &s)| s).fold(f32::NEG_INFINITY, f32::max);
    scores.iter().enumerate().filter(|(i, s)| !is_right(*i) && **s >= best).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn worked_example() {
        let m = Metrics::new(&[2.0, -1.0, 0.5, -3.0, 1.0], &[true, true, false, false, true]);
        assert_eq!((m.pairs, m.accuracy), (5, 0.6));
        assert!(
            (m.precision - 2.0 / 3.0).abs() < 1e-12
                && (m.recall - 2.0 / 3.0).abs() < 1e-12
                && (m.f1 - 2.0 / 3.0).abs() < 1e-12
        );
        // Pairs of (matched, mismatched): 2>.5, 2>-3, -1<.5, -1>-3, 1>.5, 1>-3.
        assert!((m.auc - 5.0 / 6.0).abs() < 1e-12);
        // python: -mean of y*log(sigmoid(x)) + (1-y)*log(1-sigmoid(x))
        assert!((m.loss - 0.555_223_1).abs() < 1e-6, "{}", m.loss);
    }

    #[test]
    fn degenerate_sets_give_numbers() {
        for m in [Metrics::new(&[], &[]), Metrics::new(&[1.0], &[true]), Metrics::new(&[-1.0, -1.0], &[false, false])] {
            assert!([m.loss, m.accuracy, m.precision, m.recall, m.f1, m.auc].iter().all(|x| x.is_finite()));
        }
        assert_eq!(Metrics::new(&[0.0, 0.0], &[true, false]).auc, 0.5);
        assert!((cross_entropy(200.0, false) - 200.0).abs() < 1e-9 && cross_entropy(200.0, true) < 1e-80);
    }

    proptest! {
        #[test]
        fn area_under_the_curve_counts_pairs(data in proptest::collection::vec((-3i8..4, any::<bool>()), 2..40)) {
            let scores: Vec<f32> = data.iter().map(|d| f32::from(d.0)).collect();
            let matched: Vec<bool> = data.iter().map(|d| d.1).collect();
            let (mut won, mut all) = (0.0, 0.0);
            for i in 0..data.len() {
                for j in 0..data.len() {
                    if matched[i] && !matched[j] {
                        all += 1.0;
                        won += if scores[i] > scores[j] { 1.0 } else if scores[i] == scores[j] { 0.5 } else { 0.0 };
                    }
                }
            }
            prop_assume!(all > 0.0);
            prop_assert!((Metrics::new(&scores, &matched).auc - won / all).abs() < 1e-9);
        }
    }

    #[test]
    fn ranks_and_recalls() {
        assert_eq!(best_rank(&[0.1, 0.9, 0.5], |i| i == 2), 1);
        assert_eq!(best_rank(&[0.5, 0.5, 0.5], |i| i == 0), 2);
        assert_eq!(best_rank(&[0.1, 0.9, 0.5], |i| i != 0), 0);
        let r = Ranking::new(vec![0, 4, 5, 20], 100);
        assert_eq!((r.recall_at_1, r.recall_at_5, r.recall_at_10, r.median_rank), (0.25, 0.5, 0.75, 5.5));
    }
}
