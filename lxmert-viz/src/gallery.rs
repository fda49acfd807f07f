//! The pictures of a run: what a bare `lxmert-viz` makes, with an index that says what each shows.

use crate::canvas::{Canvas, write_whole};
use crate::dataset::{DataSet, Example, inputs, slug, spread};
use crate::grid::{Card, PredictionPicture, percent};
use crate::grounding::{self, Grounding};
use crate::pictures::{Explained, Which};
use crate::relevancy::Method;
use crate::scorer::{PairInput, Scorer};
use crate::words::Word;
use crate::{Result, curves};
use lxmert_core::boxes::{BoxXyxy, normalise};
use lxmert_core::cli::check_interrupt;
use lxmert_core::model::Capture;
use lxmert_extract::scenes::{Annotations, read_annotations};
use lxmert_train::data::pairs::PairKind;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A written picture and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file.
    pub path: PathBuf,
    /// One line.
    pub shows: String,
}

/// What a bare run found and wrote.
#[derive(Debug, Default)]
pub struct Gallery {
    /// The pictures, in the order of the index.
    pub pictures: Vec<Picture>,
    /// Accuracy on the fixed test pairs, and on the hard ones when there are any: right, all.
    pub accuracy: Vec<(&'static str, usize, usize)>,
    /// The grounding measure, when the true boxes are known.
    pub grounding: Option<Grounding>,
}

impl Gallery {
    fn add(&mut self, sheet: &Canvas, path: PathBuf, shows: impl Into<String>) -> Result<()> {
        sheet.save(&path)?;
        self.pictures.push(Picture { path, shows: shows.into() });
        Ok(())
    }

