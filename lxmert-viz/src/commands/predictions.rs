//! `grid`: test pairs with the model's verdicts, and the most confident mistakes.

use super::{Report, Session};
use crate::Result;
use crate::dataset::{DataSet, Example, inputs, spread};
use crate::explain::scorer::Scorer;
use crate::explorer::teaching::Judged;
use crate::pictures::grid::{Card, PredictionPicture};
use lxmert_core::interrupt::check_interrupt;
use lxmert_core::model::Capture;
use lxmert_train::data::pairs::PairKind;
use std::collections::HashSet;
use std::path::Path;

/// Pairs to score at once.
const BATCH: usize = 64;
/// Maximum number of test pairs of a set to score.
const MOST_PAIRS: usize = 4000;
/// Cards per picture.
const CARDS: usize = 12;

fn is_right((example, probability): &Judged) -> bool {
    example.agrees(*probability)
}

/// Draws test pairs.
///
/// # Errors
/// Returns an error if the checkpoint or the data cannot be read, or a file cannot be written.
pub fn run(session: &Session) -> Result<Report> {
    let folder = session.folder()?;
    let (scorer, data) = session.open()?;
    let mut report = Report::default();
    draw(session, &data, &scorer, &folder, &mut report)?;
    Ok(report)
}

/// Scores the fixed test pairs and the hard ones, reports the accuracies, and draws some of each and the most confident
/// mistakes. Gives what was scored.
pub(super) fn draw(
    session: &Session,
    data: &DataSet,
    scorer: &Scorer,
    folder: &Path,
    report: &mut Report,
) -> Result<Vec<Judged>> {
    let (fixed, hard) = data.test_pairs()?;
    let mut all: Vec<Judged> = Vec::new();
    for (name, pairs) in [("random", fixed), ("hard", hard)] {
        if pairs.is_empty() {
            continue;
        }
        let judged = judge(session, data, scorer, (name, spread(&pairs, MOST_PAIRS)))?;
        let right = judged.iter().filter(|pair| is_right(pair)).count();
        let share = right as f64 / judged.len() as f64; // `pairs` is not empty
        let figures = format!("accuracy {share:.3} ({right} of {})", judged.len());
        report.say(format!("{name} test pairs: {figures}"));
        let title = match name {
            "hard" => format!("Hard pairs of {}: one word or relation changed", data.places.name),
            _ => format!("Test pairs of {}", data.places.name),
        };
        let subtitle = format!("held-out pairs, evenly spread through the {name} test set: {figures}");
        let sheet = picture(session, data, (title, subtitle), &balanced(&judged, CARDS))?.draw()?;
        let shows = format!("{name} test pairs with the model's verdict; {figures}");
        session.save(sheet, &folder.join(format!("predictions-{name}")), shows, report)?;
        all.extend(judged);
    }
    let wrong: Vec<&Judged> = all.iter().filter(|pair| !is_right(pair)).collect();
    let shown = surest(wrong, CARDS);
    if !shown.is_empty() {
        let title = format!("Where the model is most confidently wrong on {}", data.places.name);
        let subtitle =
            "among all test pairs, random and hard: the most confident mistake of each image, most confident first"
                .into();
        let sheet = picture(session, data, (title, subtitle), &shown)?.draw()?;
        let shows = "the most confident mistakes of all test pairs, one per image";
        session.save(sheet, &folder.join("predictions-mistakes"), shows, report)?;
    }
    Ok(all)
}

/// The most confident of the mistakes, one per image.
fn surest(wrong: Vec<&Judged>, count: usize) -> Vec<&Judged> {
    let mut order = wrong;
    order.sort_by(|a, b| (b.1 - 0.5).abs().total_cmp(&(a.1 - 0.5).abs()));
    let mut seen = HashSet::new();
    order.retain(|(example, _)| seen.insert(example.image.as_str()));
    order.truncate(count);
    order
}

/// `count` of `all`, alternating between matches and mismatches.
fn balanced(all: &[Judged], count: usize) -> Vec<&Judged> {
    let (yes, no): (Vec<_>, Vec<_>) = all.iter().partition(|(e, _)| e.kind == PairKind::Matched);
    // Start at another place in the list, so that the two halves do not show the same images.
    let shift = no.len() / (2 * count.max(1));
    let no: Vec<_> = no.into_iter().skip(shift).collect();
    let (yes, no) = (spread(&yes, count.div_ceil(2)), spread(&no, count / 2));
    let longest = yes.len().max(no.len());
    (0..longest).flat_map(|i| [yes.get(i), no.get(i)]).flatten().map(|pair| **pair).collect()
}

fn picture(
    session: &Session,
    data: &DataSet,
    (title, subtitle): (String, String),
    shown: &[&Judged],
) -> Result<PredictionPicture> {
    let card = |(example, probability): &&Judged| {
        Ok(Card {
            photo: data.photo(&example.image)?,
            caption: example.text.clone(),
            probability: *probability,
            is_match: example.kind == PairKind::Matched,
        })
    };
    let cards = shown.iter().map(card).collect::<Result<Vec<_>>>()?;
    Ok(PredictionPicture { title, subtitle, cards, across: 4, look: session.figures.look() })
}

/// Scores pairs.
pub(super) fn judge(
    session: &Session,
    data: &DataSet,
    scorer: &Scorer,
    (name, pairs): (&str, Vec<&Example>),
) -> Result<Vec<Judged>> {
    let bar = session.bar(pairs.len(), &format!("scoring {name} test pairs"));
    let pairs: Vec<Example> = pairs.into_iter().cloned().collect();
    let mut probabilities = Vec::with_capacity(pairs.len());
    for batch in pairs.chunks(BATCH) {
        check_interrupt()?;
        let regions = batch.iter().map(|e| data.regions(&e.image)).collect::<Result<Vec<_>>>()?;
        let scored = scorer.score(&inputs(batch, &regions), Capture::None)?;
        probabilities.extend(scored.iter().map(|s| s.probability()));
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(pairs.into_iter().zip(probabilities).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(image: &str, text: &str, kind: PairKind, probability: f32) -> Judged {
        (Example { image: image.into(), text: text.into(), kind }, probability)
    }

    #[test]
    fn each_image_shows_only_its_most_confident_mistake() {
        let wrong = [
            judged("a", "one", PairKind::Matched, 0.02),
            judged("b", "two", PairKind::Hard, 0.6),
            judged("a", "three", PairKind::Hard, 0.999),
            judged("c", "four", PairKind::Matched, 0.1),
        ];
        let texts: Vec<&str> =
            surest(wrong.iter().collect(), 2).iter().map(|(example, _)| example.text.as_str()).collect();
        assert_eq!(texts, ["three", "four"]);
        assert_eq!(surest(wrong.iter().collect(), 12).len(), 3);
        assert!(wrong.iter().all(|pair| !is_right(pair)));
    }
}
