//! `export`: attention maps, relevances, boxes, words and scores as arrays ([`crate::export`]).

use super::{Report, Session, SubjectArgs};
use crate::dataset::DataSet;
use crate::explain::scorer::{PairInput, Scorer};
use crate::export::{ExportInfo, ExportPair, write};
use crate::{Error, Result};
use lxmert_core::interrupt::check_interrupt;
use lxmert_core::model::Capture;
use lxmert_train::data::splits::Split;
use std::collections::BTreeMap;
use std::path::Path;

/// Pairs to score at once.
const BATCH: usize = 32;

/// A part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The images that the model was trained on
    Train,
    /// The images for choosing the best epoch
    Val,
    /// The held-out images
    Test,
    /// Every image
    All,
}

/// `export`.
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArgs {
    /// One image and one sentence.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Export every caption of this part of the data instead of one pair
    #[arg(long, value_enum, value_name = "PART", conflicts_with_all = ["image", "text"])]
    pub split: Option<Part>,
    /// With --split: also each caption's false variant, if there is one
    #[arg(long, requires = "split")]
    pub false_captions: bool,
    /// Omit the attention maps, which take by far the most space
    #[arg(long)]
    pub no_maps: bool,
}

impl ExportArgs {
    /// Scores the pairs and writes the file.
    ///
    /// # Errors
    /// Returns an error if there is no such image, a computation fails, or the file cannot be written.
    pub fn run(&self, session: &Session) -> Result<Report> {
        let path = session.file(session.places.plots(), "export", "safetensors")?;
        let (scorer, data) = session.open()?;
        let pairs = self.pairs(&scorer, &data)?;
        let places = &data.places;
        let metadata = [
            ("format", Some("lxmert-attention".to_string())),
            ("version", Some("1".into())),
            ("checkpoint", Some(places.checkpoint.display().to_string())),
            ("features", Some(places.features.to_string())),
            ("captions", places.captions.as_ref().map(|path| path.display().to_string())),
            ("notice", places.notice.clone()),
        ];
        let metadata: BTreeMap<String, String> =
            metadata.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect();
        let info = data.store.info();
        let regions = info.regions.min(scorer.regions());
        let info = ExportInfo { label_names: info.label_names.clone(), metadata, maps: !self.no_maps };
        let bar = session.bar(pairs.len(), "exporting");
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let bytes = write(&path, &pairs, regions, &info, |from| {
            check_interrupt()?;
            let chunk = &pairs[from..pairs.len().min(from + BATCH)];
            let regions = chunk.iter().map(|pair| data.regions(&pair.image)).collect::<Result<Vec<_>>>()?;
            let inputs: Vec<PairInput> =
                chunk.iter().zip(&regions).map(|(pair, regions)| PairInput { regions, text: &pair.text }).collect();
            let scored = scorer.score(&inputs, Capture::Probes)?;
            bar.set_position((from + chunk.len()) as u64);
            Ok(scored.into_iter().zip(regions).collect())
        })?;
        bar.finish_and_clear();
        let mut report = Report::default();
        report.lines.extend(session.places.notice.clone());
        let words = pairs.iter().map(|pair| pair.tokens.len()).max().unwrap_or(0);
        report.say(format!(
            "{} pairs, up to {words} word pieces and {regions} regions each: {}",
            pairs.len(),
            indicatif::HumanBytes(bytes)
        ));
        report.add(path);
        Ok(report)
    }

    fn pairs(&self, scorer: &Scorer, data: &DataSet) -> Result<Vec<ExportPair>> {
        let pair = |image: &str, text: &str, is_match: Option<bool>| -> Result<ExportPair> {
            let tokens = scorer.encode(text)?.tokens;
            Ok(ExportPair { image: image.into(), text: text.into(), tokens, is_match })
        };
        let Some(part) = self.split else {
            let image = self.subject.image(data)?;
            let text = self.subject.text(data, &image)?;
            let is_caption = data.captions_of(&image).contains(&text.as_str());
            return Ok(vec![pair(&image, &text, is_caption.then_some(true))?]);
        };
        let splits = match part {
            Part::Train => vec![Split::Train],
            Part::Val => vec![Split::Val],
            Part::Test => vec![Split::Test],
            Part::All => Split::ALL.to_vec(),
        };
        let mut pairs = Vec::new();
        for split in splits {
            for (image, text, sibling) in data.captions(split)? {
                pairs.push(pair(image, text, Some(true))?);
                if let Some(sibling) = sibling.filter(|_| self.false_captions) {
                    pairs.push(pair(image, sibling, Some(false))?);
                }
            }
        }
        Ok(pairs)
    }
}
