//! Does a method know what matters? Remove what it calls relevant, and see whether the match disappears.
//!
//! The perturbation test of Chefer et al. (ICCV 2021, §4), for matching. Each example is a true caption of a test
//! image, and its match logit is explained. *Positive*: the most relevant is removed first, and a good method's curve
//! falls at once (small area). *Negative*: the least relevant is removed first, and a good method's curve stays up
//! (large area). The score is the share of these pairs that the model still calls a match. False captions are left out:
//! the less the model sees, the more it says "no match", so their score could not fall.
//!
//! Removed items are dropped from the sequence, not zeroed. Words keep their order and move up; `[CLS]` and `[SEP]`
//! stay. At the last step nothing of the image or of the sentence is left, and all methods meet: words that attend to
//! no region get zeros, as in the reference (the softmax of an empty row times no values). Items with equal weights are
//! removed in random order, so that a method without an opinion scores at chance.
//!
//! The reference removes 25, 50, 75, 80, 85, 90, 95 and 100 % of 36 regions. Here each fraction is rounded to a whole
//! number of items, without repetition: of 12 regions, 3, 6, 9, 10, 11 and 12 are removed ([`steps`]). The steps are those
//! of the image with the most regions and of a sentence of median length; others keep the nearest whole number.

use super::maps::PairMaps;
use super::methods::{Method, Relevance};
use super::scorer::{PairInput, Scorer, keep_regions};
use crate::dataset::{DataSet, Example};
use crate::{Error, Result};
use lxmert_core::features::Regions;
use lxmert_core::model::Capture;
use lxmert_core::procedural::values;
use lxmert_train::data::per_example::{self, Record};
use serde_json::json;
use std::collections::HashMap;
use std::fmt::Write as _;

/// The fractions that the reference removes (`pert_steps`).
const REFERENCE_STEPS: [f64; 9] = [0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0];

/// The reference's fractions as distinct whole numbers of `count` items, again as fractions.
pub fn steps(count: usize) -> Vec<f64> {
    let count = count.max(1) as f64;
    let mut steps = REFERENCE_STEPS.map(|step| (step * count).round() / count).to_vec();
    steps.dedup();
    steps
}

/// How many examples to explain, and perturbed pairs to score, at once.
const BATCH: usize = 64;

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Regions of the image.
    Regions,
    /// Word pieces of the sentence.
    Words,
}

/// What is removed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The most relevant.
    Positive,
    /// The least relevant.
    Negative,
}

impl Side {
    /// A name for tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Regions => "regions",
            Self::Words => "words",
        }
    }
}

impl Order {
    /// A name for tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        }
    }
}

/// The four tests.
pub const TESTS: [(Side, Order); 4] = [
    (Side::Regions, Order::Positive),
    (Side::Regions, Order::Negative),
    (Side::Words, Order::Positive),
    (Side::Words, Order::Negative),
];

/// The rankings to test: every method, and `None` for a random ranking.
pub fn rankings() -> impl Iterator<Item = Option<Method>> {
    Method::ALL.into_iter().map(Some).chain([None])
}

/// A name for tables and files.
pub fn ranking_name(ranking: Option<Method>) -> &'static str {
    ranking.map_or("random", Method::name)
}

/// One line of one test.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What is removed.
    pub side: Side,
    /// What is removed first.
    pub order: Order,
    /// The method that ranks; `None` for random.
    pub ranking: Option<Method>,
    /// The fractions removed.
    pub steps: Vec<f64>,
    /// The share of pairs still called a match, per step.
    pub scores: Vec<f64>,
    /// The area under the curve over the fraction removed, 0..1.
    pub area: f64,
    /// The standard error of that area over the examples.
    pub error: f64,
}

/// The whole test.
#[derive(Debug, Clone, PartialEq)]
pub struct Perturbation {
    /// How many pairs.
    pub examples: usize,
    /// One curve per test and ranking.
    pub curves: Vec<Curve>,
    /// Each pair, for one's own analysis: its match logit and, for each test and ranking, its own area.
    pub pairs: Vec<Record>,
}

