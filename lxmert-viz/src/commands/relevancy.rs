//! `relevancy`: the methods side by side, for a match or for an answer.

use super::{DetectorArgs, Report, Seen, Session, SubjectArgs, stem, verdict_line};
use crate::dataset::slug;
use crate::explain::asker::Asker;
use crate::explain::methods::Method;
use crate::explain::scorer::PairInput;
use crate::pictures::explained::Explained;
use crate::{Error, Result};
use lxmert_core::model::Capture;
use std::path::PathBuf;

/// `relevancy`.
#[derive(Debug, Clone, clap::Args)]
pub struct RelevancyArgs {
    /// Image and sentence.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// A photo from a file instead of an image of the feature store; a detector finds its regions
    #[arg(long, value_name = "PHOTO", conflicts_with = "image")]
    pub photo: Option<PathBuf>,
    /// Explain the answer to this question, with a checkpoint trained on questions [default: runs/scenes-questions]
    #[arg(long, value_name = "SENTENCE", conflicts_with = "text")]
    pub question: Option<String>,
    /// The answer to explain [default: the top one]
    #[arg(long, value_name = "NAME", requires = "question")]
    pub answer: Option<String>,
    /// Only this method [default: attention, rollout, Grad-CAM and relevancy side by side]
    #[arg(long, value_enum, value_name = "METHOD")]
    pub method: Option<Method>,
    /// The detector of --photo.
    #[command(flatten)]
    pub detector: DetectorArgs,
}

impl RelevancyArgs {
    /// Draws the methods' results.
    ///
    /// # Errors
    /// Returns an error if the checkpoint cannot be read or lacks the answer, there is no such image, or the file
    /// cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        match &self.question {
            Some(question) => self.answer(session, question),
            None => self.matching(session),
        }
    }

    fn matching(&self, session: &Session) -> Result<Report> {
        let scorer = session.scorer()?;
        let takes = (scorer.config().visual_feat_dim, scorer.regions());
        let (seen, text) = match &self.photo {
            Some(photo) => {
                let text = self.subject.text.clone().unwrap_or_default();
                if text.trim().is_empty() {
                    return Err(Error::Argument("--photo needs a sentence: give one with --text".into()));
                }
                (self.detector.find(session, photo, takes)?, text)
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
        let checkpoint = &session.places.checkpoint;
        if checkpoint.starts_with(&session.places.run) && !checkpoint.exists() {
            let advice = "train one with `cargo run -p lxmert-train -- --task questions`, or pass one as --checkpoint";
            let (what, path) = ("a checkpoint that answers questions", checkpoint.clone());
            return Err(Error::Missing { what, path, advice: advice.into() });
        }
        let asker = Asker::open(checkpoint, &session.device)?;
        let seen = match &self.photo {
            Some(photo) => self.detector.find(session, photo, asker.takes())?,
            None => {
                let data = session.data(asker.takes().1)?;
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
        match self.photo {
            Some(_) => session.save_photo(&sheet, &path, "", &mut report)?,
            None => session.save(sheet, &path, "", &mut report)?,
        }
        Ok(report)
    }
}