    fn index(&self, name: &str, folder: &Path) -> String {
        let mut text = format!("# Pictures of the run on {name}\n\n");
        for (set, right, all) in &self.accuracy {
            let _ =
                writeln!(text, "Accuracy on the {set} test pairs: {:.3} ({right} of {all}).\n", ratio(*right, *all));
        }
        if let Some(grounding) = &self.grounding {
            let _ = writeln!(
                text,
                "Grounding, share of {} held-out captions that name one object whose strongest region is that object \
                 (IoU ≥ {}):\n\n```text\n{grounding}\n```\n",
                grounding.all.phrases,
                grounding::HIT_IOU
            );
        }
        for picture in &self.pictures {
            let path = picture.path.strip_prefix(folder).unwrap_or(&picture.path);
            let link = path.to_string_lossy().replace('\\', "/");
            let _ = writeln!(text, "{}\n\n![]({link})\n", picture.shows);
        }
        text
    }
}

/// What to make.
#[derive(Debug, Clone)]
pub struct GalleryOptions {
    /// The folder for the pictures.
    pub output: PathBuf,
    /// How many test pairs to explain.
    pub pairs: usize,
    /// Show a progress bar.
    pub progress: bool,
}

/// Pairs scored at once without maps.
const BATCH: usize = 64;
/// At most this many test pairs are scored for the grid's figures.
const MOST_TEST_PAIRS: usize = 4000;

/// Makes every picture of a run.
///
/// # Errors
/// When a file is missing or damaged, a picture cannot be written, or Ctrl-C was pressed.
pub fn make(data: &DataSet, scorer: &Scorer, options: &GalleryOptions) -> Result<Gallery> {
    let mut gallery = Gallery::default();
    let annotations = match &data.places.scenes {
        Some(folder) if folder.join("scenes.json").is_file() => Some(read_annotations(folder)?),
        _ => None,
    };
    if let Some(annotations) = &annotations {
        let held_out: HashSet<&str> = data.test_images().into_iter().collect();
        let cases = grounding::single_objects(grounding::scene_cases(annotations, &held_out));
        let bar = progress_bar(options.progress, cases.len(), "measuring grounding");
        gallery.grounding =
            Some(grounding::measure(scorer, &data.store, &cases, |done| bar.set_position(done as u64))?);
        bar.finish_and_clear();
    }
    predictions(data, scorer, options, &mut gallery)?;
    for (number, subject) in subjects(data, annotations.as_ref(), options.pairs).iter().enumerate() {
        check_interrupt()?;
        explain(data, scorer, options, number + 1, subject, &mut gallery)?;
    }
    let path = options.output.join("curves.png");
    curves::draw(&data.places.run, &path)?;
    gallery.pictures.push(Picture { path, shows: "training curves of the run".into() });
    let index = gallery.index(&data.places.name, &options.output);
    write_whole(&options.output.join("index.md"), index.as_bytes())?;
    Ok(gallery)
}

/// The grids of test pairs alone.
///
/// # Errors
/// As [`make`].
pub fn prediction_grids(data: &DataSet, scorer: &Scorer, options: &GalleryOptions) -> Result<Gallery> {
    let mut gallery = Gallery::default();
    predictions(data, scorer, options, &mut gallery)?;
    Ok(gallery)
}

/// A pair to explain, with what is known of it.
struct Subject {
    example: Example,
    /// Words to look at, each with its object's true box where that is known.
    words: Vec<(String, Option<BoxXyxy>)>,
}

fn subjects(data: &DataSet, annotations: Option<&Annotations>, count: usize) -> Vec<Subject> {
    let images = data.test_images();
    let chosen = spread(&images, count);
    chosen
        .into_iter()
        .enumerate()
        .filter_map(|(i, image)| {
            let image = (*image).to_string();
            let scene = annotations.and_then(|a| a.scenes.iter().find(|scene| scene.image == image));
            if let Some(scene) = scene {
                // The kinds take turns: one object, a relation, a pair.
                let wanted = ["object", "relation", "pair"][i % 3];
                let is_wanted = |kind| format!("{kind:?}").eq_ignore_ascii_case(wanted);
                let caption = scene.captions.iter().find(|c| is_wanted(c.kind)).or(scene.captions.first())?;
                let size = (scene.width as f32, scene.height as f32);
                let objects = caption.objects.iter().filter_map(|o| scene.objects.get(*o));
                let mut words: Vec<(String, Option<BoxXyxy>)> = Vec::new();
                for object in objects {
                    let noun = object.shape.word();
                    let before = words.iter().filter(|(word, _)| word.split(':').next() == Some(noun)).count();
                    let name = if before == 0 { noun.to_string() } else { format!("{noun}:{}", before + 1) };
                    words.push((name, Some(normalise(&object.box_xyxy_px, size.0, size.1))));
                }
                // Two mentions of one noun: name the first by its number too, else both are meant.
                if words.len() == 2 && words[1].0.ends_with(":2") {
                    words[0].0.push_str(":1");
                }
                let example = Example { image, text: caption.text.clone(), kind: PairKind::Matched };
                return Some(Subject { example, words });
            }
            let text = data.captions_of(&image).first()?.to_string();
            Some(Subject { example: Example { image, text, kind: PairKind::Matched }, words: Vec::new() })
        })
        .collect()
}

fn explain(
    data: &DataSet,
    scorer: &Scorer,
    options: &GalleryOptions,
    number: usize,
    subject: &Subject,
    gallery: &mut Gallery,
) -> Result<()> {
    let Example { image, text, .. } = &subject.example;
    let regions = data.regions(image)?;
    let photo = data.photo(image)?;
    let scored = scorer.score(&[PairInput { regions: &regions, text }], Capture::Probes)?.remove(0);
    let explained = Explained::new(image, text, &scored, &regions, &data.store.info().label_names);
    let folder = options.output.join(format!("pair-{number}-{}", slug(image)));
    let pair = format!("pair {number}, {image}, “{text}”");
    let words = match subject.words.as_slice() {
        [] => strongest_word(&explained)?.map(|word| vec![(word, None)]).unwrap_or_default(),
        words => words.to_vec(),
    };
    // Two words of one sentence share a picture's truth only when there is one.
    let single = if let [(_, truth)] = words.as_slice() { *truth } else { None };
    for method in [Method::Attention, Method::Relevancy] {
        let sheet = explained.overlay(photo.clone(), method, None, single)?.draw()?;
        let file = format!("overlay-sentence-{}.png", method_slug(method));
        gallery.add(&sheet, folder.join(file), format!("{pair}: regions by {}, whole sentence", method.name()))?;
    }
    let sheet = explained.methods(photo.clone(), &Method::COMPARED)?.draw()?;
    gallery.add(&sheet, folder.join("relevancy.png"), format!("{pair}: what the match rests on, by method"))?;
    for (word, truth) in &words {
        let sheet = explained.overlay(photo.clone(), Method::Attention, Some(word), *truth)?.draw()?;
        let file = format!("overlay-{}.png", slug(&word.replace(':', "-")));
        gallery.add(&sheet, folder.join(file), format!("{pair}: regions that “{word}” attends to"))?;
    }
    for which in [Which::LanguageToVision, Which::VisionToLanguage] {
        let layers = explained.num_layers(which)?;
        for layer in 1..=layers {
            let sheet = explained.heatmap(which, Some(layer), None)?.draw()?;
            let file = format!("heatmap-{}-layer{layer}.png", which.slug());
            let shows = format!("{pair}: {}, cross layer {layer} of {layers}, mean of heads", which.sentence());
            gallery.add(&sheet, folder.join(file), shows)?;
        }
        if layers > 0 {
            let sheet = explained.heads(which, None)?.draw()?;
            let shows = format!("{pair}: every head, {}", which.sentence());
            gallery.add(&sheet, folder.join(format!("heads-{}.png", which.slug())), shows)?;
        }
    }
    for which in [Which::LanguageSelf, Which::VisionSelf] {
        if number == 1 && explained.num_layers(which)? > 0 {
            let sheet = explained.heatmap(which, None, None)?.draw()?;
            let shows = format!("{pair}: {}, last cross layer, mean of heads", which.sentence());
            gallery.add(&sheet, folder.join(format!("heatmap-{}.png", which.slug())), shows)?;
        }
    }
    Ok(())
}

/// The word of the sentence with the strongest link to a region.
fn strongest_word(explained: &Explained) -> Result<Option<String>> {
    let links = explained.strongest_links(1)?;
    let piece = links.first().map(|link| link.0);
    let word = explained.words.iter().find(|word| piece.is_some_and(|piece| word.pieces.contains(&piece)));
    Ok(word.map(Word::plain))
}

/// For file names.
pub fn method_slug(method: Method) -> &'static str {
    match method {
        Method::Attention => "attention",
        Method::GradientAttention => "gradient-attention",
        Method::Relevancy => "relevancy",
        Method::Rollout => "rollout",
        Method::GradCam => "grad-cam",
    }
}