impl Curve {
    /// The standard error of the share over `examples` pairs, per step.
    pub fn score_errors(&self, examples: usize) -> Vec<f64> {
        self.scores.iter().map(|p| (p * (1.0 - p) / examples.max(1) as f64).sqrt()).collect()
    }
}

impl Perturbation {
    /// The curve of one test and ranking.
    pub fn curve(&self, test: (Side, Order), ranking: Option<Method>) -> Option<&Curve> {
        self.curves.iter().find(|c| (c.side, c.order) == test && c.ranking == ranking)
    }

    /// Every point as CSV: side, order, method, fraction removed, share still matched, its standard error.
    pub fn to_csv(&self) -> String {
        let mut out = String::from("side,order,method,removed,matched,standard_error\n");
        for curve in &self.curves {
            let errors = curve.score_errors(self.examples);
            for ((step, score), error) in curve.steps.iter().zip(&curve.scores).zip(errors) {
                let (side, order, name) = (curve.side.name(), curve.order.name(), ranking_name(curve.ranking));
                let _ = writeln!(out, "{side},{order},{name},{step:.6},{score:.6},{error:.6}");
            }
        }
        out
    }

    /// The same as JSON, with the areas.
    pub fn to_json(&self) -> serde_json::Value {
        let curve = |c: &Curve| {
            serde_json::json!({
                "side": c.side.name(), "order": c.order.name(), "method": ranking_name(c.ranking),
                "area": c.area, "standard_error": c.error, "removed": c.steps, "matched": c.scores,
            })
        };
        let curves: Vec<_> = self.curves.iter().map(curve).collect();
        serde_json::json!({ "examples": self.examples, "curves": curves })
    }
}

impl std::fmt::Display for Perturbation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "  {:<24}{:>34}{:>34}",
            "", "most relevant first (less is better)", "least first (more is better)"
        )?;
        write!(f, "  {:<24}{:>17}{:>17}{:>17}{:>17}", "area under the curve", "regions", "words", "regions", "words")?;
        for ranking in rankings() {
            write!(f, "\n  {:<24}", ranking_name(ranking))?;
            for test in [TESTS[0], TESTS[2], TESTS[1], TESTS[3]] {
                let cell = self.curve(test, ranking).map(|c| format!("{:.3} ± {:.3}", c.area, c.error));
                write!(f, "{:>17}", cell.unwrap_or_default())?;
            }
        }
        Ok(())
    }
}

/// The lines of the four tests: each test by each ranking.
pub fn lines() -> Vec<((Side, Order), Option<Method>)> {
    TESTS.into_iter().flat_map(|test| rankings().map(move |ranking| (test, ranking))).collect()
}

/// The logits of one pair as things are removed: for each of [`lines`] one per step. `ties` orders equal weights, and ranks at
/// random; `steps` are those of the regions and of the words; `score` gives the logits of what is left.
///
/// # Errors
/// [`Error::Shape`] when a method cannot read the maps; what `score` says.
pub fn removals(
    maps: &PairMaps,
    (regions, ids): (&Regions, &[u32]),
    ties: &Relevance,
    [region_steps, word_steps]: [&[f64]; 2],
    score: impl Fn(&[(&Regions, &[u32])]) -> Result<Vec<f32>>,
) -> Result<Vec<Vec<f32>>> {
    let found =
        rankings().map(|r| r.map_or_else(|| Ok(ties.clone()), |m| m.sentence(maps))).collect::<Result<Vec<_>>>()?;
    let mut variants = Variants::default();
    let mut wanted = Vec::new();
    for (line, ((side, order), _)) in lines().iter().enumerate() {
        let relevance = &found[line % found.len()];
        let cut = |step: &f64| {
            let kept = match side {
                Side::Regions => kept_regions(&relevance.regions, &ties.regions, *order, *step),
                Side::Words => kept_words(&relevance.words, &ties.words, *order, *step),
            };
            variants.index(*side, kept)
        };
        let steps = if *side == Side::Regions { region_steps } else { word_steps };
        wanted.push(steps.iter().map(cut).collect::<Vec<_>>());
    }
    let logits = variants.score(score, regions, ids)?;
    Ok(wanted.into_iter().map(|cuts| cuts.into_iter().map(|variant| logits[variant]).collect()).collect())
}

