//! `pair`: one photo and one sentence, from scratch: detector, model, pictures.

use super::{DetectorArgs, Report, Seen, Session, verdict_line};
use crate::dataset::slug;
use crate::explain::maps::Direction;
use crate::explain::methods::Method;
use crate::explain::scorer::PairInput;
use crate::explain::words;
use crate::pictures::explained::Explained;
use crate::{Error, Result};
use image::RgbImage;
use lxmert_core::boxes::to_pixels;
use lxmert_core::model::Capture;
use std::path::PathBuf;

/// `pair`.
#[derive(Debug, Clone, clap::Args)]
pub struct PairArgs {
    /// The photo
    #[arg(long, value_name = "PHOTO")]
    pub image: PathBuf,
    /// The sentence
    #[arg(long)]
    pub text: String,
    /// The word of the overlay; "red:2" is the second "red" [default: the one with the strongest link]
    #[arg(long)]
    pub word: Option<String>,
    /// The detector.
    #[command(flatten)]
    pub detector: DetectorArgs,
}

/// How many links to list.
const LINKS: usize = 10;

impl PairArgs {
    /// Finds the photo's regions, scores it with the sentence, and draws heatmaps, head grids and overlays.
    ///
    /// # Errors
    /// Returns an error if the regions do not fit the model, the sentence lacks the word, or a file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        if self.text.trim().is_empty() {
            return Err(Error::Argument("--text is empty: there is nothing to match the photo with".into()));
        }
        let scorer = session.scorer()?;
        let takes = (scorer.config().visual_feat_dim, scorer.regions());
        let Seen { name, photo, regions, label_names, detector } = self.detector.find(session, &self.image, takes)?;
        let folder = session.figures.folder(session.places.plots().join(format!("photo-{}", slug(&name))))?;
        let scored = scorer.score(&[PairInput { regions: &regions, text: &self.text }], Capture::Probes)?;
        let scored = scored.first().ok_or_else(|| Error::Shape("the pair has no score".into()))?;
        let explained = Explained::new(&name, &self.text, scored, &regions, &label_names);
        let explained = explained.with_look(session.figures.look());
        if let Some(word) = &self.word {
            words::find(&explained.words, word)?;
        }
        let mut report = Report::default();
        report.say(format!("{name}, “{}”: {}", self.text, verdict_line(scored.probability())));
        let count = regions.num_regions();
        report.say(format!("{count} regions by the {detector} detector; the strongest word–region links:"));
        links(&explained, &photo, &mut report)?;

        for (sheet, stem, shows) in explained.summary(&photo)? {
            session.save_photo(&sheet, &folder.join(stem), shows, &mut report)?;
        }
        if let Some(word) = self.word.clone().map_or_else(|| explained.strongest_word(), |word| Ok(Some(word)))? {
            let sheet = explained.overlay(photo.clone(), Method::Attention, Some(&word), None)?.draw()?;
            let file = folder.join(format!("overlay-{}", slug(&word)));
            session.save_photo(&sheet, &file, format!("regions that “{word}” attends to"), &mut report)?;
        }
        for direction in [Direction::LanguageToVision, Direction::VisionToLanguage] {
            if scored.maps()?.layers(direction).is_empty() {
                continue;
            }
            let (slug, sentence) = (direction.slug(), direction.sentence());
            let sheet = explained.heatmap(direction, None, None)?.draw()?;
            let shows = format!("{sentence}, last cross layer, mean of heads");
            session.save_photo(&sheet, &folder.join(format!("heatmap-{slug}")), shows, &mut report)?;
            let sheet = explained.heads(direction, None)?.draw()?;
            let shows = format!("every head, {sentence}");
            session.save_photo(&sheet, &folder.join(format!("heads-{slug}")), shows, &mut report)?;
        }
        Ok(report)
    }
}

/// The strongest links between a word and a region: attention of the last cross layer, mean over heads.
fn links(explained: &Explained, photo: &RgbImage, report: &mut Report) -> Result<()> {
    let size = (photo.width() as f32, photo.height() as f32);
    for (piece, region, weight) in explained.strongest_links(LINKS)? {
        let corners = to_pixels(&explained.regions.boxes[region], size.0, size.1);
        let [x0, y0, x1, y1] = corners.map(|v| v.round() as i64);
        let (word, name) = (piece_name(explained, piece), &explained.region_names[region]);
        report.say(format!("  {weight:.3}  {word:<18} → {name:<24} at ({x0}, {y0})–({x1}, {y1}) px"));
    }
    Ok(())
}

/// "bicycle", or "bi (bicycle)" if the word consists of several pieces.
fn piece_name(explained: &Explained, piece: usize) -> String {
    let token = &explained.scored.encoding.tokens[piece];
    match explained.words.iter().find(|word| word.pieces.contains(&piece)) {
        Some(word) if word.plain() != *token => format!("{token} ({})", word.plain()),
        _ => token.clone(),
    }
}
