//! One photo and one sentence, from scratch: detector, model, pictures.

use crate::dataset::slug;
use crate::gallery::{Picture, method_slug};
use crate::pictures::{Explained, Which};
use crate::relevancy::Method;
use crate::scorer::{PairInput, Scored, Scorer};
use crate::words::Word;
use crate::{Result, words};
use image::RgbImage;
use lxmert_core::boxes::to_pixels;
use lxmert_core::features::Regions;
use lxmert_core::model::Capture;
use std::path::Path;

/// What is known of a pair, and the pictures written of it.
pub struct Report {
    /// The model's answer with its maps.
    pub scored: Scored,
    /// The strongest word–region links, as lines of a table.
    pub links: Vec<Link>,
    /// The pictures.
    pub pictures: Vec<Picture>,
}

/// A word and a region it attends to.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// The word, or the word piece when the word has several.
    pub word: String,
    /// The region's number and name.
    pub region: String,
    /// Attention of the last cross layer, mean over heads.
    pub weight: f32,
    /// The region's box in pixels of the photo.
    pub box_xyxy_px: [f32; 4],
}

/// How many links a report lists.
pub const LINKS: usize = 10;

/// Scores `photo` with `text` and writes heatmaps, head grids and overlays to `output`.
///
/// `word` chooses the word of one overlay; the strongest link's word when `None`.
///
/// # Errors
/// When the model cannot take the regions, the sentence lacks the word, or a file cannot be written.
pub fn explain(
    scorer: &Scorer,
    (name, photo, regions): (&str, &RgbImage, &Regions),
    label_names: &[String],
    text: &str,
    word: Option<&str>,
    output: &Path,
) -> Result<Report> {
    let scored = scorer.score(&[PairInput { regions, text }], Capture::Probes)?.remove(0);
    let explained = Explained::new(name, text, &scored, regions, label_names);
    if let Some(word) = word {
        words::find(&explained.words, word)?;
    }
    let links = links(&explained, photo)?;
    let chosen = word.map(String::from).or_else(|| strongest_word(&explained));
    let mut pictures = Vec::new();
    let mut add = |sheet: crate::canvas::Canvas, file: String, shows: String| -> Result<()> {
        let path = output.join(file);
        sheet.save(&path)?;
        pictures.push(Picture { path, shows });
        Ok(())
    };
    for method in [Method::Attention, Method::Relevancy] {
        let sheet = explained.overlay(photo.clone(), method, None, None)?.draw()?;
        let shows = format!("regions by {}, whole sentence", method.name());
        add(sheet, format!("overlay-sentence-{}.png", method_slug(method)), shows)?;
    }
    let sheet = explained.methods(photo.clone(), &Method::COMPARED)?.draw()?;
    add(sheet, "relevancy.png".into(), "what the match rests on, by method".into())?;
    if let Some(word) = &chosen {
        let sheet = explained.overlay(photo.clone(), Method::Attention, Some(word), None)?.draw()?;
        add(sheet, format!("overlay-{}.png", slug(word)), format!("regions that “{word}” attends to"))?;
    }
    for which in [Which::LanguageToVision, Which::VisionToLanguage] {
        if explained.num_layers(which)? == 0 {
            continue;
        }
        let sheet = explained.heatmap(which, None, None)?.draw()?;
        let shows = format!("{}, last cross layer, mean of heads", which.sentence());
        add(sheet, format!("heatmap-{}.png", which.slug()), shows)?;
        let heads = explained.heads(which, None)?.draw()?;
        add(heads, format!("heads-{}.png", which.slug()), format!("every head, {}", which.sentence()))?;
    }
    Ok(Report { links, pictures, scored })
}

fn links(explained: &Explained, photo: &RgbImage) -> Result<Vec<Link>> {
    let size = (photo.width() as f32, photo.height() as f32);
    let links = explained.strongest_links(LINKS)?;
    Ok(links
        .into_iter()
        .map(|(piece, region, weight)| Link {
            word: piece_name(explained, piece),
            region: explained.region_names[region].clone(),
            weight,
            box_xyxy_px: to_pixels(&explained.regions.boxes[region], size.0, size.1),
        })
        .collect())
}

/// "bicycle", or "bi (bicycle)" when the word is cut into pieces.
fn piece_name(explained: &Explained, piece: usize) -> String {
    let token = &explained.scored.encoding.tokens[piece];
    match explained.words.iter().find(|word| word.pieces.contains(&piece)) {
        Some(word) if word.plain() != *token => format!("{token} ({})", word.plain()),
        _ => token.clone(),
    }
}

fn strongest_word(explained: &Explained) -> Option<String> {
    let piece = explained.strongest_links(1).ok()?.first()?.0;
    explained.words.iter().find(|word| word.pieces.contains(&piece)).map(Word::plain)
}
