//! `lxmert-train ask`: its arguments and the command.

mod picture;

use crate::run_folder::open_checkpoint;
use crate::{Error, Result};
use candle_core::Device;
use image::RgbImage;
use lxmert_core::answering::{Answer, Answerer};
use lxmert_core::boxes::to_pixels;
use lxmert_core::cli::{check_interrupt, print, print_line};
use lxmert_core::features::FeatureStore;
use lxmert_core::files::read_text;
use lxmert_core::workspace::Workspace;
use lxmert_extract::finder::{Finder, FinderArgs, Found};
use lxmert_extract::images::{DecodedImage, decode_file};
use lxmert_extract::inputs::{ImageEntry, find_images};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Answer questions about photos
#[derive(Debug, Clone, clap::Args)]
pub struct AskArgs {
    /// Checkpoint of a model trained on questions: a folder, a run folder, a weights file beside its config.json, or
    /// hf:owner/repo or hf:owner/repo@revision [default: runs/scenes-questions]
    #[arg(long, value_name = "CHECKPOINT")]
    pub checkpoint: Option<PathBuf>,
    /// A photo or a folder of photos; may be given several times. With --regions-from, an image's name in the store
    #[arg(long, value_name = "PHOTO|DIR", required = true)]
    pub image: Vec<PathBuf>,
    /// A question; may be given several times
    #[arg(long, value_name = "SENTENCE", required_unless_present = "questions")]
    pub question: Vec<String>,
    /// A file of questions, one per line
    #[arg(long, value_name = "FILE")]
    pub questions: Option<PathBuf>,
    /// How many answers to give
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub top: usize,
    /// How many regions to name as what the first answer rests on: those without which its logit falls most. This costs a
    /// pass per region; 0 skips it
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub rests_on: usize,
    /// Take the regions from this feature store instead of finding them in a photo
    #[arg(long, alias = "features", value_name = "DIR", conflicts_with_all = ["detector", "weights", "regions", "no_cache", "picture"])]
    pub regions_from: Option<PathBuf>,
    /// How regions are found.
    #[command(flatten)]
    pub finder: FinderArgs,
    /// Draw the photo with those regions and the answers; of one photo and one question. `lxmert-viz relevancy` draws more
    #[arg(long, value_name = "OUT.png")]
    pub picture: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The answers to one question about one photo.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// The photo's file, or its name in the store.
    pub image: String,
    /// The question.
    pub question: String,
    /// What found the regions.
    pub detector: String,
    /// How many regions the model looked at.
    pub regions: usize,
    /// The best answers, the best first.
    pub answers: Vec<Answer>,
    /// What the first of them rests on, the most important region first.
    pub rests_on: Vec<Support>,
}

/// A region that an answer rests on.
#[derive(Debug, Clone, Serialize)]
pub struct Support {
    /// Its number in the order of the detector, from 1.
    pub region: usize,
    /// What it shows, by the detector.
    pub name: String,
    /// x0 y0 x1 y1 in pixels of the photo.
    pub box_xyxy_px: [f32; 4],
    /// By how much the answer's logit falls without it.
    pub logit_falls_by: f32,
}

/// Runs the command.
///
/// # Errors
/// Returns an error if the checkpoint does not answer questions, its features are from another detector, or a photo
/// cannot be read.
pub fn run(args: &AskArgs, device: &Device, progress: bool) -> Result<()> {
    let questions = args.questions()?;
    let folder = args.checkpoint.clone().unwrap_or_else(|| Workspace::locate().run("scenes-questions"));
    log::info!("reading {}", folder.display());
    let answerer = Answerer::new(open_checkpoint(&folder, "questions")?, device)?;
    let mut all = Vec::new();
    let mut ask = |image: &str, found: &Found, photo: Option<&DecodedImage>| -> Result<()> {
        log::info!("{image}: answering");
        let Found { regions, info } = found;
        let looked_at = regions.num_regions().min(answerer.preprocessing.regions);
        if !args.json {
            print_line(format_args!("{image}: {looked_at} regions ({})", info.detector))?;
        }
        for question in &questions {
            check_interrupt()?;
            let answers = answerer.ask(regions, question, args.top.max(1), device)?;
            let rests_on = args.rests_on(&answerer, found, question, &answers, device)?;
            let (image, detector) = (image.to_string(), info.detector.clone());
            let asked = Asked { image, question: question.clone(), detector, regions: looked_at, answers, rests_on };
            if let Some((path, photo)) = args.picture.as_deref().zip(photo) {
                picture::write(path, photo_of(photo)?, &asked)?;
            }
            match args.json {
                true => all.push(asked),
                false => print(&asked)?,
            }
        }
        Ok(())
    };
    match &args.regions_from {
        Some(store) => {
            let store = FeatureStore::open(store)?;
            args.image.iter().try_for_each(|name| {
                let name = name.to_string_lossy();
                ask(&name, &stored(&store, &name)?, None)
            })?;
        }
        None => {
            let (width, preprocessing) = (answerer.config.visual_feat_dim, &answerer.preprocessing);
            let finder = Finder::open(&args.finder, width, preprocessing, progress, device)?;
            let photos = args.photos()?;
            let mut failed = 0;
            for (number, entry) in photos.iter().enumerate() {
                check_interrupt()?;
                if photos.len() > 1 {
                    log::info!("photo {} of {}", number + 1, photos.len());
                }
                let name = entry.path.to_string_lossy();
                let asked = read(entry).and_then(|photo| ask(&name, &finder.find(&photo, &name)?, Some(&photo)));
                match asked {
                    // One unreadable photo among many does not end the job.
                    Err(error @ Error::Extract(lxmert_extract::Error::Image { .. })) if photos.len() > 1 => {
                        log::error!("{error}");
                        failed += 1;
                    }
                    asked => asked?,
                }
            }
            if failed > 0 {
                print_json(args, &all)?;
                return Err(Error::Argument(format!("{failed} of {} photos could not be read", photos.len())));
            }
        }
    }
    print_json(args, &all)
}

