//! `grounding`: the pointing game by type of phrase.

use super::{Report, Session};
use crate::dataset::spread;
use crate::explain::{entities, grounding};
use crate::{Error, Result};
use lxmert_extract::scenes::read_annotations;
use lxmert_train::data::per_example;
use std::collections::HashSet;
use std::path::PathBuf;

/// `grounding`.
#[derive(Debug, Clone, clap::Args)]
pub struct GroundingArgs {
    /// Flickr30k Entities: the folder that holds Sentences and Annotations [default: the true boxes of the scenes]
    #[arg(long, value_name = "DIR")]
    pub entities: Option<PathBuf>,
    /// At most this many captions, evenly spread [default: those of all test images]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub examples: Option<u32>,
    /// Write one line per phrase to FILE: each method's region and whether it is right; a table if the name ends in .csv,
    /// otherwise JSON lines
    #[arg(long, value_name = "FILE")]
    pub per_example: Option<PathBuf>,
}

impl GroundingArgs {
    /// Measures, and writes the table.
    ///
    /// # Errors
    /// Returns an error if no true boxes are known, a computation fails, or the file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        self.per_example.as_deref().map_or(Ok(()), per_example::check)?;
        let folder = session.folder()?;
        let (scorer, data) = session.open()?;
        let images = data.test_images()?;
        let mut report = Report::default();
        let cases = match (&self.entities, data.places.scenes()) {
            (Some(folder), _) => {
                let found = entities::read(folder, &images)?;
                report.say(format!(
                    "{} of {} test images are annotated; phrases left out: {} without a box, {} for nothing visible",
                    images.len() - found.missing,
                    images.len(),
                    found.without_box,
                    found.not_visual
                ));
                found.cases
            }
            (None, Some(folder)) => {
                let images: HashSet<&str> = images.iter().copied().collect();
                grounding::scene_cases(&read_annotations(folder)?, &images)
            }
            (None, None) => {
                let reason = "no true boxes: pass the folder of Flickr30k Entities as --entities";
                return Err(Error::Argument(reason.into()));
            }
        };
        let most = self.examples.map_or(cases.len(), |count| count as usize);
        let cases: Vec<grounding::Case> = spread(&cases, most).into_iter().cloned().collect();
        let bar = session.bar(cases.len(), "grounding");
        let found = grounding::measure(&data, &scorer, &cases, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        report.say(format!(
            "the region that a phrase's words point to, in {} captions: share of phrases for which it is right",
            cases.len()
        ));
        report.say(found.by_kind().trim_end());
        report.write(folder.join("grounding.csv"), &found.to_csv())?;
        report.write_examples(self.per_example.as_deref(), &found.phrases)?;
        Ok(report)
    }
}