/// Weights at random, for ties and for the random ranking: of `words` word pieces and `regions` regions.
pub fn random(words: usize, regions: usize, index: usize, seed: u64) -> Relevance {
    let random = |what: &str, n: usize| values(&format!("{what}.{index}"), n, 0.0, 1.0, seed);
    Relevance { words: random("words", words), regions: random("regions", regions) }
}

/// Runs the four tests on `examples`, which are true captions. Calls `done` with the number of finished examples.
///
/// # Errors
/// [`Error::Shape`] if there is no example; the errors of [`Scorer::score`].
pub fn measure(
    data: &DataSet,
    scorer: &Scorer,
    examples: &[Example],
    seed: u64,
    mut done: impl FnMut(usize),
) -> Result<Perturbation> {
    if examples.is_empty() {
        return Err(Error::Shape("no true caption of a test image, so there is nothing to perturb".into()));
    }
    let lines = lines();
    let [region_steps, word_steps] = sequences(data, scorer, examples)?;
    let steps_of = |side| if side == Side::Regions { &region_steps } else { &word_steps };
    let mut matched: Vec<Vec<usize>> = lines.iter().map(|((side, _), _)| vec![0; steps_of(*side).len()]).collect();
    let mut areas = vec![Vec::with_capacity(examples.len()); lines.len()];
    let mut records = Vec::with_capacity(examples.len());
    for (number, chunk) in examples.chunks(BATCH).enumerate() {
        let regions = chunk.iter().map(|e| data.regions(&e.image)).collect::<Result<Vec<_>>>()?;
        let pairs: Vec<PairInput> =
            chunk.iter().zip(&regions).map(|(e, regions)| PairInput { regions, text: &e.text }).collect();
        for (i, (scored, regions)) in scorer.score(&pairs, Capture::Probes)?.iter().zip(&regions).enumerate() {
            lxmert_core::interrupt::check_interrupt()?;
            let index = number * BATCH + i;
            let (words, count) = (scored.encoding.ids.len(), regions.num_regions());
            let ties = random(words, count, index, seed);
            let steps = [region_steps.as_slice(), word_steps.as_slice()];
            let pair = (regions, scored.encoding.ids.as_slice());
            let logits = removals(scored.maps()?, pair, &ties, steps, |pairs| scorer.logits(pairs))?;
            for ((logits, (counts, areas)), ((side, _), _)) in
                logits.iter().zip(matched.iter_mut().zip(&mut areas)).zip(&lines)
            {
                let stays: Vec<bool> = logits.iter().map(|logit| *logit >= 0.0).collect();
                counts.iter_mut().zip(&stays).for_each(|(count, stays)| *count += usize::from(*stays));
                let scores: Vec<f64> = stays.into_iter().map(|stays| f64::from(u8::from(stays))).collect();
                areas.push(area(steps_of(*side), &scores));
            }
            let own: Vec<f64> = areas.iter().filter_map(|areas| areas.last().copied()).collect();
            records.push(pair_record(&chunk[i], scored.logit, &own));
            done(index + 1);
        }
    }
    let total = examples.len() as f64;
    let curves = lines.iter().zip(&matched).zip(&areas).map(|((((side, order), ranking), counts), areas)| {
        let (area, error) = mean_and_error(areas);
        let scores = counts.iter().map(|count| *count as f64 / total).collect();
        Curve { side: *side, order: *order, ranking: *ranking, steps: steps_of(*side).clone(), scores, area, error }
    });
    Ok(Perturbation { examples: examples.len(), curves: curves.collect(), pairs: records })
}

/// A pair's line of `--per-example`. `areas`: one for each of [`lines`].
fn pair_record(example: &Example, logit: f32, areas: &[f64]) -> Record {
    let (image, sentence) = (json!(example.image), json!(example.text));
    let mut record = per_example::record([("image", image), ("sentence", sentence), ("logit", json!(logit))]);
    for (((side, order), ranking), area) in lines().into_iter().zip(areas) {
        let ranking = ranking.map_or("random", Method::slug);
        record.insert(format!("{}_{}_{ranking}", side.name(), order.name()), json!(area));
    }
    record
}

