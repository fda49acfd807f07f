//! The subcommands: each takes a [`Session`] and its own options, writes files, and returns a [`Report`].

pub mod explore;
pub mod export;
pub mod gallery;
pub mod grounding;
pub mod maps;
pub mod pair;
pub mod perturbation;
pub mod predictions;
pub mod relevancy;
pub mod serve;

use crate::dataset::{DataSet, slug};
use crate::explain::scorer::Scorer;
use crate::figures::{FigureArgs, Format, write_whole};
use crate::photo;
use crate::pictures::canvas::Canvas;
use crate::pictures::curves;
use crate::pictures::grid::percent;
use crate::places::Places;
use crate::{Error, Result};
use candle_core::Device;
use image::RgbImage;
use lxmert_core::features::Regions;
use lxmert_core::pretrained::Preprocessing;
use lxmert_extract::finder::{Finder, FinderArgs, Found};
use lxmert_extract::images::DecodedImage;
use lxmert_train::data::per_example::{self, Record};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// What every command needs.
pub struct Session {
    /// Where the files are.
    pub places: Places,
    /// Where figures are written, and how they are drawn.
    pub figures: FigureArgs,
    /// Where to compute.
    pub device: Device,
    /// The seed of random draws.
    pub seed: u64,
    /// Whether to draw progress bars.
    pub progress: bool,
}

impl Session {
    /// Opens the checkpoint.
    ///
    /// # Errors
    /// See [`Scorer::open`].
    pub fn scorer(&self) -> Result<Scorer> {
        Scorer::open(&self.places.checkpoint, &self.device)
    }

    /// Opens the data, for a model that looks at `regions` regions of an image.
    ///
    /// # Errors
    /// See [`DataSet::open`].
    pub fn data(&self, regions: usize) -> Result<DataSet> {
        DataSet::open(self.places.clone(), regions)
    }

    /// Opens the checkpoint and the data.
    ///
    /// # Errors
    /// As [`Scorer::open`] and [`DataSet::open`].
    pub fn open(&self) -> Result<(Scorer, DataSet)> {
        let scorer = self.scorer()?;
        let data = self.data(scorer.regions())?;
        Ok((scorer, data))
    }

    /// The folder of a command that writes several files.
    fn folder(&self) -> Result<PathBuf> {
        self.figures.folder(self.places.plots())
    }

    /// The file of a command that writes one which is no figure: what `--output` names, or `stem.extension` in its folder or
    /// in `default`.
    fn file(&self, default: PathBuf, stem: &str, extension: &str) -> Result<PathBuf> {
        let name = format!("{stem}.{extension}");
        let Some(output) = &self.figures.output else { return Ok(default.join(name)) };
        match output.extension().and_then(|given| given.to_str()) {
            Some(given) if given == extension => Ok(output.clone()),
            None => Ok(output.join(name)),
            Some(_) => {
                let reason = format!("this is written as .{extension}; pass such a file, or a folder");
                Err(Error::Argument(format!("--output {}: {reason}", output.display())))
            }
        }
    }

    /// Writes a figure of the data to `path`, with the extension of each format.
    fn save(&self, mut sheet: Canvas, path: &Path, shows: impl Into<String>, report: &mut Report) -> Result<()> {
        if let Some(notice) = &self.places.notice {
            sheet.footer(notice);
        }
        self.save_photo(&sheet, path, shows, report)
    }

    /// The same for a figure of the user's own photo, which belongs to no data set.
    fn save_photo(&self, sheet: &Canvas, path: &Path, shows: impl Into<String>, report: &mut Report) -> Result<()> {
        let shows = shows.into();
        for path in self.figures.write(sheet, path)? {
            if path.extension().is_some_and(|extension| extension == "png") {
                report.boxes.extend(sheet.missing_characters());
            }
            report.files.push(Written { path, shows: shows.clone() });
        }
        Ok(())
    }

    /// A progress bar for a job of `length` parts.
    fn bar(&self, length: usize, what: &str) -> indicatif::ProgressBar {
        let template = "{msg} [{wide_bar}] {pos}/{len} ({eta} left)";
        let bar = lxmert_core::progress::bar(Some(length as u64), template, self.progress);
        bar.set_message(what.to_string());
        bar
    }
}

/// A file, and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// One line; empty if the command explains it.
    pub shows: String,
}

/// What a command found and wrote.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Results for the user, one paragraph each.
    pub lines: Vec<String>,
    /// The files, in writing order.
    pub files: Vec<Written>,
    /// Characters that PNG files show as boxes.
    boxes: BTreeSet<char>,
}

