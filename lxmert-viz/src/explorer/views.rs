//! A checkpoint that matches sentences, answers questions or both, and its view of a photo and a text.

use super::document::{ModelText, View};
use super::pack::pack;
use crate::explain::asker::Asker;
use crate::explain::perturbation::{self, Side};
use crate::explain::scorer::{PairInput, Scored, Scorer, keep_regions};
use crate::explain::words::{spoken_pieces, words};
use crate::{Error, Result};
use candle_core::Device;
use lxmert_core::answering::Answer;
use lxmert_core::features::Regions;
use lxmert_core::model::Capture;
use lxmert_core::pretrained::Pretrained;
use serde::Serialize;
use std::path::{Component, Path, PathBuf};

/// An opened checkpoint.
pub struct Explorer {
    /// Where it is, as given.
    pub place: PathBuf,
    /// Where it is, shortened.
    pub name: String,
    /// Scores how well a sentence fits a photo; absent if the checkpoint has no such head.
    pub scorer: Option<Scorer>,
    /// Answers questions; absent if the checkpoint has no such head.
    pub asker: Option<Asker>,
}

/// The claim that a checkpoint scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim<'a> {
    /// The sentence fits the photo.
    Match(&'a str),
    /// The answer to a question: the best one, or a given one.
    Answer(&'a str, Option<&'a str>),
}

impl<'a> Claim<'a> {
    /// The sentence or question.
    pub fn text(&self) -> &'a str {
        match self {
            Self::Match(text) | Self::Answer(text, _) => text,
        }
    }
}

impl Explorer {
    /// Opens a checkpoint with a matching head, an answer head or both.
    ///
    /// # Errors
    /// [`Error::Core`] if there is none, a file is damaged, or it has neither head.
    pub fn open(place: &Path, device: &Device) -> Result<Self> {
        let pretrained = Pretrained::open(place)?;
        let scorer = Scorer::new(&pretrained, device);
        let asker = Asker::new(pretrained, device).ok();
        let scorer = match scorer {
            Err(error) if asker.is_none() => return Err(error),
            scorer => scorer.ok(),
        };
        Ok(Self { place: place.to_path_buf(), name: short_name(place), scorer, asker })
    }

    /// Its description for the page.
    pub fn text(&self) -> ModelText {
        ModelText { name: self.name.clone(), matches: self.scorer.is_some(), answers: self.asker.is_some() }
    }

    /// The length of a region's feature, and the number of regions that the model was trained on.
    pub fn takes(&self) -> (usize, usize) {
        let scorer = self.scorer.as_ref().map(|scorer| (scorer.config().visual_feat_dim, scorer.regions()));
        scorer.or(self.asker.as_ref().map(Asker::takes)).unwrap_or_default()
    }

    /// Whether it has the head that `claim` needs.
    pub fn can(&self, claim: &Claim) -> bool {
        match claim {
            Claim::Match(_) => self.scorer.is_some(),
            Claim::Answer(..) => self.asker.is_some(),
        }
    }

    /// The checkpoint's view of `regions` and a text. `model`: its index on the page.
    ///
    /// # Errors
    /// [`Error::Argument`] if it has no such head, the text is empty, or the regions do not fit; [`Error::Candle`].
    pub fn view(&self, model: usize, regions: &Regions, claim: &Claim) -> Result<View> {
        if claim.text().trim().is_empty() {
            return Err(Error::Argument("the text is empty".into()));
        }
        match (claim, &self.scorer, &self.asker) {
            (Claim::Match(text), Some(scorer), _) => {
                let kept: Vec<usize> = (0..regions.num_regions().min(scorer.regions())).collect();
                let regions = keep_regions(regions, &kept);
                let scored = scorer.score(&[PairInput { regions: &regions, text }], Capture::Probes)?;
                let scored = scored.first().ok_or_else(|| Error::Shape("the pair has no score".into()))?;
                view(model, text, scored, None, Vec::new())
            }
            (Claim::Answer(question, answer), _, Some(asker)) => {
                let answered = asker.explain(regions, question, *answer)?;
                view(model, question, &answered.scored, Some(answered.answer), answered.best)
            }
            (Claim::Match(_), None, _) => Err(self.lacks("cannot score whole sentences; ask a question")),
            (Claim::Answer(..), _, None) => Err(self.lacks("cannot answer questions; write a sentence")),
        }
    }

    /// The logit and the probability after removing word pieces and regions as in the perturbation test: dropped from
    /// the sequence. `[CLS]` and `[SEP]` stay.
    ///
    /// # Errors
    /// See [`Explorer::view`].
    pub fn score(&self, regions: &Regions, claim: &Claim, hidden: Hidden) -> Result<Score> {
        let kept: Vec<usize> =
            (0..regions.num_regions().min(self.takes().1)).filter(|i| !hidden.regions.contains(i)).collect();
        let regions = keep_regions(regions, &kept);
        let left = |ids: &[u32]| -> Vec<u32> {
            let stays = |i: usize| i == 0 || i + 1 == ids.len() || !hidden.words.contains(&i);
            ids.iter().enumerate().filter(|(i, _)| stays(*i)).map(|(_, id)| *id).collect()
        };
        match (claim, &self.scorer, &self.asker) {
            (Claim::Match(text), Some(scorer), _) => {
                let ids = left(&scorer.encode(text)?.ids);
                let logit = first(scorer.logits(&[(&regions, &ids)])?)?;
                Ok(Score { logit, probability: sigmoid(logit), best: Vec::new() })
            }
            (Claim::Answer(question, answer), _, Some(asker)) => {
                let ids = left(&asker.encode(question)?.ids);
                let logits = first(asker.logits(&[(&regions, &ids)])?)?;
                let best = asker.best(&logits);
                let name = answer.or(best.first().map(|best| best.answer.as_str())).unwrap_or_default();
                let logit = logits[index(asker, name)?];
                Ok(Score { logit, probability: sigmoid(logit), best })
            }
            _ => Err(self.lacks("has no head for that")),
        }
    }