fn print_json(args: &AskArgs, all: &[Asked]) -> Result<()> {
    if args.json {
        print_line(serde_json::to_string_pretty(all).map_err(Error::json("answers"))?)?;
    }
    Ok(())
}

impl AskArgs {
    /// All questions, in order.
    fn questions(&self) -> Result<Vec<String>> {
        let mut questions = self.question.clone();
        if let Some(path) = &self.questions {
            let text = read_text(path)?;
            questions.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from));
            if questions.is_empty() {
                return Err(Error::file(path, "no question here; write one per line"));
            }
        }
        if self.picture.is_some() && (questions.len() > 1 || self.image.len() > 1 || self.image[0].is_dir()) {
            return Err(Error::Argument("--picture takes one photo and one question".into()));
        }
        if let Some(path) = self.picture.as_deref().filter(|path| path.extension().is_none_or(|end| end != "png")) {
            return Err(Error::Argument(format!("--picture {}: name a file that ends in .png", path.display())));
        }
        Ok(questions)
    }

    /// The photos' files, those of folders in the order of their names.
    fn photos(&self) -> Result<Vec<ImageEntry>> {
        let mut photos = Vec::new();
        for path in &self.image {
            match path.is_dir() {
                true => photos.extend(find_images(path, None)?),
                false => photos.push(ImageEntry { name: String::new(), path: path.clone(), fault: None }),
            }
        }
        Ok(photos)
    }

    /// The regions that the first answer rests on.
    fn rests_on(
        &self,
        answerer: &Answerer,
        found: &Found,
        question: &str,
        answers: &[Answer],
        device: &Device,
    ) -> Result<Vec<Support>> {
        let Some(first) = answers.first().filter(|_| self.rests_on > 0) else { return Ok(Vec::new()) };
        let Found { regions, info } = found;
        let (width, height) = (regions.image_width as f32, regions.image_height as f32);
        let falls = answerer.rests_on(regions, question, first, device)?;
        let mut order: Vec<usize> = (0..falls.len()).filter(|&i| falls[i] > 0.0).collect();
        order.sort_by(|&a, &b| falls[b].total_cmp(&falls[a]));
        order.truncate(self.rests_on);
        let support = |i: usize| Support {
            region: i + 1,
            name: info.region_name(regions, i),
            box_xyxy_px: to_pixels(&regions.boxes[i], width, height),
            logit_falls_by: falls[i],
        };
        Ok(order.into_iter().map(support).collect())
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.question)?;
        let width = self.answers.iter().map(|answer| answer.answer.chars().count()).max().unwrap_or(0);
        for Answer { answer, probability, .. } in &self.answers {
            writeln!(f, "  {answer:width$}  {probability:.3}")?;
        }
        if !self.rests_on.is_empty() {
            let named = self.rests_on.iter().map(|of| format!("{} (−{:.2})", of.name, of.logit_falls_by));
            writeln!(f, "  rests on {}", named.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

fn read(entry: &ImageEntry) -> Result<DecodedImage> {
    match &entry.fault {
        Some(fault) => Err(lxmert_extract::Error::image(&entry.path, fault.clone()).into()),
        None => Ok(decode_file(&entry.path)?),
    }
}

fn stored(store: &FeatureStore, name: &str) -> Result<Found> {
    let index = store.find(name).ok_or_else(|| {
        let some = store.names().take(3).collect::<Vec<_>>().join(", ");
        Error::file(store.folder(), format!("no image '{name}' here; there are {some} and others"))
    })?;
    Ok(Found { regions: store.regions(index)?, info: store.info().clone() })
}

fn photo_of(photo: &DecodedImage) -> Result<RgbImage> {
    RgbImage::from_raw(photo.width, photo.height, photo.rgb.clone())
        .ok_or_else(|| Error::Argument("the photo's pixels do not match its size".into()))
}
