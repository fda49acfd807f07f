//! `relevancy`: the methods side by side, for a match, for an answer, or for a verdict about two images.

use super::{Report, Seen, Session, SubjectArgs, find_regions, percent, stem, verdict_line};
use crate::dataset::slug;
use crate::explain::asker::Asker;
use crate::explain::judge::Judge;
use crate::explain::methods::Method;
use crate::explain::scorer::PairInput;
use crate::pictures::explained::Explained;
use crate::{Error, Result};
use lxmert_core::model::Capture;
use lxmert_extract::finder::FinderArgs;
use std::path::{Path, PathBuf};

/// `relevancy`.
#[derive(Debug, Clone, clap::Args)]
pub struct RelevancyArgs {
    /// Image and sentence.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// A photo from a file instead of an image of the feature store (--image takes one too); a detector finds its regions
    #[arg(long, value_name = "PHOTO", conflicts_with = "image")]
    pub photo: Option<PathBuf>,
    /// Explain the answer to this question, with a checkpoint trained on questions [default: runs/scenes-questions]
    #[arg(long, value_name = "SENTENCE", conflicts_with = "text")]
    pub question: Option<String>,
    /// The answer to explain [default: the top one]
    #[arg(long, value_name = "NAME", requires = "question")]
    pub answer: Option<String>,
    /// Explain whether this statement about two images, --image on the left and --second-image on the right, is true, with a
    /// checkpoint trained on statements [default: runs/scenes-statements]; a picture for each image
    #[arg(long, value_name = "SENTENCE", conflicts_with_all = ["text", "question", "photo"], requires_all = ["image", "second_image"])]
    pub statement: Option<String>,
    /// The statement's right image: a name in the feature store, or the file of a photo
    #[arg(long, value_name = "NAME", requires = "statement")]
    pub second_image: Option<String>,
    /// Only this method [default: attention, rollout, Grad-CAM and relevancy side by side]
    #[arg(long, value_enum, value_name = "METHOD")]
    pub method: Option<Method>,
    /// How the photo's regions are found.
    #[command(flatten)]
    pub finder: FinderArgs,
}

