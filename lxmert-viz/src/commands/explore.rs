//! `explore`: the page that explains pairs in a browser ([`crate::explorer`]).

use super::predictions::judge;
use super::{Report, Session};
use crate::dataset::{DataSet, spread};
use crate::explain::scorer::Scorer;
use crate::explorer::document::{Document, Kind, Names, Pair, Photo};
use crate::explorer::page;
use crate::explorer::teaching::{self, Answered, Judged};
use crate::explorer::views::{Claim, Explorer};
use crate::figures::write_whole;
use crate::places::run_of;
use crate::{Error, Result};
use lxmert_core::features::Regions;
use lxmert_core::interrupt::check_interrupt;
use lxmert_core::workspace::Workspace;
use lxmert_train::data::image_examples::ImageExample as _;
use lxmert_train::data::pairs::PairKind;
use lxmert_train::data::paths::{Data, ExamplePaths};
use lxmert_train::data::questions::Question;
use lxmert_train::data::splits::Split;
use lxmert_train::job::RunSettings;
use lxmert_train::run_folder::RunFolder;
use std::path::PathBuf;

/// The content of the page.
#[derive(Debug, Clone, clap::Args)]
pub struct ExploreArgs {
    /// How many pairs to show, chosen to teach: confident and right, confident and wrong, hard, undecided
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub pairs: usize,
    /// Another checkpoint to show beside the first; may be repeated
    #[arg(long, value_name = "CHECKPOINT")]
    pub compare: Vec<PathBuf>,
    /// A checkpoint that answers questions [default: that of the run with a name that ends in -questions, if there is
    /// one]
    #[arg(long, value_name = "CHECKPOINT")]
    pub questions: Option<PathBuf>,
}

impl Default for ExploreArgs {
    fn default() -> Self {
        Self { pairs: 12, compare: Vec::new(), questions: None }
    }
}

/// Score at most this many pairs of a kind, and this many questions, to choose from.
const POOL: usize = 400;
const QUESTION_POOL: usize = 150;

impl ExploreArgs {
    /// Writes the page.
    ///
    /// # Errors
    /// Returns an error if a checkpoint or the data cannot be read, a computation fails, or the file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        let explorers = self.open(session)?;
        let mut report = Report::default();
        report.lines.extend(session.places.notice.clone());
        write(session, &explorers, self.pairs, None, &mut report)?;
        Ok(report)
    }

    /// The checkpoints: the run's, those to compare it with, and one that answers questions.
    ///
    /// # Errors
    /// Returns an error if one cannot be read, or needs other features than the first.
    pub(super) fn open(&self, session: &Session) -> Result<Vec<Explorer>> {
        let first = Explorer::open(&session.places.checkpoint, &session.device)?;
        let mut explorers = vec![first];
        for place in self.compare.iter().chain(&self.questions) {
            explorers.push(Explorer::open(place, &session.device)?);
        }
        if let Some(place) = beside(session).filter(|_| explorers.iter().all(|one| one.asker.is_none())) {
            let found = Explorer::open(&place, &session.device)?;
            // The default is optional: skip it if it needs other features.
            explorers.extend(Some(found).filter(|one| one.takes().0 == explorers[0].takes().0));
        }
        let wanted = explorers[0].takes().0;
        if let Some(other) = explorers.iter().find(|one| one.takes().0 != wanted) {
            return Err(Error::Argument(format!(
                "{} needs {} numbers per region, but {} needs {wanted}: they cannot share regions",
                other.name,
                other.takes().0,
                explorers[0].name
            )));
        }
        Ok(explorers)
    }
}

/// The best checkpoint of the run beside this one that was trained on questions.
fn beside(session: &Session) -> Option<PathBuf> {
    if !session.places.checkpoint.starts_with(&session.places.run) {
        return None;
    }
    let mut name = session.places.run.file_name()?.to_os_string();
    name.push("-questions");
    Some(session.places.run.with_file_name(name).join("best")).filter(|best| best.is_dir())
}

/// Writes the page for the session's data. `judged`: pairs that the first checkpoint has already scored.
pub(super) fn write(
    session: &Session,
    explorers: &[Explorer],
    count: usize,
    judged: Option<Vec<Judged>>,
    report: &mut Report,
) -> Result<()> {
    let path = session.file(session.places.run.clone(), "explore", "html")?;
    let (document, _) = document(session, explorers, count, judged)?;
    let page = page::html(&document)?;
    write_whole(&path, page.as_bytes())?;
    let (pairs, size) = (document.pairs.len(), indicatif::HumanBytes(page.len() as u64));
    report.lines.insert(0, format!("{}  open it in a browser: {pairs} pairs by every method, {size}", path.display()));
    Ok(())
}

