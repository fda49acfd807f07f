//! The regions that represent an image by the rules of bottom-up attention's ports: Hugging Face's and Caffe's. Both
//! keep the feature that was pooled at the proposal's own box.

use super::config::{DetectorConfig, RegionRule};
use super::detect::{Analysis, Candidate};
use super::nms::{Suppression, nms};
use lxmert_core::boxes::BoxXyxy;
use rayon::prelude::*;

/// How many regions an image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionCount {
    /// At least this many, if the network has as many boxes.
    pub min: usize,
    /// At most this many.
    pub max: usize,
}

impl RegionCount {
    /// Exactly `count`.
    pub fn exactly(count: usize) -> Self {
        Self { min: count, max: count }
    }
}

impl From<usize> for RegionCount {
    fn from(count: usize) -> Self {
        Self::exactly(count)
    }
}

impl std::fmt::Display for RegionCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self { min, max } if min == max => write!(f, "{max}"),
            Self { min, max } => write!(f, "{min}..{max}"),
        }
    }
}

impl std::str::FromStr for RegionCount {
    type Err = String;

    /// `36`, or `10..100`.
    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: usize = 1000;
        let number = |text: &str| match text.parse() {
            Ok(number) if (1..=MOST).contains(&number) => Ok(number),
            _ => Err(format!("'{text}' is not a number of regions from 1 to {MOST}")),
        };
        let (min, max) = match text.split_once("..") {
            Some((min, max)) => (number(min)?, number(max)?),
            None => (number(text)?, number(text)?),
        };
        match min <= max {
            true => Ok(Self { min, max }),
            false => Err(format!("'{text}': the smaller number must come first")),
        }
    }
}

/// A proposal that represents part of the image, and its description.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChosenProposal {
    /// Its index among the proposals.
    pub proposal: usize,
    /// Box (in pixels of the resized image), label (1 and up) and probability.
    pub candidate: Candidate,
}

/// The proposals that represent an image by the configuration's rule; `None` for [`RegionRule::Detections`], which
/// pools again at the detections' boxes.
pub fn select_proposals(
    config: &DetectorConfig,
    analysis: &Analysis,
    count: RegionCount,
) -> Option<Vec<ChosenProposal>> {
    match &config.roi_heads.region_rule {
        RegionRule::Detections => None,
        RegionRule::ClassAgnostic { nms_thresholds } => {
            let rule = |threshold| Suppression { threshold, convention: config.box_convention };
            Some(class_agnostic(analysis, nms_thresholds.iter().copied().map(rule), count))
        }
        RegionRule::ClassAware { nms_threshold, score_threshold } => {
            let rule = Suppression { threshold: *nms_threshold, convention: config.box_convention };
            Some(class_aware(analysis, rule, *score_threshold, count))
        }
    }
}

/// Every proposal's most probable class at its regressed box, in the order of the proposals.
pub fn best_guesses(analysis: &Analysis) -> Vec<Candidate> {
    (0..analysis.proposals.boxes.len())
        .map(|index| {
            let (class, score) = analysis.best_class(index);
            Candidate { box_xyxy: analysis.regressed_box(index, class), label: class as u32, score }
        })
        .collect()
}

/// Hugging Face's rule (`modeling_frcnn.py`, `do_nms`): the best guesses that survive suppression by the first of the
/// rules that leaves enough, best first. If none leaves enough, the last one's fewer are returned, as in detectron2's
/// port. (The original fails on the first image then, and for later ones returns the regions of the image before.)
fn class_agnostic(
    analysis: &Analysis,
    rules: impl Iterator<Item = Suppression>,
    count: RegionCount,
) -> Vec<ChosenProposal> {
    let guesses = best_guesses(analysis);
    let boxes: Vec<BoxXyxy> = guesses.iter().map(|guess| guess.box_xyxy).collect();
    let scores: Vec<f32> = guesses.iter().map(|guess| guess.score).collect();
    let mut kept = Vec::new();
    for rule in rules {
        kept = nms(&boxes, &scores, rule, count.max);
        if kept.len() >= count.min {
            break;
        }
    }
    kept.into_iter().map(|proposal| ChosenProposal { proposal, candidate: guesses[proposal] }).collect()
}

/// Caffe's rule (`generate_tsv.py`): the proposals with a confidence of at least `least`, in their own order; if these
/// are too few or too many, the best ones, best first. Boxes are the proposals', labels and scores those of the best
/// class.
fn class_aware(analysis: &Analysis, rule: Suppression, least: f32, count: RegionCount) -> Vec<ChosenProposal> {
    let classes = analysis.num_classes();
    let boxes = &analysis.proposals.boxes;
    // Measure overlaps in pixels of the original image, where one pixel is larger.
    let in_image: Vec<BoxXyxy> = boxes.iter().map(|b| analysis.input.to_image(b)).collect();
    let confidence = class_aware_confidence(&in_image, classes, rule, |index| analysis.probabilities(index));
    let chosen = keep_confident(&confidence, least, count);
    let candidate = |proposal: usize| {
        let (class, score) = analysis.best_class(proposal);
        Candidate { box_xyxy: boxes[proposal], label: class as u32, score }
    };
    chosen.into_iter().map(|proposal| ChosenProposal { proposal, candidate: candidate(proposal) }).collect()
}