impl RelevancyArgs {
    /// Draws the methods' results.
    ///
    /// # Errors
    /// Returns an error if the checkpoint cannot be read or lacks the answer, there is no such image, or the file
    /// cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        match (&self.question, &self.statement) {
            (Some(question), _) => self.answer(session, question),
            (None, Some(statement)) => self.verdict(session, statement),
            (None, None) => self.matching(session),
        }
    }

    /// The photo's file: `--photo`, or an `--image` that is the path of a file.
    fn photo(&self) -> Option<&Path> {
        let image = self.subject.image.as_deref().map(Path::new).filter(|image| image.is_file());
        self.photo.as_deref().or(image)
    }

    fn matching(&self, session: &Session) -> Result<Report> {
        let scorer = session.scorer()?;
        let takes = (scorer.config().visual_feat_dim, scorer.preprocessing());
        let (seen, text) = match self.photo() {
            Some(photo) => {
                let text = self.subject.text.clone().unwrap_or_default();
                if text.trim().is_empty() {
                    return Err(Error::Argument(
                        "a photo needs a sentence: give one with --text, or a --question".into(),
                    ));
                }
                (find_regions(&self.finder, session, photo, takes)?, text)
            }
            None => {
                let data = session.data(scorer.regions())?;
                let image = self.subject.image(&data)?;
                let text = self.subject.text(&data, &image)?;
                (Seen::stored(&data, image)?, text)
            }
        };
        let input = PairInput { regions: &seen.regions, text: &text };
        let scored = scorer.score(&[input], Capture::Probes)?;
        let scored = scored.first().ok_or_else(|| Error::Shape("the pair has no score".into()))?;
        let mut report = Report::default();
        report.say(format!("{}, “{text}”: {}", seen.name, verdict_line(scored.probability())));
        let explained = Explained::new(&seen.name, &text, scored, &seen.regions, &seen.label_names);
        self.draw(session, explained, &seen, "", report)
    }

    fn answer(&self, session: &Session, question: &str) -> Result<Report> {
        let checkpoint = trained(session, "a checkpoint that answers questions", "questions")?;
        let asker = Asker::open(checkpoint, &session.device)?;
        let seen = match self.photo() {
            Some(photo) => find_regions(&self.finder, session, photo, asker.takes())?,
            None => {
                let data = session.data(asker.takes().1.regions)?;
                let image = self.subject.image(&data)?;
                Seen::stored(&data, image)?
            }
        };
        let answered = asker.explain(&seen.regions, question, self.answer.as_deref())?;
        let mut report = Report::default();
        report.say(format!("{}, “{question}”:", seen.name));
        for answer in &answered.best {
            report.say(format!("  {:.3}  {}", answer.probability, answer.answer));
        }
        let explained = Explained::new(&seen.name, question, &answered.scored, &answered.regions, &seen.label_names);
        // Include the question in the file name.
        let question = slug(&question.to_lowercase().replace(['.', '/', '\\'], " "));
        let of = format!("-{question}-{}", slug(&answered.answer));
        self.draw(session, explained.of_answer(&answered.answer), &seen, &of, report)
    }

    fn verdict(&self, session: &Session, statement: &str) -> Result<Report> {
        let checkpoint = trained(session, "a checkpoint that judges statements", "statements")?;
        let judge = Judge::open(checkpoint, &session.device)?;
        let mut data = None;
        let mut see = |image: Option<&String>| -> Result<Seen> {
            let image = image.ok_or_else(|| Error::Argument("a statement needs --image and --second-image".into()))?;
            if Path::new(image).is_file() {
                return find_regions(&self.finder, session, Path::new(image), judge.takes());
            }
            let data = match &mut data {
                Some(data) => data,
                none => none.insert(session.data(judge.takes().1.regions)?),
            };
            Seen::stored(data, image.clone())
        };
        let seen = [see(self.subject.image.as_ref())?, see(self.second_image.as_ref())?];
        let judged = judge.explain([&seen[0].regions, &seen[1].regions], statement)?;
        let probability = judged[0].scored.probability();
        let verdict = if probability >= 0.5 { "true" } else { "false" };
        let mut report = Report::default();
        let names = format!("{} and {}", seen[0].name, seen[1].name);
        report.say(format!("{names}, “{statement}”: P(true) = {} ({verdict})", percent(probability)));
        for ((seen, judged), side) in seen.iter().zip(&judged).zip(["left", "right"]) {
            let name = format!("{}, the {side} image", seen.name);
            let explained = Explained::new(&name, statement, &judged.scored, &judged.regions, &seen.label_names);
            report = self.draw(session, explained.of_answer("true"), seen, &format!("-{side}"), report)?;
        }
        Ok(report)
    }

    fn draw(
        &self,
        session: &Session,
        explained: Explained,
        seen: &Seen,
        of: &str,
        mut report: Report,
    ) -> Result<Report> {
        let methods = self.method.map_or_else(|| Method::COMPARED.to_vec(), |method| vec![method]);
        let which = self.method.map_or(String::new(), |method| format!("-{}", method.slug()));
        let stem = stem("relevancy", &seen.name, &format!("{of}{which}"));
        let path = session.figures.file(session.places.plots(), &stem)?;
        let sheet = explained.with_look(session.figures.look()).methods(seen.photo.clone(), &methods)?.draw()?;
        match self.photo() {
            Some(_) => session.save_photo(&sheet, &path, "", &mut report)?,
            None => session.save(sheet, &path, "", &mut report)?,
        }
        Ok(report)
    }
}

/// The session's checkpoint; if it is the default and is not there, the error says how to train it for `task`.
fn trained<'a>(session: &'a Session, what: &'static str, task: &str) -> Result<&'a Path> {
    let checkpoint = &session.places.checkpoint;
    if checkpoint.starts_with(&session.places.run) && !checkpoint.exists() {
        let advice =
            format!("train one with `cargo run -p lxmert-train -- --task {task}`, or pass one as --checkpoint");
        return Err(Error::Missing { what, path: checkpoint.clone(), advice });
    }
    Ok(checkpoint)
}
