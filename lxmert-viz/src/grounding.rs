//! Does the model look at what the sentence names? Measured on held-out scenes, where the true box
//! of the named object is known.
//!
//! A case is a caption that names one object. A region *hits* when its box and the object's true box
//! overlap with an intersection over union of at least 0.5. Each way of weighing regions chooses its
//! strongest region per case; its score is the share of cases where that region hits. Two figures
//! say what that share is worth: a region drawn blindly (chance), and any of the regions (ceiling).

use crate::pictures::region_weights;
use crate::relevancy::Method;
use crate::scorer::{PairInput, Scorer};
use crate::words::{self, Word};
use crate::{Error, Result};
use lxmert_core::boxes::{BoxXyxy, iou, normalise};
use lxmert_core::features::FeatureStore;
use lxmert_core::model::Capture;
use lxmert_extract::scenes::{Annotations, CaptionKind};
use std::collections::HashSet;

/// The least overlap of a hit.
pub const HIT_IOU: f32 = 0.5;

/// Pairs scored at once.
const BATCH: usize = 32;

/// A caption that names one object, and where that object is.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The image's name.
    pub image: String,
    /// The caption.
    pub text: String,
    /// The object's noun, "circle".
    pub noun: String,
    /// The object's true box, normalised.
    pub box_normalised: BoxXyxy,
}

/// Which words ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// The object's noun.
    Noun,
    /// The whole sentence: the mean over its words, or for the methods that start from the score the row
    /// of `[CLS]`, where the score is read.
    Sentence,
}

/// One line of the report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// How regions are weighed.
    pub method: Method,
    /// Which words ask.
    pub query: Query,
    /// The share of hits, 0..1.
    pub share: f64,
}

/// The measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Grounding {
    /// How many captions.
    pub cases: usize,
    /// The share of hits when a region is drawn blindly.
    pub chance: f64,
    /// The share of cases where any region hits.
    pub ceiling: f64,
    /// Per method and query.
    pub shares: Vec<Share>,
}

impl Grounding {
    /// The share of `method` asked by `query`.
    pub fn share(&self, method: Method, query: Query) -> Option<f64> {
        self.shares.iter().find(|s| s.method == method && s.query == query).map(|s| s.share)
    }
}

impl std::fmt::Display for Grounding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "  {:<34}{:>14}{:>18}", "strongest region by", "object's noun", "whole sentence")?;
        for method in Method::ALL {
            let cell = |query| self.share(method, query).map_or("–".into(), |s| format!("{:.1} %", 100.0 * s));
            writeln!(f, "  {:<34}{:>14}{:>18}", method.name(), cell(Query::Noun), cell(Query::Sentence))?;
        }
        write!(
            f,
            "  a region drawn blindly: {:.1} %; any of the regions: {:.1} %",
            100.0 * self.chance,
            100.0 * self.ceiling
        )
    }
}

/// The single-object captions of the images in `held_out`.
pub fn cases(annotations: &Annotations, held_out: &HashSet<&str>) -> Vec<Case> {
    let scenes = annotations.scenes.iter().filter(|scene| held_out.contains(scene.image.as_str()));
    scenes
        .flat_map(|scene| {
            let captions = scene.captions.iter().filter(|caption| caption.kind == CaptionKind::Object);
            captions.filter_map(|caption| {
                let object = scene.objects.get(*caption.objects.first()?)?;
                Some(Case {
                    image: scene.image.clone(),
                    text: caption.text.clone(),
                    noun: object.shape.word().to_string(),
                    box_normalised: normalise(&object.box_xyxy_px, scene.width as f32, scene.height as f32),
                })
            })
        })
        .collect()
}