/// The steps for the regions and for the words of these examples, based on the largest number of regions of an image
/// and the median number of words of a sentence.
fn sequences(data: &DataSet, scorer: &Scorer, examples: &[Example]) -> Result<[Vec<f64>; 2]> {
    let mut regions = 0;
    let mut words = Vec::with_capacity(examples.len());
    for example in examples {
        regions = regions.max(data.regions(&example.image)?.num_regions());
        words.push(scorer.encode(&example.text)?.ids.len().saturating_sub(2));
    }
    words.sort_unstable();
    Ok([steps(regions), steps(words[words.len() / 2])])
}

/// The variants of one pair to score; each set of kept regions or words occurs once.
#[derive(Default)]
struct Variants {
    numbers: HashMap<(Side, Vec<usize>), usize>,
    kept: Vec<(Side, Vec<usize>)>,
}

impl Variants {
    fn index(&mut self, side: Side, kept: Vec<usize>) -> usize {
        let next = self.kept.len();
        let number = *self.numbers.entry((side, kept.clone())).or_insert(next);
        if number == next {
            self.kept.push((side, kept));
        }
        number
    }

    fn score(
        &self,
        score: impl Fn(&[(&Regions, &[u32])]) -> Result<Vec<f32>>,
        regions: &Regions,
        ids: &[u32],
    ) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; self.kept.len()];
        let all = 0..self.kept.len();
        // Images without regions must not be in a batch with others.
        let (bare, others): (Vec<usize>, Vec<usize>) =
            all.partition(|&i| matches!(&self.kept[i], (Side::Regions, kept) if kept.is_empty()));
        for chunk in bare.chunks(BATCH).chain(others.chunks(BATCH)) {
            let cut: Vec<(Regions, Vec<u32>)> = chunk
                .iter()
                .map(|&i| match &self.kept[i] {
                    (Side::Regions, kept) => (keep_regions(regions, kept), ids.to_vec()),
                    (Side::Words, kept) => (regions.clone(), kept.iter().map(|&i| ids[i]).collect()),
                })
                .collect();
            let rows: Vec<(&Regions, &[u32])> = cut.iter().map(|(regions, ids)| (regions, ids.as_slice())).collect();
            for (&i, logit) in chunk.iter().zip(score(&rows)?) {
                logits[i] = logit;
            }
        }
        Ok(logits)
    }
}

/// `weights.len()` items ranked, the one to keep longest first; equal weights are ordered by `ties`.
fn ranked(weights: &[f32], ties: &[f32], order: Order) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..weights.len()).collect();
    ranked.sort_by(|&a, &b| {
        let most_first = weights[b].total_cmp(&weights[a]);
        let by_weight = if order == Order::Negative { most_first } else { most_first.reverse() };
        by_weight.then(ties[a].total_cmp(&ties[b]))
    });
    ranked
}

/// The whole number nearest to `(1 − step) · count`; halves are rounded up, also where 0.5 is computed as 0.4999….
fn number_kept(count: usize, step: f64) -> usize {
    ((1.0 - step) * count as f64 + 1e-9).round() as usize
}

/// The regions left after removing the fraction `step` of them, in order.
pub fn kept_regions(weights: &[f32], ties: &[f32], order: Order, step: f64) -> Vec<usize> {
    let mut kept = ranked(weights, ties, order);
    kept.truncate(number_kept(weights.len(), step));
    kept.sort_unstable();
    kept
}

/// The word pieces left after removing the fraction `step` of those between `[CLS]` and `[SEP]`, in order, with both.
pub fn kept_words(weights: &[f32], ties: &[f32], order: Order, step: f64) -> Vec<usize> {
    let last = weights.len().saturating_sub(1);
    if last < 2 {
        return (0..weights.len()).collect();
    }
    let mut kept: Vec<usize> = ranked(&weights[1..last], &ties[1..last], order).iter().map(|i| i + 1).collect();
    kept.truncate(number_kept(last - 1, step));
    kept.extend([0, last]);
    kept.sort_unstable();
    kept
}