fn predictions(data: &DataSet, scorer: &Scorer, options: &GalleryOptions, gallery: &mut Gallery) -> Result<()> {
    let (fixed, hard) = data.test_pairs();
    let mut wrong: Vec<(Example, f32)> = Vec::new();
    for (name, pairs) in [("random", fixed), ("hard", hard)] {
        if pairs.is_empty() {
            continue;
        }
        let pairs: Vec<Example> = spread(&pairs, MOST_TEST_PAIRS).into_iter().cloned().collect();
        let probabilities = probabilities(data, scorer, &pairs, options.progress, name)?;
        let right = |(example, p): &(&Example, &f32)| (**p >= 0.5) == (example.kind == PairKind::Matched);
        let count = pairs.iter().zip(&probabilities).filter(right).count();
        gallery.accuracy.push((name, count, pairs.len()));
        let figures = format!("accuracy {:.3} ({count} of {} pairs)", ratio(count, pairs.len()), pairs.len());
        let both: Vec<(Example, f32)> = pairs.into_iter().zip(probabilities).collect();
        let shown = balanced(&both, 12);
        let subtitle = format!("held-out pairs, evenly spread through the {name} test set: {figures}");
        let title = match name {
            "hard" => format!("Hard pairs of {}: one word or relation swapped", data.places.name),
            _ => format!("Test pairs of {}", data.places.name),
        };
        let sheet = picture(data, title, subtitle, &shown)?.draw()?;
        let shows = format!("{name} test pairs with the model's verdict; {figures}");
        gallery.add(&sheet, options.output.join(format!("predictions-{name}.png")), shows)?;
        wrong.extend(both.into_iter().filter(|(e, p)| !right(&(e, p))));
    }
    wrong.sort_by(|a, b| (b.1 - 0.5).abs().total_cmp(&(a.1 - 0.5).abs()));
    // A true caption is in both sets.
    let mut seen = HashSet::new();
    wrong.retain(|(example, _)| seen.insert((example.image.clone(), example.text.clone())));
    wrong.truncate(12);
    if !wrong.is_empty() {
        let shown: Vec<&(Example, f32)> = wrong.iter().collect();
        let title = format!("Where the model is most confidently wrong on {}", data.places.name);
        let subtitle = "chosen from all test pairs, random and hard, the surest mistakes first".to_string();
        let sheet = picture(data, title, subtitle, &shown)?.draw()?;
        gallery.add(
            &sheet,
            options.output.join("predictions-mistakes.png"),
            "the surest mistakes of all test pairs",
        )?;
    }
    Ok(())
}

