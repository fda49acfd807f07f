//! Does the model look at what a phrase names? Measured where the true boxes are known: on held-out scenes, and on
//! Flickr30k Entities ([`super::entities`]).
//!
//! For each phrase, each way of weighing regions chooses the region with the largest weight in the mean of the rows of
//! the phrase's word pieces. Two measures say whether it is right: in the *pointing game* its centre must be inside one
//! of the phrase's boxes; by *overlap* the region and one of the boxes must have an intersection over union of at least
//! 0.5. Two figures put a share into perspective: a random region (chance), and any of the regions (the best that a
//! choice can reach). A phrase with several types counts for each of them.

use super::methods::{Method, region_weights};
use super::scorer::{PairInput, Scorer};
use super::words;
use crate::dataset::DataSet;
use crate::{Error, Result};
use lxmert_core::boxes::{BoxXyxy, iou, normalise};
use lxmert_core::model::Capture;
use lxmert_core::text::Encoding;
use lxmert_extract::scenes::{Annotations, CaptionKind};
use lxmert_train::data::per_example::{self, Record};
use serde_json::json;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::Range;

/// Minimum overlap of a hit.
pub const HIT_IOU: f32 = 0.5;

/// The types of Flickr30k Entities, in the order of its paper's tables; others follow by name.
const KINDS: [&str; 8] = ["people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other"];

/// Pairs to score at once.
const BATCH: usize = 32;

/// A caption, and what its phrases name.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The image's name.
    pub image: String,
    /// The caption.
    pub text: String,
    /// The phrases that have a box.
    pub targets: Vec<Target>,
}

/// A phrase, and where the object that it names is.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its byte range in the caption.
    pub range: Range<usize>,
    /// Its types.
    pub kinds: Vec<String>,
    /// The true boxes, normalised; at least one.
    pub boxes_normalised: Vec<BoxXyxy>,
}

/// Which words to take the rows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// The phrase.
    Phrase,
    /// The whole sentence: the mean over its words, or, for methods that start from the score, the row of `[CLS]`,
    /// where the score is read.
    Sentence,
}

const QUERIES: [Query; 2] = [Query::Phrase, Query::Sentence];

/// How many phrases are hits, or the expectation of that number, by both measures.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Hits {
    /// The region's centre is inside a box.
    pub pointing: f64,
    /// The region and a box overlap by at least [`HIT_IOU`].
    pub overlap: f64,
}

impl Hits {
    fn add(&mut self, more: Self) {
        self.pointing += more.pointing;
        self.overlap += more.overlap;
    }

    fn of(region: &BoxXyxy, boxes: &[BoxXyxy]) -> Self {
        let centre = [(region[0] + region[2]) / 2.0, (region[1] + region[3]) / 2.0];
        let within = |b: &BoxXyxy| (b[0]..=b[2]).contains(&centre[0]) && (b[1]..=b[3]).contains(&centre[1]);
        let one = |hit| f64::from(u8::from(hit));
        let overlap = one(boxes.iter().any(|b| iou(region, b) >= HIT_IOU));
        Self { pointing: one(boxes.iter().any(within)), overlap }
    }

    fn share_of(self, phrases: usize) -> Self {
        let all = phrases.max(1) as f64;
        Self { pointing: self.pointing / all, overlap: self.overlap / all }
    }
}

/// The measures for the phrases of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The type; "all" for every phrase.
    pub kind: String,
    /// How many phrases.
    pub phrases: usize,
    /// The expected share of hits of a random region.
    pub chance: Hits,
    /// The share of phrases for which any region is a hit.
    pub ceiling: Hits,
    shares: Vec<Hits>,
}

impl Row {
    fn new(kind: &str) -> Self {
        let shares = vec![Hits::default(); Method::ALL.len() * QUERIES.len()];
        Self { kind: kind.into(), phrases: 0, chance: Hits::default(), ceiling: Hits::default(), shares }
    }

    /// The shares for `method`, asked by `query`.
    pub fn share(&self, method: Method, query: Query) -> Hits {
        let at = Method::ALL.iter().position(|m| *m == method).unwrap_or(0) * QUERIES.len();
        self.shares[at + usize::from(query == Query::Sentence)]
    }

    fn add(&mut self, chance: Hits, ceiling: Hits, shares: &[Hits]) {
        self.phrases += 1;
        self.chance.add(chance);
        self.ceiling.add(ceiling);
        self.shares.iter_mut().zip(shares).for_each(|(sum, hits)| sum.add(*hits));
    }