/// The area under the scores over the fractions removed, by the trapezoidal rule.
fn area(steps: &[f64], scores: &[f64]) -> f64 {
    let parts = steps.windows(2).zip(scores.windows(2));
    parts.map(|(step, score)| (step[1] - step[0]) * (score[0] + score[1]) / 2.0).sum()
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIES: [f32; 6] = [0.1, 0.6, 0.3, 0.2, 0.5, 0.4];

    #[test]
    fn the_most_relevant_is_removed_first_or_last() {
        let weights = [0.1, 0.9, 0.5, 0.7];
        assert_eq!(kept_regions(&weights, &TIES, Order::Positive, 0.5), [0, 2]);
        assert_eq!(kept_regions(&weights, &TIES, Order::Negative, 0.5), [1, 3]);
        assert_eq!(kept_regions(&weights, &TIES, Order::Negative, 0.0), [0, 1, 2, 3]);
        assert_eq!(kept_regions(&weights, &TIES, Order::Negative, 0.75), [1]);
        assert!(kept_regions(&weights, &TIES, Order::Negative, 1.0).is_empty());
    }

    #[test]
    fn words_keep_their_order_and_cls_and_sep_stay() {
        let weights = [9.0, 0.2, 0.8, 0.1, 0.4, 9.0];
        assert_eq!(kept_words(&weights, &TIES, Order::Positive, 0.5), [0, 1, 3, 5]);
        assert_eq!(kept_words(&weights, &TIES, Order::Negative, 0.5), [0, 2, 4, 5]);
        assert_eq!(kept_words(&weights, &TIES, Order::Negative, 1.0), [0, 5]);
        assert_eq!(kept_words(&[9.0, 9.0], &TIES, Order::Negative, 0.5), [0, 1]);
    }

    #[test]
    fn equal_weights_are_removed_in_random_order() {
        let kept = kept_regions(&[0.0; 6], &TIES, Order::Negative, 0.5);
        assert_eq!(kept, kept_regions(&[0.0; 6], &TIES, Order::Positive, 0.5));
        assert_eq!(kept, [0, 2, 3]);
    }

    #[test]
    fn the_nearest_whole_number_is_kept() {
        assert_eq!([0.0, 0.25, 0.8, 0.9, 1.0].map(|step| number_kept(10, step)), [10, 8, 2, 1, 0]);
        assert_eq!([0.25, 0.5, 0.75, 0.9].map(|step| number_kept(5, step)), [4, 3, 1, 1]);
    }

    #[test]
    fn each_step_removes_a_different_whole_number_of_items() {
        let removed = |count: usize| -> Vec<usize> {
            steps(count).iter().map(|step| count - number_kept(count, *step)).collect()
        };
        assert_eq!(removed(36), [0, 9, 18, 27, 29, 31, 32, 34, 36]);
        assert_eq!(removed(12), [0, 3, 6, 9, 10, 11, 12]);
        assert_eq!(removed(1), [0, 1]);
        assert_eq!(removed(100), [0, 25, 50, 75, 80, 85, 90, 95, 100]);
    }

    #[test]
    fn areas_are_trapezoids_over_uneven_steps() {
        let steps = REFERENCE_STEPS;
        assert!((area(&steps, &[1.0; 9]) - 1.0).abs() < 1e-12);
        // Falls from 1 to 0 between 0 and 0.25: half of that.
        assert!((area(&steps, &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]) - 0.125).abs() < 1e-12);
        assert!((area(&steps, &steps.map(|step| 1.0 - step)) - 0.5).abs() < 1e-12);
        let (mean, error) = mean_and_error(&[0.0, 1.0, 0.0, 1.0]);
        assert!((mean - 0.5).abs() < 1e-12 && (error - (1.0 / 12.0f64).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn equal_variants_are_scored_once() {
        let mut variants = Variants::default();
        assert_eq!(variants.index(Side::Regions, vec![0, 1]), 0);
        assert_eq!(variants.index(Side::Words, vec![0, 1]), 1);
        assert_eq!(variants.index(Side::Regions, vec![0, 1]), 0);
        assert_eq!(variants.kept.len(), 2);
    }
}