/// For each box, its highest probability among the classes in which it survives suppression over all boxes. Class 0 is
/// background and does not count; `probabilities` gives a box's row.
pub fn class_aware_confidence<'a>(
    boxes: &[BoxXyxy],
    classes: usize,
    rule: Suppression,
    probabilities: impl Fn(usize) -> &'a [f32] + Sync,
) -> Vec<f32> {
    // Which boxes suppress each other, whatever their class.
    let rivals: Vec<Vec<usize>> =
        boxes.iter().map(|a| (0..boxes.len()).filter(|&b| rule.applies(a, &boxes[b])).collect()).collect();
    let survivors_of = |class: usize| {
        let score = |index: &usize| probabilities(*index)[class];
        let mut order: Vec<usize> = (0..boxes.len()).collect();
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let mut suppressed = vec![false; boxes.len()];
        let mut survivors = Vec::new();
        for index in order {
            if !suppressed[index] {
                survivors.push((index, score(&index)));
                rivals[index].iter().for_each(|&rival| suppressed[rival] = true);
            }
        }
        survivors
    };
    let larger = |mut best: Vec<f32>, survivors: Vec<(usize, f32)>| {
        survivors.into_iter().for_each(|(index, score)| best[index] = best[index].max(score));
        best
    };
    let zeros = || vec![0f32; boxes.len()];
    let merged = |a: Vec<f32>, b: Vec<f32>| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect();
    (1..classes).into_par_iter().map(survivors_of).fold(zeros, larger).reduce(zeros, merged)
}

/// The indices with a confidence of at least `least`, in order; if these are too few or too many, the best, best first.
pub fn keep_confident(confidence: &[f32], least: f32, count: RegionCount) -> Vec<usize> {
    let confident: Vec<usize> = (0..confidence.len()).filter(|&index| confidence[index] >= least).collect();
    let wanted = confident.len().clamp(count.min, count.max);
    if wanted == confident.len() {
        return confident;
    }
    let mut best: Vec<usize> = (0..confidence.len()).collect();
    best.sort_by(|&a, &b| confidence[b].total_cmp(&confidence[a]));
    best.truncate(wanted);
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::config::BoxConvention;

    #[test]
    fn counts_are_a_number_or_a_range() {
        assert_eq!("36".parse(), Ok(RegionCount::exactly(36)));
        assert_eq!("10..100".parse(), Ok(RegionCount { min: 10, max: 100 }));
        assert_eq!(RegionCount { min: 10, max: 100 }.to_string(), "10..100");
        for wrong in ["0", "1001", "100..10", "..", "36..", "a"] {
            assert!(wrong.parse::<RegionCount>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_boxs_confidence_is_its_best_surviving_class() {
        // The first two overlap by half; the third is separate. Class 0 is background.
        let boxes = [[0., 0., 9., 9.], [0., 0., 9., 4.], [20., 0., 29., 9.]];
        let rows: [&[f32]; 3] = [&[0.0, 0.6, 0.1], &[0.0, 0.5, 0.2], &[0.9, 0.05, 0.05]];
        let rule = Suppression { threshold: 0.5, convention: BoxConvention::Inclusive };
        // In class 1 the second box is suppressed, in class 2 the first.
        assert_eq!(class_aware_confidence(&boxes, 3, rule, |i| rows[i]), [0.6, 0.2, 0.05]);
        // An IoU equal to the threshold suppresses only in Caffe.
        let rule = Suppression { threshold: 0.5, convention: BoxConvention::Continuous };
        let boxes = [[0., 0., 10., 10.], [0., 0., 10., 5.], [20., 0., 29., 9.]];
        assert_eq!(class_aware_confidence(&boxes, 3, rule, |i| rows[i]), [0.6, 0.5, 0.05]);
    }

    /// A shift by class number, as torchvision once used to separate classes, leaves only an eighth of a pixel of
    /// precision at class 1600.
    #[test]
    fn the_last_class_is_suppressed_like_the_first() {
        let boxes = [[0.0, 0.0, 99.0, 99.0], [53.84, 0.0, 152.84, 99.0], [53.86, 0.0, 152.86, 99.0]];
        let rule = Suppression { threshold: 0.3, convention: BoxConvention::Inclusive };
        for class in [1, 1600] {
            let rows = [0.9, 0.8, 0.7].map(|score| {
                let mut row = vec![0.0; 1601];
                row[class] = score;
                row
            });
            // IoU with the first: 0.30005 and 0.29989.
            let confidence = class_aware_confidence(&boxes, 1601, rule, |i| &rows[i]);
            assert_eq!(confidence, [0.9, 0.0, 0.7], "class {class}");
        }
    }

    #[test]
    fn enough_confident_proposals_keep_their_own_order() {
        let confidence = [0.3, 0.1, 0.9, 0.2];
        assert_eq!(keep_confident(&confidence, 0.2, RegionCount { min: 1, max: 4 }), [0, 2, 3]);
        assert_eq!(keep_confident(&confidence, 0.2, RegionCount { min: 1, max: 2 }), [2, 0]);
        assert_eq!(keep_confident(&confidence, 0.2, RegionCount { min: 4, max: 4 }), [2, 0, 3, 1]);
        assert_eq!(keep_confident(&confidence, 0.2, RegionCount::exactly(9)).len(), 4);
    }
}
