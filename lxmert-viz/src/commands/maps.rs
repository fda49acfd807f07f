//! `heatmap`, `heads` and `overlay`: single pictures of one image and one sentence.

use super::{Report, Session, SubjectArgs, stem, verdict_line};
use crate::dataset::{DataSet, slug};
use crate::explain::maps::Direction;
use crate::explain::methods::Method;
use crate::explain::scorer::PairInput;
use crate::pictures::canvas::Canvas;
use crate::pictures::explained::Explained;
use crate::{Error, Result};
use lxmert_core::model::Capture;

/// Which attention.
#[derive(Debug, Clone, clap::Args)]
pub struct MapArgs {
    /// Which attention
    #[arg(long, value_enum, default_value_t = Direction::LanguageToVision, value_name = "DIRECTION")]
    pub direction: Direction,
    /// Which layer, from 1
    #[arg(long, value_name = "N")]
    pub layer: Option<usize>,
}

/// `heatmap`.
#[derive(Debug, Clone, clap::Args)]
pub struct HeatmapArgs {
    /// Image and sentence.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Direction and layer.
    #[command(flatten)]
    pub map: MapArgs,
    /// Which head, from 1 [default: the mean over the heads]
    #[arg(long, value_name = "N")]
    pub head: Option<usize>,
    /// Every layer and head of every direction, and the means
    #[arg(long, conflicts_with_all = ["head", "layer"])]
    pub all: bool,
}

/// `heads`.
#[derive(Debug, Clone, clap::Args)]
pub struct HeadsArgs {
    /// Image and sentence.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Direction and layer.
    #[command(flatten)]
    pub map: MapArgs,
}

/// `overlay`.
#[derive(Debug, Clone, clap::Args)]
pub struct OverlayArgs {
    /// Image and sentence.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// The word whose attention to draw; "red:2" is the second "red" [default: the whole sentence]
    #[arg(long)]
    pub word: Option<String>,
    /// How to weigh regions
    #[arg(long, value_enum, default_value_t = Method::Attention, value_name = "METHOD")]
    pub by: Method,
}

/// A kind of attention, its layer and its head, both from 1; `None` as in [`Explained::heatmap`].
type Choice = (Direction, Option<usize>, Option<usize>);

impl HeatmapArgs {
    /// Draws one attention map, or all of them.
    ///
    /// # Errors
    /// Returns an error if there is no such image, layer or head, or a file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        if self.all {
            session.folder()?;
        }
        let one = (self.map.direction, self.map.layer, self.head);
        draw(session, &self.subject, |explained, _| {
            let choices = if self.all { every_map(explained)? } else { vec![one] };
            let part = |what: &str, n: Option<usize>| n.map_or(String::new(), |n| format!("-{what}{n}"));
            let drawn = choices.into_iter().map(|(direction, layer, head)| {
                let more = format!("-{}{}{}", direction.slug(), part("layer", layer), part("head", head));
                let sheet = explained.heatmap(direction, layer, head)?.draw()?;
                Ok((sheet, stem("heatmap", explained.image, &more)))
            });
            drawn.collect()
        })
    }
}

impl HeadsArgs {
    /// Draws all heads side by side.
    ///
    /// # Errors
    /// Returns an error if there is no such image or layer, or the file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        let MapArgs { direction, layer } = self.map;
        draw(session, &self.subject, |explained, _| {
            let sheet = explained.heads(direction, layer)?.draw()?;
            Ok(vec![(sheet, stem("heads", explained.image, &format!("-{}", direction.slug())))])
        })
    }
}

impl OverlayArgs {
    /// Draws the photo with its regions.
    ///
    /// # Errors
    /// Returns an error if there is no such image or word, or the file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        draw(session, &self.subject, |explained, data| {
            let photo = data.photo(explained.image)?;
            let sheet = explained.overlay(photo, self.by, self.word.as_deref(), None)?.draw()?;
            let of = self.word.as_deref().map_or("sentence".into(), |word| slug(&word.replace(':', "-")));
            Ok(vec![(sheet, stem("overlay", explained.image, &format!("-{of}-{}", self.by.slug())))])
        })
    }
}

/// Scores the chosen image and sentence with gradients, draws, and writes.
fn draw(
    session: &Session,
    chosen: &SubjectArgs,
    draw: impl FnOnce(&Explained, &DataSet) -> Result<Vec<(Canvas, String)>>,
) -> Result<Report> {
    let (scorer, data) = session.open()?;
    let image = chosen.image(&data)?;
    let (regions, text) = (data.regions(&image)?, chosen.text(&data, &image)?);
    let scored = scorer.score(&[PairInput { regions: &regions, text: &text }], Capture::Probes)?;
    let scored = scored.first().ok_or_else(|| Error::Shape("the pair has no score".into()))?;
    let explained = Explained::new(&image, &text, scored, &regions, &data.store.info().label_names);
    let explained = explained.with_look(session.figures.look());
    let mut report = Report::default();
    report.say(format!("{image}, “{text}”: {}", verdict_line(scored.probability())));
    for (sheet, stem) in draw(&explained, &data)? {
        let path = session.figures.file(session.places.plots(), &stem)?;
        session.save(sheet, &path, "", &mut report)?;
    }
    Ok(report)
}

fn every_map(explained: &Explained) -> Result<Vec<Choice>> {
    let maps = explained.scored.maps()?;
    let mut all = Vec::new();
    for direction in Direction::ALL {
        for (i, heads) in maps.layers(direction).iter().enumerate() {
            all.push((direction, Some(i + 1), None));
            all.extend((1..=heads.probabilities.len()).map(|head| (direction, Some(i + 1), Some(head))));
        }
    }
    Ok(all)
}