    fn finish(&mut self) {
        let phrases = self.phrases;
        let sums = [&mut self.chance, &mut self.ceiling];
        sums.into_iter().chain(&mut self.shares).for_each(|sum| *sum = sum.share_of(phrases));
    }
}

/// The measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Grounding {
    /// All phrases.
    pub all: Row,
    /// The phrases of each type.
    pub kinds: Vec<Row>,
    /// Each phrase, for one's own analysis: its sentence, and by each method the region that it points to (from 1; none if
    /// no region has a weight) and whether that is a hit by both measures.
    pub phrases: Vec<Record>,
}

impl Grounding {
    /// Two tables by type: the pointing game and the overlap, asked by the phrases.
    pub fn by_kind(&self) -> String {
        type Measure = fn(Hits) -> f64;
        let measures: [(&str, Measure); 2] =
            [("pointing game", |hits| hits.pointing), ("IoU ≥ 0.5", |hits| hits.overlap)];
        let mut out = String::new();
        for (name, of) in measures {
            let _ = write!(out, "  {name:<14}{:>8}", "phrases");
            for method in Method::ALL {
                let _ = write!(out, "{:>22}", method.name());
            }
            let _ = writeln!(out, "{:>10}{:>13}", "chance", "best region");
            for row in self.kinds.iter().chain([&self.all]) {
                let percent = |hits| format!("{:.1} %", 100.0 * of(hits));
                let _ = write!(out, "  {:<14}{:>8}", row.kind, row.phrases);
                for method in Method::ALL {
                    let _ = write!(out, "{:>22}", percent(row.share(method, Query::Phrase)));
                }
                let _ = writeln!(out, "{:>10}{:>13}", percent(row.chance), percent(row.ceiling));
            }
        }
        out
    }

    /// The same as CSV, one row per type and method.
    pub fn to_csv(&self) -> String {
        let mut out = String::from("kind,phrases,method,pointing,iou50\n");
        for row in self.kinds.iter().chain([&self.all]) {
            let methods = Method::ALL.map(|method| (method.name(), row.share(method, Query::Phrase)));
            for (name, hits) in methods.into_iter().chain([("chance", row.chance), ("best region", row.ceiling)]) {
                let (kind, phrases) = (&row.kind, row.phrases);
                let _ = writeln!(out, "{kind},{phrases},{name},{:.6},{:.6}", hits.pointing, hits.overlap);
            }
        }
        out
    }
}

impl std::fmt::Display for Grounding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "  {:<34}{:>14}{:>18}", "strongest region by", "object's noun", "whole sentence")?;
        for method in Method::ALL {
            let cell = |query| format!("{:.1} %", 100.0 * self.all.share(method, query).overlap);
            writeln!(f, "  {:<34}{:>14}{:>18}", method.name(), cell(Query::Phrase), cell(Query::Sentence))?;
        }
        write!(
            f,
            "  a random region: {:.1} %; any of the regions: {:.1} %",
            100.0 * self.all.chance.overlap,
            100.0 * self.all.ceiling.overlap
        )
    }
}

/// The captions of the scenes in `held_out`. Each names one or two objects; their nouns are the phrases. A phrase's
/// type is the caption's: "object", "pair" or "relation".
pub fn scene_cases(annotations: &Annotations, held_out: &HashSet<&str>) -> Vec<Case> {
    let scenes = annotations.scenes.iter().filter(|scene| held_out.contains(scene.image.as_str()));
    scenes
        .flat_map(|scene| {
            scene.captions.iter().map(|caption| {
                let kind = kind_name(caption.kind).to_string();
                let mut from = 0;
                let targets = caption.objects.iter().filter_map(|index| {
                    let object = scene.objects.get(*index)?;
                    let range = find_word(&caption.text, from, object.shape.word())?;
                    from = range.end;
                    let corners = normalise(&object.box_xyxy_px, scene.width as f32, scene.height as f32);
                    Some(Target { range, kinds: vec![kind.clone()], boxes_normalised: vec![corners] })
                });
                Case { image: scene.image.clone(), targets: targets.collect(), text: caption.text.clone() }
            })
        })
        .filter(|case| !case.targets.is_empty())
        .collect()
}

/// Only the cases that name a single object.
pub fn single_objects(cases: Vec<Case>) -> Vec<Case> {
    cases.into_iter().filter(|case| case.targets.iter().all(|target| target.kinds == ["object"])).collect()
}

const fn kind_name(kind: CaptionKind) -> &'static str {
    match kind {
        CaptionKind::Object => "object",
        CaptionKind::Pair => "pair",
        CaptionKind::Relation => "relation",
    }
}

