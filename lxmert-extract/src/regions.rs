//! Which regions of an image go on to the transformer, and with which features.

use crate::detector::box_coder::is_at_least;
use crate::detector::config::BoxConvention;
use crate::detector::detect::Candidate;
use crate::detector::nms::nms;
use crate::detector::{Analysis, Detector};
use candle_core::Tensor;
use lxmert_core::Result;
use lxmert_core::boxes::{BoxXyxy, iou, normalise};
use lxmert_core::features::Attributes;

/// How an image's regions are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Selection {
    /// The detections, best first, then weaker ones until there are enough. Features are pooled at
    /// the region's own box.
    #[default]
    Detections,
    /// The rule of the student project (durakalon/LXMERT_Flickr): each proposal stands for its most
    /// probable class; class-agnostic suppression at 0.5; features are pooled at the proposal's box
    /// while the stored box is the regressed one.
    Student,
}

/// The regions of one image, best first within each step of the selection.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedRegions {
    /// Height and width of the image in pixels.
    pub image_size: (usize, usize),
    /// x0 y0 x1 y1 in 0..1 of the image.
    pub boxes_normalised: Vec<BoxXyxy>,
    /// Label ids of the detector, 1 and up.
    pub labels: Vec<u32>,
    /// Probability of the label.
    pub scores: Vec<f32>,
    /// Length of a feature.
    pub feature_dim: usize,
    /// Features, region by region: as many as boxes × `feature_dim`.
    pub features: Vec<f32>,
    /// The most probable value of the detector's first attribute, from detectors that have one.
    pub attributes: Option<Attributes>,
}

/// The `count` regions of `image`: `[3, height, width]`, RGB in 0..1, f32. Fewer only when the network
/// has no more boxes to give.
///
/// # Errors
/// When the image has another shape or a computation fails.
pub fn select(detector: &Detector, image: &Tensor, count: usize, selection: Selection) -> Result<SelectedRegions> {
    select_from(detector, &detector.analyse(image)?, count, selection)
}

/// As [`select`], from what the network has said already.
///
/// # Errors
/// When a computation fails.
pub fn select_from(
    detector: &Detector,
    analysis: &Analysis,
    count: usize,
    selection: Selection,
) -> Result<SelectedRegions> {
    let (chosen, features) = match selection {
        Selection::Detections => {
            let chosen = strong_then_weak(detector, analysis, count);
            let boxes: Vec<BoxXyxy> = chosen.iter().map(|c| c.box_xyxy).collect();
            let features = detector.features_at(analysis, &boxes)?;
            (chosen, features)
        }
        Selection::Student => student(analysis, count)?,
    };
    let input = &analysis.input;
    let (height, width) = (input.resized_size.0 as f32, input.resized_size.1 as f32);
    Ok(SelectedRegions {
        image_size: input.image_size,
        boxes_normalised: chosen.iter().map(|c| normalise(&c.box_xyxy, width, height)).collect(),
        labels: chosen.iter().map(|c| c.label).collect(),
        scores: chosen.iter().map(|c| c.score).collect(),
        feature_dim: detector.config().roi_heads.representation_size,
        attributes: detector.first_attribute(&features)?,
        features: features.flatten_all()?.to_vec1::<f32>()?,
    })
}

/// torchvision's detections; when they are fewer than `count`, weaker ones in this order:
///
/// 1. each proposal's most probable class at its regressed box, best score first, when it overlaps no
///    chosen region by more than the suppression threshold (whatever the classes: a region that
///    is there already under another name tells nothing new);
/// 2. the others of these, best score first;
/// 3. the proposals' own boxes, best objectness first.
///
/// No region appears twice. Ties keep the order of the proposals, so the choice is reproducible.
fn strong_then_weak(detector: &Detector, analysis: &Analysis, count: usize) -> Vec<Candidate> {
    let heads = &detector.config().roi_heads;
    let mut chosen = detector.candidates(analysis);
    chosen.truncate(count);
    if chosen.len() == count {
        return chosen;
    }
    let mut weaker = best_guesses(analysis);
    weaker.retain(|c| is_at_least(&c.box_xyxy, heads.min_box_size, BoxConvention::Continuous));
    weaker.sort_by(|a, b| b.score.total_cmp(&a.score));
    for guess in &weaker {
        if chosen.len() == count {
            return chosen;
        }
        if !chosen.iter().any(|c| f64::from(iou(&c.box_xyxy, &guess.box_xyxy)) > heads.nms_threshold) {
            chosen.push(*guess);
        }
    }
    let own_boxes = best_guesses(analysis).into_iter().zip(&analysis.proposals.boxes);
    let own_boxes = own_boxes.map(|(guess, b)| Candidate { box_xyxy: *b, ..guess });
    for guess in weaker.iter().copied().chain(own_boxes) {
        if chosen.len() == count {
            break;
        }
        if !chosen.iter().any(|c| c.box_xyxy == guess.box_xyxy) {
            chosen.push(guess);
        }
    }
    chosen
}

/// Every proposal's most probable class at its regressed box, in the order of the proposals.
fn best_guesses(analysis: &Analysis) -> Vec<Candidate> {
    (0..analysis.proposals.boxes.len())
        .map(|index| {
            let (class, score) = analysis.best_class(index);
            Candidate { box_xyxy: analysis.regressed_box(index, class), label: class as u32, score }
        })
        .collect()
}

/// The student project's rule; its threshold is its own.
fn student(analysis: &Analysis, count: usize) -> Result<(Vec<Candidate>, Tensor)> {
    let guesses = best_guesses(analysis);
    let boxes: Vec<BoxXyxy> = guesses.iter().map(|g| g.box_xyxy).collect();
    let scores: Vec<f32> = guesses.iter().map(|g| g.score).collect();
    let kept = nms(&boxes, &scores, 0.5, count);
    let rows: Vec<u32> = kept.iter().map(|i| *i as u32).collect();
    let features = if rows.is_empty() {
        analysis.features.clone()
    } else {
        let rows = Tensor::from_vec(rows, kept.len(), analysis.features.device())?;
        analysis.features.index_select(&rows, 0)?
    };
    Ok((kept.into_iter().map(|i| guesses[i]).collect(), features))
}
