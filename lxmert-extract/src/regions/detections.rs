//! Regions that the detector finds, and the rules for choosing among its boxes.

use super::{RegionSource, detector_info, regions_of};
use crate::Result;
use crate::choice::LoadedDetector;
use crate::detector::box_coder::is_at_least;
use crate::detector::config::RegionRule;
use crate::detector::detect::Candidate;
use crate::detector::nms::nms;
use crate::detector::selection::{ChosenProposal, RegionCount, best_guesses, select_proposals};
use crate::detector::transform::NetworkInput;
use crate::detector::{Analysis, Detector};
use crate::images::DecodedImage;
use candle_core::Tensor;
use lxmert_core::boxes::{BoxXyxy, iou};
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};

/// The rule for choosing an image's regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Selection {
    /// The detector's own rule. For scenes and coco: each region is named by its most probable class, the best-scored
    /// come first, repeats of a place last, and features are pooled at the region's own box. For the Visual Genome
    /// detectors: Hugging Face's rule or Caffe's
    #[default]
    Detections,
    /// The student project's rule (durakalon/LXMERT_Flickr): each proposal represents its most probable class;
    /// class-agnostic suppression at 0.5; features are pooled at the proposal's box, but the stored box is the
    /// regressed one
    Student,
}

impl Selection {
    /// Its name on the command line and in a store's settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detections => "detections",
            Self::Student => "student",
        }
    }
}

/// The name of the rule [`places_apart_first`] in a store. Another rule needs another name, so that no store or cache mixes
/// the two.
pub(super) const RULE: &str = "places apart";

/// A detector and the rule that chooses its regions.
#[derive(Debug)]
pub struct DetectionSource {
    /// The detector.
    pub loaded: LoadedDetector,
    /// Regions per image; fewer than the least number only if the network has no more boxes.
    pub count: RegionCount,
    /// How they are chosen.
    pub selection: Selection,
}

impl RegionSource for DetectionSource {
    fn info(&self, dtype: StoreDtype) -> StoreInfo {
        let mut info = detector_info(&self.loaded, self.selection.name().into(), self.count.max, dtype);
        let rule = &self.loaded.detector.config().roi_heads.region_rule;
        if self.selection == Selection::Detections && *rule == RegionRule::Detections {
            info.settings.insert("rule".into(), RULE.into());
        }
        if self.count.min != self.count.max {
            info.settings.insert("regions".into(), self.count.to_string());
        }
        info
    }

    fn input(&self, image: &DecodedImage) -> Result<NetworkInput> {
        Ok(self.loaded.detector.input(image)?)
    }

    fn regions(&self, input: NetworkInput) -> Result<Regions> {
        let detector = &self.loaded.detector;
        Ok(select(detector, &detector.analyse(input)?, self.count, self.selection)?)
    }
}

/// The best regions of an image, as many as `count` allows; fewer only if the network has no more boxes.
///
/// # Errors
/// Returns an error if a computation fails.
pub fn select(
    detector: &Detector,
    analysis: &Analysis,
    count: impl Into<RegionCount>,
    selection: Selection,
) -> lxmert_core::Result<Regions> {
    let count = count.into();
    let proposals = match selection {
        Selection::Detections => select_proposals(detector.config(), analysis, count),
        Selection::Student => Some(student(analysis, count)),
    };
    let (chosen, features): (Vec<Candidate>, Tensor) = match proposals {
        Some(proposals) => {
            let features = features_of(analysis, &proposals)?;
            (proposals.into_iter().map(|chosen| chosen.candidate).collect(), features)
        }
        None => {
            let chosen = places_apart_first(detector, analysis, count);
            let boxes: Vec<BoxXyxy> = chosen.iter().map(|c| c.box_xyxy).collect();
            let features = detector.features_at(analysis, &boxes)?;
            (chosen, features)
        }
    };
    regions_of(detector, &analysis.input, &chosen, &features)
}

/// The features pooled at the proposals' own boxes.
fn features_of(analysis: &Analysis, chosen: &[ChosenProposal]) -> candle_core::Result<Tensor> {
    if chosen.is_empty() {
        return analysis.features.narrow(0, 0, 0);
    }
    let rows: Vec<u32> = chosen.iter().map(|chosen| chosen.proposal as u32).collect();
    analysis.features.index_select(&Tensor::from_vec(rows, chosen.len(), analysis.features.device())?, 0)
}

/// As many of the proposals as `count` allows, each with its own most probable class, that class's score and its regressed
/// box, best first:
///
/// 1. those that overlap no better one by more than the suppression threshold, whatever the classes (a second name for a
///    place adds nothing): all above the score threshold, then weaker ones until there are enough;
/// 2. the others, first those that overlap no better one by more than 0.7;
/// 3. the proposals' own boxes, best objectness first.
///
/// No region appears twice. Ties keep the order of the proposals, so the choice is reproducible.
fn places_apart_first(detector: &Detector, analysis: &Analysis, count: RegionCount) -> Vec<Candidate> {
    let heads = &detector.config().roi_heads;
    let mut guesses = best_guesses(analysis);
    let own_boxes = guesses.iter().zip(&analysis.proposals.boxes);
    let own_boxes: Vec<Candidate> = own_boxes.map(|(guess, b)| Candidate { box_xyxy: *b, ..*guess }).collect();
    guesses.retain(|c| is_at_least(&c.box_xyxy, heads.min_box_size, detector.config().box_convention));
    guesses.sort_by(|a, b| b.score.total_cmp(&a.score));
    let strong = guesses.partition_point(|guess| guess.score > heads.score_threshold);
    let mut chosen: Vec<Candidate> = Vec::new();
    let mut add = |guesses: &[Candidate], most: usize, threshold: f64| {
        for guess in guesses {
            if chosen.len() >= most {
                return;
            }
            let repeats = |c: &Candidate| {
                c.box_xyxy == guess.box_xyxy || f64::from(iou(&c.box_xyxy, &guess.box_xyxy)) > threshold
            };
            if !chosen.iter().any(repeats) {
                chosen.push(*guess);
            }
        }
    };
    add(&guesses[..strong], count.max, heads.nms_threshold);
    for threshold in [heads.nms_threshold, 0.7, 1.0] {
        add(&guesses, count.min, threshold);
    }
    add(&own_boxes, count.min, 1.0);
    chosen
}

/// The student project's rule, with its own threshold.
fn student(analysis: &Analysis, count: RegionCount) -> Vec<ChosenProposal> {
    let guesses = best_guesses(analysis);
    let boxes: Vec<BoxXyxy> = guesses.iter().map(|g| g.box_xyxy).collect();
    let scores: Vec<f32> = guesses.iter().map(|g| g.score).collect();
    let kept = nms(&boxes, &scores, 0.5, count.max);
    kept.into_iter().map(|proposal| ChosenProposal { proposal, candidate: guesses[proposal] }).collect()
}