/// The first whole-word occurrence of `word` in `text` from byte `from` on.
fn find_word(text: &str, from: usize, word: &str) -> Option<Range<usize>> {
    let starts = text[from..].match_indices(word).map(|(offset, _)| from + offset);
    let inside = |at: Option<char>| at.is_some_and(char::is_alphanumeric);
    let mut whole = starts.filter(|start| {
        !inside(text[..*start].chars().next_back()) && !inside(text[start + word.len()..].chars().next())
    });
    whole.next().map(|start| start..start + word.len())
}

/// Scores every case with gradients and counts hits. Calls `done` after each batch with the number of finished cases.
///
/// # Errors
/// [`Error::Argument`] if the store lacks an image; [`Error::Shape`] if there is no case; the errors of
/// [`Scorer::score`].
pub fn measure(data: &DataSet, scorer: &Scorer, cases: &[Case], mut done: impl FnMut(usize)) -> Result<Grounding> {
    if cases.is_empty() {
        return Err(Error::Shape("no held-out caption has a phrase with a known box".into()));
    }
    let mut all = Row::new("all");
    let mut kinds: Vec<Row> = KINDS.into_iter().map(Row::new).collect();
    let mut phrases = Vec::new();
    for (number, batch) in cases.chunks(BATCH).enumerate() {
        lxmert_core::interrupt::check_interrupt()?;
        let regions = batch.iter().map(|case| data.regions(&case.image)).collect::<Result<Vec<_>>>()?;
        let pairs: Vec<PairInput> =
            batch.iter().zip(&regions).map(|(case, regions)| PairInput { regions, text: &case.text }).collect();
        for ((case, regions), scored) in batch.iter().zip(&regions).zip(scorer.score(&pairs, Capture::Probes)?) {
            let words = words::words(&case.text, &scored.encoding);
            let maps = scored.maps()?;
            let matrices =
                Method::ALL.into_iter().map(|method| method.words_to_regions(maps)).collect::<Result<Vec<_>>>()?;
            for target in &case.targets {
                let hits: Vec<Hits> = regions.boxes.iter().map(|b| Hits::of(b, &target.boxes_normalised)).collect();
                let mut chance = Hits::default();
                hits.iter().for_each(|hit| chance.add(*hit));
                let ceiling = Hits { pointing: chance.pointing.min(1.0), overlap: chance.overlap.min(1.0) };
                let pieces = pieces_within(&scored.encoding, &target.range);
                let asked = Method::ALL.into_iter().zip(&matrices).flat_map(|(method, matrix)| {
                    [Some(pieces.as_slice()), None].map(|pieces| region_weights(matrix, method, pieces, &words))
                });
                let pointed: Vec<Option<usize>> = asked.map(|weights| strongest(&weights)).collect();
                let shares: Vec<Hits> =
                    pointed.iter().map(|region| region.map_or(Hits::default(), |region| hits[region])).collect();
                let by_phrase = pointed.iter().zip(&shares).step_by(QUERIES.len());
                phrases.push(phrase_record(case, target, by_phrase, ceiling));
                let count = |row: &mut Row| row.add(chance.share_of(hits.len()), ceiling, &shares);
                count(&mut all);
                for kind in &target.kinds {
                    match kinds.iter_mut().find(|row| row.kind == *kind) {
                        Some(row) => count(row),
                        None => {
                            let mut row = Row::new(kind);
                            count(&mut row);
                            kinds.push(row);
                        }
                    }
                }
            }
        }
        done((number * BATCH + batch.len()).min(cases.len()));
    }
    kinds.retain(|row| row.phrases > 0);
    let known = |row: &Row| KINDS.iter().position(|kind| *kind == row.kind).unwrap_or(KINDS.len());
    kinds.sort_by(|a, b| known(a).cmp(&known(b)).then(a.kind.cmp(&b.kind)));
    kinds.iter_mut().chain([&mut all]).for_each(Row::finish);
    Ok(Grounding { all, kinds, phrases })
}

/// A phrase's line of `--per-example`. `found`: by each method the region, and whether it is a hit.
fn phrase_record<'a>(
    case: &Case,
    target: &Target,
    found: impl Iterator<Item = (&'a Option<usize>, &'a Hits)>,
    ceiling: Hits,
) -> Record {
    let mut record = per_example::record([
        ("image", json!(case.image)),
        ("sentence", json!(case.text)),
        ("phrase", json!(case.text.get(target.range.clone()))),
        ("kinds", json!(target.kinds)),
        ("a_region_can_hit", json!(ceiling.overlap > 0.0)),
    ]);
    for (method, (region, hits)) in Method::ALL.into_iter().zip(found) {
        let name = method.slug();
        record.insert(format!("{name}_region"), json!(region.map(|region| region + 1)));
        record.insert(format!("{name}_pointing"), json!(hits.pointing > 0.0));
        record.insert(format!("{name}_iou50"), json!(hits.overlap > 0.0));
    }
    record
}