/// `count` of `all`, half of them matching pairs, taken alternately.
fn balanced(all: &[(Example, f32)], count: usize) -> Vec<&(Example, f32)> {
    let (yes, no): (Vec<_>, Vec<_>) = all.iter().partition(|(e, _)| e.kind == PairKind::Matched);
    // From another place of the list, so that the two halves do not show the same images.
    let shift = no.len() / (2 * count.max(1));
    let no: Vec<_> = no.into_iter().skip(shift).collect();
    let (yes, no) = (spread(&yes, count.div_ceil(2)), spread(&no, count / 2));
    let longest = yes.len().max(no.len());
    (0..longest).flat_map(|i| [yes.get(i), no.get(i)]).flatten().map(|pair| **pair).collect()
}

fn picture(data: &DataSet, title: String, subtitle: String, shown: &[&(Example, f32)]) -> Result<PredictionPicture> {
    let cards = shown
        .iter()
        .map(|(example, probability)| {
            Ok(Card {
                photo: data.photo(&example.image)?,
                caption: example.text.clone(),
                probability: *probability,
                is_match: example.kind == PairKind::Matched,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(PredictionPicture { title, subtitle, cards, across: 4 })
}

fn probabilities(data: &DataSet, scorer: &Scorer, pairs: &[Example], progress: bool, name: &str) -> Result<Vec<f32>> {
    let bar = progress_bar(progress, pairs.len(), &format!("scoring {name} test pairs"));
    let mut out = Vec::with_capacity(pairs.len());
    for batch in pairs.chunks(BATCH) {
        check_interrupt()?;
        let regions = batch.iter().map(|e| data.regions(&e.image)).collect::<Result<Vec<_>>>()?;
        let scored = scorer.score(&inputs(batch, &regions), Capture::None)?;
        out.extend(scored.iter().map(|s| s.probability()));
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(out)
}

fn ratio(part: usize, all: usize) -> f64 {
    part as f64 / all.max(1) as f64
}

/// A bar for a job of `length` parts, hidden unless `show`.
pub fn progress_bar(show: bool, length: usize, what: &str) -> indicatif::ProgressBar {
    let bar = if show { indicatif::ProgressBar::new(length as u64) } else { indicatif::ProgressBar::hidden() };
    if let Ok(style) = indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} ({eta} left)") {
        bar.set_style(style);
    }
    bar.set_message(what.to_string());
    bar
}

/// One line about a scored pair: "P(match) = 0.97".
pub fn verdict_line(probability: f32) -> String {
    let word = if probability >= 0.5 { "match" } else { "mismatch" };
    format!("P(match) = {} ({word})", percent(probability))
}