impl Report {
    fn say(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    fn add(&mut self, path: PathBuf) {
        self.files.push(Written { path, shows: String::new() });
    }

    /// Writes a text file.
    fn write(&mut self, path: PathBuf, text: &str) -> Result<()> {
        write_whole(&path, text.as_bytes())?;
        self.add(path);
        Ok(())
    }

    /// Writes the lines of `--per-example`, if it is given.
    fn write_examples(&mut self, path: Option<&Path>, records: &[Record]) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        per_example::write(path, records)?;
        self.add(path.to_path_buf());
        Ok(())
    }

    /// A warning that concerns all figures, printed once.
    pub fn warning(&self) -> Option<String> {
        let some: Vec<String> = self.boxes.iter().take(8).map(char::to_string).collect();
        (!some.is_empty()).then(|| {
            format!(
                "{} characters ({}{}) are not in the bundled font: PNG files show a box for each; --format svg leaves them \
                 to the fonts of the viewer",
                self.boxes.len(),
                some.join(" "),
                if self.boxes.len() > some.len() { " …" } else { "" }
            )
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        for Written { path, shows } in &self.files {
            let gap = if shows.is_empty() { "" } else { "  " };
            writeln!(f, "{}{gap}{shows}", path.display())?;
        }
        Ok(())
    }
}

/// Which image of the data, and which sentence.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SubjectArgs {
    /// The image's name in the feature store [default: the first test image]
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// The sentence [default: the image's first caption]
    #[arg(long)]
    pub text: Option<String>,
}

impl SubjectArgs {
    /// The image's name.
    fn image(&self, data: &DataSet) -> Result<String> {
        self.image.clone().map_or_else(|| data.first_image(), Ok)
    }

    /// The sentence.
    fn text(&self, data: &DataSet, image: &str) -> Result<String> {
        let first = || data.captions_of(image).first().map(ToString::to_string);
        let text = self.text.clone().or_else(first);
        text.ok_or_else(|| Error::Argument(format!("{image} has no caption; give a sentence with --text")))
    }
}

/// A photo, its regions and their names.
struct Seen {
    name: String,
    photo: RgbImage,
    regions: Regions,
    label_names: Vec<String>,
    detector: String,
}

impl Seen {
    /// An image of the data.
    fn stored(data: &DataSet, name: String) -> Result<Self> {
        let (photo, regions) = (data.photo(&name)?, data.regions(&name)?);
        let (label_names, detector) = (data.store.info().label_names.clone(), data.store.info().detector.clone());
        Ok(Self { name, photo, regions, label_names, detector })
    }
}

/// The regions of a photo for a model that takes `takes.0` numbers a region and was trained as `takes.1` says.
fn find_regions(args: &FinderArgs, session: &Session, path: &Path, takes: (usize, &Preprocessing)) -> Result<Seen> {
    let photo = photo::read(path)?;
    let finder = Finder::open(args, takes.0, takes.1, session.progress, &session.device)?;
    let (width, height) = photo.dimensions();
    let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy()).into_owned();
    let Found { regions, info } = finder.find(&DecodedImage { width, height, rgb: photo.as_raw().clone() }, &name)?;
    Ok(Seen { name, photo, regions, label_names: info.label_names, detector: info.detector })
}

/// Draws the training curves of the run, only as PNG.
///
/// # Errors
/// Returns an error if the run has no training record, only SVG is requested, or the picture cannot be written.
pub fn curves(session: &Session) -> Result<Report> {
    if !session.figures.formats().contains(&Format::Png) {
        return Err(Error::Argument("the training curves are drawn only as .png; omit --format".into()));
    }
    let mut path = session.figures.file(session.places.plots(), "curves")?.into_os_string();
    path.push(".png");
    draw_curves(session, path.into())
}

fn draw_curves(session: &Session, path: PathBuf) -> Result<Report> {
    let mut report = Report::default();
    curves::draw(&session.places.run, &path)?;
    report.files.push(Written { path, shows: "training curves of the run".into() });
    Ok(report)
}

/// A one-line summary of a scored pair: "P(match) = 0.97 (match)".
fn verdict_line(probability: f32) -> String {
    let word = if probability >= 0.5 { "match" } else { "mismatch" };
    format!("P(match) = {} ({word})", percent(probability))
}

/// The name of an image's files.
fn stem(kind: &str, image: &str, more: &str) -> String {
    format!("{kind}-{}{more}", slug(image))
}