/// Scores every case with its gradients and counts hits. `done` hears after each batch how many
/// cases are through.
///
/// # Errors
/// [`Error::Missing`] when the store lacks an image; [`Error::Shape`] when there is no case; what
/// [`Scorer::score`] says.
pub fn measure(
    scorer: &Scorer,
    store: &FeatureStore,
    cases: &[Case],
    mut done: impl FnMut(usize),
) -> Result<Grounding> {
    let lines: Vec<(Method, Query)> =
        Method::ALL.into_iter().flat_map(|m| [(m, Query::Noun), (m, Query::Sentence)]).collect();
    let mut hits = vec![0usize; lines.len()];
    let (mut chance, mut ceiling) = (0.0, 0);
    for (number, batch) in cases.chunks(BATCH).enumerate() {
        lxmert_core::cli::check_interrupt()?;
        let regions = batch
            .iter()
            .map(|case| {
                let index = store.index_of(&case.image).ok_or_else(|| Error::Missing {
                    what: "an image's regions",
                    path: store.folder().join(&case.image),
                    advice: "extract again with `cargo run -p lxmert-extract`".into(),
                })?;
                Ok(store.regions(index)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let pairs: Vec<PairInput> =
            batch.iter().zip(&regions).map(|(case, regions)| PairInput { regions, text: &case.text }).collect();
        for ((case, regions), scored) in batch.iter().zip(&regions).zip(scorer.score(&pairs, Capture::Probes)?) {
            let hit: Vec<bool> = regions.boxes.iter().map(|b| iou(b, &case.box_normalised) >= HIT_IOU).collect();
            let good = hit.iter().filter(|h| **h).count();
            chance += good as f64 / hit.len().max(1) as f64;
            ceiling += usize::from(good > 0);
            let words = words::words(&case.text, &scored.encoding);
            let noun = noun_pieces(&words, &case.noun);
            let maps = scored.maps()?;
            for (method_lines, method) in hits.chunks_mut(2).zip(Method::ALL) {
                let matrix = method.words_to_regions(maps)?;
                for (count, pieces) in method_lines.iter_mut().zip([Some(noun.as_slice()), None]) {
                    let weights = region_weights(&matrix, method, pieces, &words);
                    *count += usize::from(strongest(&weights).is_some_and(|region| hit[region]));
                }
            }
        }
        done((number * BATCH + batch.len()).min(cases.len()));
    }
    if cases.is_empty() {
        return Err(Error::Shape("no held-out caption that names a single object".into()));
    }
    let total = cases.len() as f64;
    let shares = lines.iter().zip(&hits).map(|((method, query), hits)| Share {
        method: *method,
        query: *query,
        share: *hits as f64 / total,
    });
    Ok(Grounding {
        cases: cases.len(),
        chance: chance / total,
        ceiling: ceiling as f64 / total,
        shares: shares.collect(),
    })
}

fn noun_pieces(words: &[Word], noun: &str) -> Vec<usize> {
    words.iter().filter(|word| word.plain() == noun).flat_map(|word| word.pieces.iter().copied()).collect()
}

/// The first of the largest weights; `None` when no weight is above zero.
fn strongest(weights: &[f32]) -> Option<usize> {
    let mut best = None;
    for (i, weight) in weights.iter().enumerate() {
        if *weight > best.map_or(0.0, |b: usize| weights[b]) {
            best = Some(i);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_region_needs_a_weight() {
        assert_eq!(strongest(&[0.1, 0.3, 0.3]), Some(1));
        assert_eq!(strongest(&[0.0, 0.0]), None);
        assert_eq!(strongest(&[f32::NAN, 0.2]), Some(1));
        assert_eq!(strongest(&[]), None);
    }

    #[test]
    fn cases_are_the_single_object_captions_of_held_out_scenes() {
        let config = lxmert_extract::scenes::ScenesConfig { count: 3, ..Default::default() };
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("scenes");
        lxmert_extract::scenes::generate(&dir, &config, false, false).unwrap();
        let annotations = lxmert_extract::scenes::read_annotations(&dir).unwrap();
        let held_out = HashSet::from(["00001.png"]);
        let found = cases(&annotations, &held_out);
        assert!(!found.is_empty());
        for case in found {
            assert_eq!(case.image, "00001.png");
            assert!(case.text.contains(&case.noun), "{case:?}");
            let [x0, y0, x1, y1] = case.box_normalised;
            assert!(x0 >= 0.0 && y0 >= 0.0 && x0 < x1 && y0 < y1 && x1 <= 1.0 && y1 <= 1.0);
        }
    }
}
