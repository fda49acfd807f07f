//! `perturbation`: curves and areas of the perturbation test.

use super::{Report, Session};
use crate::Result;
use crate::dataset::{Example, spread};
use crate::explain::perturbation;
use crate::pictures;
use lxmert_train::data::pairs::PairKind;
use lxmert_train::data::per_example;
use std::path::PathBuf;

/// `perturbation`.
#[derive(Debug, Clone, clap::Args)]
pub struct PerturbationArgs {
    /// How many true captions of test images to explain and perturb
    #[arg(long, default_value_t = 400, value_name = "N")]
    pub examples: usize,
    /// Write one line per caption to FILE: its logit, and the area for each test and method; a table if the name ends in .csv,
    /// otherwise JSON lines
    #[arg(long, value_name = "FILE")]
    pub per_example: Option<PathBuf>,
}

impl PerturbationArgs {
    /// Measures, draws, and writes the numbers beside the picture.
    ///
    /// # Errors
    /// Returns an error if there is nothing to perturb, a computation fails, or a file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        self.per_example.as_deref().map_or(Ok(()), per_example::check)?;
        let folder = session.folder()?;
        let (scorer, data) = session.open()?;
        let (pairs, _) = data.test_pairs()?;
        let matched: Vec<Example> = pairs.into_iter().filter(|example| example.kind == PairKind::Matched).collect();
        let examples: Vec<Example> = spread(&matched, self.examples).into_iter().cloned().collect();
        let bar = session.bar(examples.len(), "perturbing");
        let found =
            perturbation::measure(&data, &scorer, &examples, session.seed, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let mut report = Report::default();
        report.say(format!(
            "perturbation of {} true captions; score: share still called a match\n{found}",
            found.examples
        ));
        let sheet = pictures::perturbation::draw(&found, &data.places.name, session.figures.look());
        session.save(sheet, &folder.join("perturbation"), "", &mut report)?;
        report.write(folder.join("perturbation.csv"), &found.to_csv())?;
        report.write(folder.join("perturbation.json"), &format!("{:#}\n", found.to_json()))?;
        report.write_examples(self.per_example.as_deref(), &found.pairs)?;
        Ok(report)
    }
}