/// The most instructive pairs of the session's data, explained by every checkpoint that can, and the regions of the
/// photos.
pub(super) fn document(
    session: &Session,
    explorers: &[Explorer],
    count: usize,
    judged: Option<Vec<Judged>>,
) -> Result<(Document, Vec<Regions>)> {
    let regions = explorers.iter().map(|one| one.takes().1).max().unwrap_or(0);
    let data = session.data(regions)?;
    let mut document = Document::new(&data.places.name, data.places.notice.clone(), session.figures.colours);
    document.models = explorers.iter().map(Explorer::text).collect();
    let scorer = explorers.iter().find_map(|one| one.scorer.as_ref()).filter(|_| data.is_captioned());
    let answered = answered(session, &data, explorers, if scorer.is_some() { count / 3 } else { count })?;
    if let Some(scorer) = scorer {
        let judged = judged.map_or_else(|| pool(session, &data, scorer), Ok)?;
        for (example, _) in teaching::pairs(&judged, count.saturating_sub(answered.len())) {
            let (kind, is_match) = match example.kind {
                PairKind::Matched => (Kind::Caption, true),
                PairKind::Random => (Kind::Other, false),
                PairKind::Hard => (Kind::Hard, false),
            };
            let claim = Claim::Match(&example.text);
            let mut pair = explained(&mut document, &data, explorers, &example.image, (&claim, kind))?;
            pair.truth = Some(is_match);
            pair.views.iter_mut().for_each(|view| view.right = Some(example.agrees(view.probability)));
            document.pairs.push(pair);
        }
    }
    for one in &answered {
        let claim = Claim::Answer(&one.question.sentence, None);
        let mut pair = explained(&mut document, &data, explorers, &one.image, (&claim, Kind::Question))?;
        pair.answers = one.question.scores.clone().unwrap_or_default();
        for view in &mut pair.views {
            let known = one.question.scores.is_some();
            view.right = view.answer.as_ref().filter(|_| known).map(|answer| one.question.score(answer) > 0.0);
        }
        document.pairs.push(pair);
    }
    if document.pairs.is_empty() {
        return Err(Error::Argument("the checkpoint can explain no test pair and no question".into()));
    }
    let regions = document.photos.iter().map(|photo| data.regions(&photo.name)).collect::<Result<Vec<_>>>()?;
    Ok((document, regions))
}

/// Some of the test pairs and the hard ones, with `scorer`'s probabilities.
fn pool(session: &Session, data: &DataSet, scorer: &Scorer) -> Result<Vec<Judged>> {
    let (fixed, hard) = data.test_pairs()?;
    let mut all = Vec::new();
    for (name, pairs) in [("random", fixed), ("hard", hard)] {
        all.extend(judge(session, data, scorer, (name, spread(&pairs, POOL)))?);
    }
    Ok(all)
}

/// The most instructive questions, answered by the first checkpoint that can.
fn answered(session: &Session, data: &DataSet, explorers: &[Explorer], count: usize) -> Result<Vec<Answered>> {
    let Some(asker) = explorers.iter().find_map(|one| one.asker.as_ref()).filter(|_| count > 0) else {
        return Ok(Vec::new());
    };
    let Some(paths) = question_files(session, explorers)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for file in if paths.test.is_empty() { &paths.valid } else { &paths.test } {
        let (names, questions) = Question::read(file, Split::Test)?;
        found.extend(questions.into_iter().map(|question| (names[question.image].clone(), question)));
    }
    found.retain(|(image, _)| data.holds(image));
    let some = spread(&found, QUESTION_POOL);
    let bar = session.bar(some.len(), "answering test questions");
    let mut answered = Vec::with_capacity(some.len());
    for (image, question) in some {
        check_interrupt()?;
        let best = asker.answers(&data.regions(image)?, &question.sentence)?;
        answered.push(Answered { image: image.clone(), question: question.clone(), best });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let chosen: Vec<usize> = teaching::questions(&answered, count)
        .iter()
        .filter_map(|one| answered.iter().position(|a| std::ptr::eq(a, *one)))
        .collect();
    let mut answered: Vec<Option<Answered>> = answered.into_iter().map(Some).collect();
    Ok(chosen.into_iter().filter_map(|i| answered[i].take()).collect())
}

/// The files of questions: from the run that was trained on them, or the scenes'.
fn question_files(session: &Session, explorers: &[Explorer]) -> Result<Option<ExamplePaths>> {
    for explorer in explorers.iter().filter(|one| one.asker.is_some()) {
        let settings =
            run_of(&explorer.place).map(|run| RunSettings::read(&RunFolder::new(&run))).transpose()?.flatten();
        match settings.map(|settings| (settings.recipe.task, settings.data)) {
            Some((task, Data::Examples(paths))) if task == "questions" => return Ok(Some(paths)),
            _ => {}
        }
    }
    if session.places.scenes().is_none() {
        return Ok(None);
    }
    Ok(ExamplePaths::scenes(&Workspace::locate()?, "questions").ok())
}

/// The pair of an image and a claim, with each checkpoint's view of it; its photo is added to the document once.
fn explained(
    document: &mut Document,
    data: &DataSet,
    explorers: &[Explorer],
    image: &str,
    (claim, kind): (&Claim, Kind),
) -> Result<Pair> {
    check_interrupt()?;
    let regions = data.regions(image)?;
    let photo = match document.photos.iter().position(|photo| photo.name == image) {
        Some(known) => known,
        None => {
            let info = data.store.info();
            let names = Names { labels: &info.label_names, attributes: &info.attribute_names };
            document.photos.push(Photo::new(image, &data.photo(image)?, names.regions(&regions))?);
            document.photos.len() - 1
        }
    };
    let able = explorers.iter().enumerate().filter(|(_, one)| one.can(claim));
    let views = able.map(|(model, one)| one.view(model, &regions, claim)).collect::<Result<Vec<_>>>()?;
    Ok(Pair { photo, text: claim.text().into(), kind, truth: None, answers: Vec::new(), views })
}
