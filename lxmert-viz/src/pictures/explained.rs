//! From a scored pair to its pictures: which map, which rows, which names.

use super::canvas::Canvas;
use super::grid::percent;
use super::heads::{HeadPanel, HeadsPicture};
use super::heatmap::Heatmap;
use super::methods::{MethodPanel, MethodsPicture};
use super::overlay::{CaptionWord, OverlayPicture};
use super::sheet::Look;
use crate::explain::maps::{Direction, HeadMaps, Stance};
use crate::explain::methods::{Method, Relevance, region_weights};
use crate::explain::scorer::Scored;
use crate::explain::words::{self, Word};
use crate::{Error, Result};
use image::RgbImage;
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::features::Regions;

/// Regions are drawn with names up to this number, otherwise with numbers only.
const REGION_NAMES_UP_TO: usize = 120;

/// A pair, the model's result, and the names of its regions and words.
pub struct Explained<'a> {
    /// The image's name.
    pub image: &'a str,
    /// The sentence.
    pub text: &'a str,
    /// The model's result with its maps.
    pub scored: &'a Scored,
    /// The image's regions.
    pub regions: &'a Regions,
    /// Their names with numbers: "3 red circle".
    pub region_names: Vec<String>,
    /// The sentence's words.
    pub words: Vec<Word>,
    /// What the score is for: "match", or an answer.
    pub claim: String,
    /// Sizes and colours of the pictures.
    pub look: Look,
}

impl<'a> Explained<'a> {
    /// Adds names to a scored pair; `label_names` are the detector's classes.
    pub fn new(
        image: &'a str,
        text: &'a str,
        scored: &'a Scored,
        regions: &'a Regions,
        label_names: &[String],
    ) -> Self {
        let region_names = region_names(regions, label_names);
        let words = words::words(text, &scored.encoding);
        Self { image, text, scored, regions, region_names, words, claim: "match".into(), look: Look::default() }
    }

    /// The same for the score of an answer instead of the match.
    #[must_use]
    pub fn of_answer(self, answer: &str) -> Self {
        Self { claim: format!("“{answer}”"), ..self }
    }

    /// The same with another look.
    #[must_use]
    pub fn with_look(self, look: Look) -> Self {
        Self { look, ..self }
    }

    /// "the match", "the answer “red”".
    fn claim(&self) -> String {
        if self.claim == "match" { "the match".into() } else { format!("the answer {}", self.claim) }
    }

    /// "P(match) = 0.97".
    fn score(&self) -> String {
        format!("P({}) = {}", self.claim, percent(self.scored.probability()))
    }

    /// What the score is based on according to each of `methods`, side by side: regions on the photo, words in the
    /// sentence. A method that uses gradients has two panels, for and against, with a common unit.
    ///
    /// # Errors
    /// [`Error::Shape`] if the maps, or the gradients that a method needs, were not requested.
    pub fn methods(&self, photo: RgbImage, methods: &[Method]) -> Result<MethodsPicture> {
        let maps = self.scored.maps()?;
        let mut panels = Vec::new();
        for method in methods {
            let stances: &[Stance] =
                if method.needs_gradients() { &[Stance::For, Stance::Against] } else { &[Stance::For] };
            let found =
                stances.iter().map(|stance| method.sentence(&maps.taking(*stance))).collect::<Result<Vec<_>>>()?;
            let found: Vec<Relevance> = found.into_iter().map(|found| self.of_words(found)).collect();
            // Normalise both panels together, so that a weak side looks weak.
            let totals = found.iter().map(|r| (total(&r.words), total(&r.regions)));
            let (words, regions) = totals.fold((0.0, 0.0), |a, b| (f32::max(a.0, b.0), f32::max(a.1, b.1)));
            for (stance, found) in stances.iter().zip(found) {
                let (title, note) = if stances.len() == 1 {
                    (method.name().to_string(), method.explanation().to_string())
                } else {
                    let sums = [total(&found.regions), total(&found.words)].map(short);
                    (
                        format!("{}: {} {}", method.name(), stance.word(), self.claim()),
                        format!("{}; {} in total over regions, {} over words", method.explanation(), sums[0], sums[1]),
                    )
                };
                let (words, regions) = (multiples(&found.words, words), multiples(&found.regions, regions));
                panels.push(MethodPanel { title, note, words, regions });
            }
        }
        let signed = methods.iter().any(|method| method.needs_gradients());
        let question = if signed { "What speaks for and against" } else { "Where the model looks for" };
        Ok(MethodsPicture {
            title: format!("{question} {}", self.claim()),
            subtitle: format!("{} · {} · {}", self.image, self.score(), "the row of [CLS], where the score is read"),
            photo,
            boxes_normalised: self.regions.boxes.clone(),
            names: self.region_names.clone(),
            words: self.words.iter().map(|word| word.text.clone()).collect(),
            panels,
            look: self.look,
        })
    }

