//! The command without a subcommand: the pictures and measures of a run, with an index that says what each shows.

use super::explore::{self, ExploreArgs};
use super::predictions;
use super::{Report, Session};
use crate::dataset::{DataSet, Example, slug, spread};
use crate::explain::grounding::{self, Grounding};
use crate::explain::maps::Direction;
use crate::explain::methods::Method;
use crate::explain::scorer::{PairInput, Scorer};
use crate::pictures::explained::Explained;
use crate::{Error, Result};
use lxmert_core::boxes::{BoxXyxy, normalise};
use lxmert_core::interrupt::check_interrupt;
use lxmert_core::model::Capture;
use lxmert_extract::scenes::{Annotations, read_annotations};
use lxmert_train::data::pairs::PairKind;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

/// Makes every picture of a run; `pairs`: how many test pairs to explain.
///
/// # Errors
/// Returns an error if a file is missing or damaged, a picture cannot be written, or Ctrl-C was pressed.
pub fn run(session: &Session, pairs: usize) -> Result<Report> {
    let started = std::time::Instant::now();
    let folder = session.folder()?;
    let (scorer, data) = session.open()?;
    let mut report = Report::default();
    let annotations = data.places.scenes().map(read_annotations).transpose()?;
    let judged = predictions::draw(session, &data, &scorer, &folder, &mut report)?;
    if let Some(annotations) = &annotations {
        let found = measure_grounding(session, &data, &scorer, annotations)?;
        report.say(format!(
            "grounding: share of {} held-out captions naming one object for which the strongest region is that object \
             (IoU ≥ {}):\n{found}",
            found.all.phrases,
            grounding::HIT_IOU
        ));
    }
    for (number, subject) in subjects(&data, annotations.as_ref(), pairs)?.iter().enumerate() {
        check_interrupt()?;
        explain(session, &data, &scorer, (number + 1, subject), &folder, &mut report)?;
    }
    report.files.extend(super::draw_curves(session, folder.join("curves.png"))?.files);
    let index = folder.join("index.md");
    report.say(format!("{} pictures in {:.0} s", report.files.len(), started.elapsed().as_secs_f64()));
    let text = index_text(&report, session, &folder);
    report.write(index, &text)?;
    let explorer = ExploreArgs::default();
    explore::write(session, &explorer.open(session)?, explorer.pairs, Some(judged), &mut report)?;
    Ok(report)
}

/// The index: the measures, and each picture with what it shows.
fn index_text(report: &Report, session: &Session, folder: &Path) -> String {
    let mut text = format!("# Pictures of {}, on {}\n\n", session.places.checkpoint.display(), session.places.name);
    if let Some(notice) = &session.places.notice {
        let _ = writeln!(text, "**{notice}**\n");
    }
    for line in &report.lines {
        let _ = writeln!(text, "```text\n{line}\n```\n");
    }
    for picture in &report.files {
        let path = picture.path.strip_prefix(folder).unwrap_or(&picture.path);
        let link = path.to_string_lossy().replace('\\', "/");
        let _ = writeln!(text, "{}\n\n![]({link})\n", picture.shows);
    }
    text
}

fn measure_grounding(
    session: &Session,
    data: &DataSet,
    scorer: &Scorer,
    annotations: &Annotations,
) -> Result<Grounding> {
    let held_out: HashSet<&str> = data.test_images()?.into_iter().collect();
    let cases = grounding::single_objects(grounding::scene_cases(annotations, &held_out));
    let bar = session.bar(cases.len(), "measuring grounding");
    let found = grounding::measure(data, scorer, &cases, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(found)
}

/// A pair to explain, and what is known about it.
struct Subject {
    example: Example,
    /// Words to look at, each with its object's true box if known.
    words: Vec<(String, Option<BoxXyxy>)>,
}

fn subjects(data: &DataSet, annotations: Option<&Annotations>, count: usize) -> Result<Vec<Subject>> {
    let images = data.test_images()?;
    let chosen = spread(&images, count);
    let subjects = chosen
        .into_iter()
        .enumerate()
        .filter_map(|(i, image)| {
            let image = (*image).to_string();
            let scene = annotations.and_then(|a| a.scenes.iter().find(|scene| scene.image == image));
            if let Some(scene) = scene {
                // The kinds alternate: one object, a relation, a pair.
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
                // If both mentions use the same noun, give the first its number too; otherwise both are meant.
                if words.len() == 2 && words[1].0.ends_with(":2") {
                    words[0].0.push_str(":1");
                }
                let example = Example { image, text: caption.text.clone(), kind: PairKind::Matched };
                return Some(Subject { example, words });
            }
            let text = data.captions_of(&image).first()?.to_string();
            Some(Subject { example: Example { image, text, kind: PairKind::Matched }, words: Vec::new() })
        })
        .collect();
    Ok(subjects)
}

fn explain(
    session: &Session,
    data: &DataSet,
    scorer: &Scorer,
    (number, subject): (usize, &Subject),
    folder: &Path,
    report: &mut Report,
) -> Result<()> {
    let Example { image, text, .. } = &subject.example;
    let (regions, photo) = (data.regions(image)?, data.photo(image)?);
    let scored = scorer.score(&[PairInput { regions: &regions, text }], Capture::Probes)?;
    let scored = scored.first().ok_or_else(|| Error::Shape("the pair has no score".into()))?;
    let explained = Explained::new(image, text, scored, &regions, &data.store.info().label_names);
    let explained = explained.with_look(session.figures.look());
    let folder = folder.join(format!("pair-{number}-{}", slug(image)));
    let pair = format!("pair {number}, {image}, “{text}”");
    let words = match subject.words.as_slice() {
        [] => explained.strongest_word()?.map(|word| vec![(word, None)]).unwrap_or_default(),
        words => words.to_vec(),
    };
    for (sheet, stem, shows) in explained.summary(&photo)? {
        session.save(sheet, &folder.join(stem), format!("{pair}: {shows}"), report)?;
    }
    for (word, truth) in &words {
        let sheet = explained.overlay(photo.clone(), Method::Attention, Some(word), *truth)?.draw()?;
        let file = folder.join(format!("overlay-{}", slug(&word.replace(':', "-"))));
        session.save(sheet, &file, format!("{pair}: regions that “{word}” attends to"), report)?;
    }
    let layers = |direction| Ok::<_, Error>(scored.maps()?.layers(direction).len());
    for direction in [Direction::LanguageToVision, Direction::VisionToLanguage] {
        let (slug, sentence, count) = (direction.slug(), direction.sentence(), layers(direction)?);
        for layer in 1..=count {
            let sheet = explained.heatmap(direction, Some(layer), None)?.draw()?;
            let shows = format!("{pair}: {sentence}, cross layer {layer} of {count}, mean of heads");
            session.save(sheet, &folder.join(format!("heatmap-{slug}-layer{layer}")), shows, report)?;
        }
        if count > 0 {
            let sheet = explained.heads(direction, None)?.draw()?;
            let shows = format!("{pair}: every head, {sentence}");
            session.save(sheet, &folder.join(format!("heads-{slug}")), shows, report)?;
        }
    }
    for direction in [Direction::LanguageSelf, Direction::VisionSelf] {
        if number == 1 && layers(direction)? > 0 {
            let sheet = explained.heatmap(direction, None, None)?.draw()?;
            let shows = format!("{pair}: {}, last cross layer, mean of heads", direction.sentence());
            session.save(sheet, &folder.join(format!("heatmap-{}", direction.slug())), shows, report)?;
        }
    }
    Ok(())
}