    /// For each line of the perturbation test, the fractions removed and the remaining logits.
    ///
    /// # Errors
    /// See [`Explorer::view`].
    pub fn perturb(&self, regions: &Regions, claim: &Claim) -> Result<Vec<(Vec<f64>, Vec<f32>)>> {
        let (words, regions, logits) = match (claim, &self.scorer, &self.asker) {
            (Claim::Match(text), Some(scorer), _) => {
                let kept: Vec<usize> = (0..regions.num_regions().min(scorer.regions())).collect();
                let regions = keep_regions(regions, &kept);
                let scored = first(scorer.score(&[PairInput { regions: &regions, text }], Capture::Probes)?)?;
                let pair = (&regions, scored.encoding.ids.as_slice());
                let found = removals(&scored, pair, |pairs| scorer.logits(pairs))?;
                (scored.encoding.ids.len(), regions.num_regions(), found)
            }
            (Claim::Answer(question, answer), _, Some(asker)) => {
                let answered = asker.explain(regions, question, *answer)?;
                let place = index(asker, &answered.answer)?;
                let (scored, regions) = (&answered.scored, &answered.regions);
                let of_answer = |pairs: &[(&Regions, &[u32])]| -> Result<Vec<f32>> {
                    Ok(asker.logits(pairs)?.iter().map(|logits| logits[place]).collect())
                };
                let found = removals(scored, (regions, &scored.encoding.ids), of_answer)?;
                (scored.encoding.ids.len(), regions.num_regions(), found)
            }
            _ => return Err(self.lacks("has no head for that")),
        };
        let steps = |side: Side| match side {
            Side::Regions => perturbation::steps(regions),
            Side::Words => perturbation::steps(words.saturating_sub(2)),
        };
        Ok(perturbation::lines()
            .into_iter()
            .zip(logits)
            .map(|(((side, _), _), logits)| (steps(side), logits))
            .collect())
    }

    fn lacks(&self, what: &str) -> Error {
        Error::Argument(format!("{} {what}", self.name))
    }
}

/// What to remove: positions of word pieces and of regions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hidden<'a> {
    /// Word pieces.
    pub words: &'a [usize],
    /// Regions.
    pub regions: &'a [usize],
}

/// A score without maps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// The logit.
    pub logit: f32,
    /// Its sigmoid.
    pub probability: f32,
    /// The best answers to a question.
    pub best: Vec<Answer>,
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

fn first<T>(found: Vec<T>) -> Result<T> {
    found.into_iter().next().ok_or_else(|| Error::Shape("the pair has no score".into()))
}

fn index(asker: &Asker, answer: &str) -> Result<usize> {
    asker.answer_index(answer).ok_or_else(|| Error::Argument(format!("the model has no answer '{answer}'")))
}

/// [`perturbation::removals`] for one pair, with its own steps.
fn removals(
    scored: &Scored,
    (regions, ids): (&Regions, &[u32]),
    score: impl Fn(&[(&Regions, &[u32])]) -> Result<Vec<f32>>,
) -> Result<Vec<Vec<f32>>> {
    let steps = [perturbation::steps(regions.num_regions()), perturbation::steps(ids.len().saturating_sub(2))];
    let ties = perturbation::random(ids.len(), regions.num_regions(), 0, 0);
    perturbation::removals(scored.maps()?, (regions, ids), &ties, [&steps[0], &steps[1]], score)
}

fn view(model: usize, text: &str, scored: &Scored, answer: Option<String>, best: Vec<Answer>) -> Result<View> {
    let words = words(text, &scored.encoding);
    let maps = scored.maps()?;
    Ok(View {
        model,
        logit: scored.logit,
        probability: scored.probability(),
        answer,
        best,
        right: None,
        tokens: scored.encoding.tokens.clone(),
        spoken: spoken_pieces(&words),
        words: words.into_iter().map(Into::into).collect(),
        truncated: scored.encoding.truncated,
        regions: maps.regions,
        maps: pack(maps)?,
    })
}

/// The last three parts of a path, since pages are sent to others; a repository's name stays complete.
pub fn short_name(place: &Path) -> String {
    let text = place.to_string_lossy();
    if text.starts_with("hf:") {
        return text.into_owned();
    }
    let parts: Vec<_> = place.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let last: Vec<_> = parts[parts.len().saturating_sub(3)..].iter().map(|p| p.as_os_str().to_string_lossy()).collect();
    last.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoint_names_keep_only_the_end_of_a_path() {
        assert_eq!(short_name(Path::new("/home/me/lxmert/runs/scenes/best")), "runs/scenes/best");
        assert_eq!(short_name(Path::new("../best")), "best");
        assert_eq!(short_name(Path::new("hf:owner/repo@v1")), "hf:owner/repo@v1");
    }
}