    /// A weight for each word, from those of its pieces.
    fn of_words(&self, found: Relevance) -> Relevance {
        let sum = |word: &Word| word.pieces.iter().map(|piece| found.words[*piece]).sum();
        Relevance { words: self.words.iter().map(sum).collect(), regions: found.regions }
    }

    fn layers(&self, direction: Direction) -> Result<Vec<&HeadMaps>> {
        let layers = self.scored.maps()?.layers(direction);
        if layers.is_empty() {
            let (kind, sentence) = (direction.layer_kind(), direction.sentence());
            return Err(Error::Argument(format!("this model has no {kind} where {sentence}")));
        }
        Ok(layers)
    }

    fn sides(&self, direction: Direction) -> [(&'static str, &[String]); 2] {
        let words = ("word", self.scored.encoding.tokens.as_slice());
        let regions = ("region", self.region_names.as_slice());
        match direction {
            // Both directions are drawn words × regions, so that they can be compared.
            Direction::LanguageToVision | Direction::VisionToLanguage => [words, regions],
            Direction::LanguageSelf | Direction::Language => [words, words],
            Direction::VisionSelf | Direction::Vision => [regions, regions],
        }
    }

    fn subtitle(&self, reading: &str) -> String {
        format!("{} · “{}” · {} · {reading}", self.image, self.text, self.score())
    }

    /// One attention map. `layer` counts from 1, `None` is the last; `head` counts from 1, `None` is the mean over the
    /// heads.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such layer or head.
    pub fn heatmap(&self, direction: Direction, layer: Option<usize>, head: Option<usize>) -> Result<Heatmap> {
        let layers = self.layers(direction)?;
        let layer = layer.unwrap_or(layers.len());
        let heads = nth(&layers, layer).ok_or_else(|| no_layer(direction, layer, layers.len()))?;
        let count = heads.probabilities.len();
        let (map, of) = match head {
            None => (heads.mean(), format!("mean of {count} heads")),
            Some(head) => {
                let map = nth(&heads.probabilities, head);
                let map = map.ok_or_else(|| Error::Argument(format!("no head {head}; there are {count}")))?;
                (map.clone(), format!("head {head} of {count}"))
            }
        };
        let turned = direction == Direction::VisionToLanguage;
        let [(row_kind, rows), (column_kind, columns)] = self.sides(direction);
        let side = if turned { "column" } else { "row" };
        let mut kind = direction.layer_kind().to_string();
        kind[..1].make_ascii_uppercase();
        Ok(Heatmap {
            title: format!("{kind} {layer} of {} · {of} · {}", layers.len(), direction.sentence()),
            subtitle: self.subtitle(&format!(
                "each {side} sums to 1; its largest weight is framed if it is at least 1.5 times the uniform share"
            )),
            row_kind: row_kind.into(),
            column_kind: column_kind.into(),
            rows: rows.to_vec(),
            columns: columns.to_vec(),
            values: if turned { map.transposed().values } else { map.values },
            by_column: turned,
            look: self.look,
        })
    }

    /// Every head of every layer, or of one (counted from 1), one row per layer.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such layer.
    pub fn heads(&self, direction: Direction, layer: Option<usize>) -> Result<HeadsPicture> {
        let layers = self.layers(direction)?;
        if let Some(layer) = layer.filter(|layer| nth(&layers, *layer).is_none()) {
            return Err(no_layer(direction, layer, layers.len()));
        }
        let turned = direction == Direction::VisionToLanguage;
        let [(row_kind, rows), (column_kind, columns)] = self.sides(direction);
        let legible = |kind: &str, names: &[String]| match kind {
            "region" => (1..=names.len()).map(|i| i.to_string()).collect(),
            _ => names.to_vec(),
        };
        let panels: Vec<HeadPanel> = layers
            .iter()
            .enumerate()
            .filter(|(i, _)| layer.is_none_or(|layer| layer == i + 1))
            .flat_map(|(i, heads)| {
                heads.probabilities.iter().enumerate().map(move |(head, map)| HeadPanel {
                    title: format!("layer {} · head {}", i + 1, head + 1),
                    values: if turned { map.transposed().values } else { map.values.clone() },
                })
            })
            .collect();
        let side = if turned { "column" } else { "row" };
        Ok(HeadsPicture {
            title: format!("All heads of the {}s · {}", direction.layer_kind(), direction.sentence()),
            subtitle: self.subtitle(&format!("each {side} sums to 1; one colour scale for all")),
            // The rows of words × regions have space for names.
            rows: if row_kind == column_kind { legible(row_kind, rows) } else { rows.to_vec() },
            columns: legible(column_kind, columns),
            panels,
            across: layers.first().map_or(1, |heads| heads.probabilities.len()),
            look: self.look,
        })
    }

    /// How much each region matters to `pieces` of the sentence by `method`. `None` asks for the whole sentence:
    /// attention uses the mean over its words, the other methods the row of `[CLS]`, where the score is read. Methods
    /// that use gradients give the evidence for the score or against it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the maps, or the gradients that the method needs, were not requested.
    pub fn region_weights(&self, method: Method, stance: Stance, pieces: Option<&[usize]>) -> Result<Vec<f32>> {
        let matrix = method.words_to_regions(&self.scored.maps()?.taking(stance))?;
        Ok(region_weights(&matrix, method, pieces, &self.words))
    }

    /// The photo with its regions weighed by `method`, for the chosen word or the whole sentence. A method that uses
    /// gradients shows the evidence for the score if the model says yes, otherwise the evidence against it.
    /// `truth_normalised` is drawn dashed.
    ///
    /// # Errors
    /// [`Error::Argument`] if the sentence has no such word; [`Error::Shape`] as above.
    pub fn overlay(
        &self,
        photo: RgbImage,
        method: Method,
        word: Option<&str>,
        truth_normalised: Option<BoxXyxy>,
    ) -> Result<OverlayPicture> {
        let marked = word.map(|word| words::find(&self.words, word)).transpose()?;
        let pieces: Option<Vec<usize>> =
            marked.as_ref().map(|marked| marked.iter().flat_map(|i| self.words[*i].pieces.iter().copied()).collect());
        let stance = Stance::of(self.scored.probability());
        let weights = self.region_weights(method, stance, pieces.as_deref())?;
        let chosen = marked.unwrap_or_default();
        let caption = (self.words.iter().enumerate())
            .map(|(i, word)| CaptionWord { text: word.text.clone(), marked: chosen.contains(&i) })
            .collect();
        let subject = match chosen.first() {
            Some(i) => format!("the word “{}”", self.words[*i].plain()),
            None => "the whole sentence".into(),
        };
        let title = if method.needs_gradients() {
            format!("What speaks {} {}, in the row of {subject}", stance.word(), self.claim())
        } else {
            format!("Where the model looks for {subject}")
        };
        Ok(OverlayPicture {
            title,
            subtitle: format!("{} · {} · {}", self.image, self.score(), describe(method, word.is_some())),
            photo,
            boxes_normalised: self.regions.boxes.clone(),
            names: self.region_names.clone(),
            weights,
            weight_kind: method.weight_kind().into(),
            caption,
            top: 6,
            truth_normalised,
            look: self.look,
        })
    }

    /// The strongest links between a spoken word piece and a region in the last cross layer's attention, averaged over
    /// heads: (piece, region, weight), strongest first.
    ///
    /// # Errors
    /// [`Error::Shape`] if the pair was scored without maps.
    pub fn strongest_links(&self, count: usize) -> Result<Vec<(usize, usize, f32)>> {
        let matrix = Method::Attention.words_to_regions(self.scored.maps()?)?;
        let mut links: Vec<(usize, usize, f32)> = words::spoken_pieces(&self.words)
            .into_iter()
            .flat_map(|piece| matrix.row(piece).iter().enumerate().map(move |(region, w)| (piece, region, *w)))
            .collect();
        links.sort_by(|a, b| b.2.total_cmp(&a.2));
        links.truncate(count);
        Ok(links)
    }

    /// The word with the strongest link to a region, without its punctuation.
    ///
    /// # Errors
    /// [`Error::Shape`] if the pair was scored without maps.
    pub fn strongest_word(&self) -> Result<Option<String>> {
        let links = self.strongest_links(1)?;
        let piece = links.first().map(|link| link.0);
        let word = self.words.iter().find(|word| piece.is_some_and(|piece| word.pieces.contains(&piece)));
        Ok(word.map(Word::plain))
    }

    /// The pictures of a pair that most readers want first, each with the stem of its file name and what it shows: the
    /// sentence by attention and by relevancy, and the methods side by side.
    ///
    /// # Errors
    /// [`Error::Shape`] if the pair was scored without gradients.
    pub fn summary(&self, photo: &RgbImage) -> Result<Vec<(Canvas, String, String)>> {
        let mut pictures = Vec::new();
        for method in [Method::Attention, Method::Relevancy] {
            let shows = format!("regions by {}, whole sentence", method.name());
            let sheet = self.overlay(photo.clone(), method, None, None)?.draw()?;
            pictures.push((sheet, format!("overlay-sentence-{}", method.slug()), shows));
        }
        let sheet = self.methods(photo.clone(), &Method::COMPARED)?.draw()?;
        pictures.push((sheet, "relevancy".into(), "what speaks for and against the match, by method".into()));
        Ok(pictures)
    }
}

/// The item with this number, counted from 1.
fn nth<T>(items: &[T], number: usize) -> Option<&T> {
    number.checked_sub(1).and_then(|i| items.get(i))
}

fn no_layer(direction: Direction, layer: usize, count: usize) -> Error {
    Error::Argument(format!("no {} {layer}; there are {count}", direction.layer_kind()))
}

fn short(value: f32) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

fn total(weights: &[f32]) -> f32 {
    weights.iter().filter(|w| w.is_finite()).sum()
}

/// `weights` as multiples of the uniform share of `total`; zeros if the total is zero.
fn multiples(weights: &[f32], total: f32) -> Vec<f32> {
    let even = total / weights.len().max(1) as f32;
    weights.iter().map(|w| if even > 0.0 && w.is_finite() { w / even } else { 0.0 }).collect()
}

fn describe(method: Method, one_word: bool) -> String {
    let rows = match (one_word, method) {
        (true, _) => "the word's row",
        (false, Method::Attention | Method::GradientAttention) => "mean over the words",
        (false, _) => "the row of [CLS]",
    };
    format!("{}, {rows}", method.explanation())
}

/// "3 red circle": numbers from 1, best detection first, with the class; only numbers if a name is unknown or there are
/// very many regions.
pub fn region_names(regions: &Regions, label_names: &[String]) -> Vec<String> {
    let many = regions.boxes.len() > REGION_NAMES_UP_TO;
    (0..regions.boxes.len())
        .map(|i| {
            let label = regions.labels.get(i).and_then(|label| label_names.get(*label as usize));
            match label {
                Some(name) if !many && !name.is_empty() => format!("{} {name}", i + 1),
                _ => (i + 1).to_string(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_become_multiples_of_the_uniform_share() {
        assert_eq!(multiples(&[1.0, 3.0], 4.0), [0.5, 1.5]);
        assert_eq!(multiples(&[1.0, f32::NAN], 0.0), [0.0, 0.0]);
        assert_eq!(total(&[1.0, f32::NAN, 2.0]), 3.0);
    }

    #[test]
    fn regions_are_numbered_from_one() {
        let regions = Regions { boxes: vec![[0.0; 4]; 3], labels: vec![1, 0, 7], ..Regions::default() };
        assert_eq!(region_names(&regions, &["".into(), "star".into()]), ["1 star", "2", "3"]);
    }
}