/// The word pieces in a range of the sentence; empty if they were truncated.
fn pieces_within(encoding: &Encoding, range: &Range<usize>) -> Vec<usize> {
    let within = |(from, to): &(usize, usize)| *from >= range.start && *to <= range.end && to > from;
    encoding.offsets.iter().enumerate().filter(|(_, offset)| within(offset)).map(|(i, _)| i).collect()
}

/// The first of the largest weights; `None` if no weight is above zero.
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
    fn a_region_is_a_hit_by_centre_or_by_overlap() {
        let boxes = [[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0]];
        let hits = |region: BoxXyxy| {
            let found = Hits::of(&region, &boxes);
            (found.pointing, found.overlap)
        };
        assert_eq!(hits([0.5, 0.5, 1.0, 1.0]), (1.0, 1.0), "the second box counts like the first");
        assert_eq!(hits([0.7, 0.7, 0.8, 0.8]), (1.0, 0.0), "inside, but far smaller");
        assert_eq!(hits([0.3, 0.3, 0.4, 0.4]), (0.0, 0.0));
        // They share 0.15 of width 0.2: IoU 0.15 / 0.25 = 0.6.
        assert_eq!(hits([0.05, 0.0, 0.25, 0.2]), (1.0, 1.0));
    }

    #[test]
    fn rows_give_shares_and_a_phrase_counts_for_each_of_its_types() {
        let mut row = Row::new("people");
        let (hit, miss) = (Hits { pointing: 1.0, overlap: 0.0 }, Hits::default());
        let mut shares = vec![miss; 10];
        shares[4] = hit;
        row.add(Hits { pointing: 0.5, overlap: 0.25 }, hit, &shares);
        row.add(Hits { pointing: 0.5, overlap: 0.25 }, hit, &[miss; 10]);
        row.finish();
        assert_eq!(row.share(Method::Relevancy, Query::Phrase), Hits { pointing: 0.5, overlap: 0.0 });
        assert_eq!(row.share(Method::Relevancy, Query::Sentence), miss);
        assert_eq!((row.chance.pointing, row.chance.overlap, row.ceiling.pointing), (0.5, 0.25, 1.0));
        let found = Grounding { all: Row { kind: "all".into(), ..row.clone() }, kinds: vec![row], phrases: Vec::new() };
        assert!(found.to_csv().contains("people,2,relevancy (Chefer),0.500000,0.000000"), "{}", found.to_csv());
        assert_eq!(found.by_kind().lines().count(), 6);
    }

    #[test]
    fn finds_whole_words_only() {
        assert_eq!(find_word("a starry star", 0, "star"), Some(9..13));
        assert_eq!(find_word("a star and a star", 6, "star"), Some(13..17));
        assert_eq!(find_word("a starry sky", 0, "star"), None);
    }

    #[test]
    fn phrases_of_scenes_are_their_objects_nouns() {
        let config = lxmert_extract::scenes::ScenesConfig { count: 3, ..Default::default() };
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("scenes");
        lxmert_extract::scenes::generate(&dir, &config, false, false).unwrap();
        let annotations = lxmert_extract::scenes::read_annotations(&dir).unwrap();
        let found = scene_cases(&annotations, &HashSet::from(["00001.png"]));
        let scene = annotations.scenes.iter().find(|scene| scene.image == "00001.png").unwrap();
        assert_eq!(found.len(), scene.captions.len());
        for (case, caption) in found.iter().zip(&scene.captions) {
            assert_eq!((case.image.as_str(), case.targets.len()), ("00001.png", caption.objects.len()));
            for (target, index) in case.targets.iter().zip(&caption.objects) {
                assert_eq!(&case.text[target.range.clone()], scene.objects[*index].shape.word());
                let [x0, y0, x1, y1] = target.boxes_normalised[0];
                assert!(x0 >= 0.0 && y0 >= 0.0 && x0 < x1 && y0 < y1 && x1 <= 1.0 && y1 <= 1.0);
            }
        }
        let single = single_objects(found);
        assert_eq!(single.len(), 2);
        assert!(single.iter().all(|case| case.targets.len() == 1));
    }
}
