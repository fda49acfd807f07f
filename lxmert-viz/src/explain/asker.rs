//! A checkpoint that answers questions, and what an answer is based on.

use super::maps;
use super::scorer::{Scored, batch, keep_regions, padded};
use crate::{Error, Result};
use candle_core::{DType, Device};
use lxmert_core::answering::{Answer, Answerer};
use lxmert_core::features::Regions;
use lxmert_core::model::{Capture, Pass};
use lxmert_core::pretrained::Pretrained;
use lxmert_core::text::Encoding;
use std::path::Path;

/// A question-answering model that can explain its answers.
pub struct Asker {
    answerer: Answerer,
    device: Device,
}

/// An answer with its maps.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The best answers, best first.
    pub best: Vec<Answer>,
    /// The answer that the maps explain.
    pub answer: String,
    /// Its logit, the question as the model reads it, and the maps with the logit's gradients.
    pub scored: Scored,
    /// The regions that the model saw: as many as it was trained on, best first.
    pub regions: Regions,
}

/// How many of the best answers to list.
const BEST: usize = 5;

impl Asker {
    /// Opens the checkpoint of a model trained on questions; `place` may have any form that
    /// [`Place::find`](lxmert_core::checkpoint::Place::find) accepts.
    ///
    /// # Errors
    /// [`Error::Core`] if a file is missing or damaged, or the checkpoint does not answer questions.
    pub fn open(place: &Path, device: &Device) -> Result<Self> {
        Self::new(Pretrained::open(place)?, device)
    }

    /// The same for a checkpoint that is open already.
    ///
    /// # Errors
    /// [`Error::Core`] when it answers no questions.
    pub fn new(pretrained: Pretrained, device: &Device) -> Result<Self> {
        Ok(Self { answerer: Answerer::new(pretrained, device)?, device: device.clone() })
    }

    /// The length of a region's feature and the number of regions that the model was trained on.
    pub fn takes(&self) -> (usize, usize) {
        (self.answerer.config.visual_feat_dim, self.answerer.preprocessing.regions)
    }

    /// The best answers to `question`, the best first, without maps.
    ///
    /// # Errors
    /// [`Error::Core`] when the question is empty or the regions do not fit.
    pub fn answers(&self, regions: &Regions, question: &str) -> Result<Vec<Answer>> {
        Ok(self.answerer.ask(regions, question, BEST, &self.device)?)
    }

    /// A question as the model reads it; one that is too long is cut.
    ///
    /// # Errors
    /// [`Error::Core`] when it cannot be encoded.
    pub fn encode(&self, question: &str) -> Result<Encoding> {
        Ok(self.answerer.text.encode(question, self.answerer.preprocessing.max_length)?)
    }

    /// Each pair's logits of every answer, in one batch, without maps; images as for [`Scorer::logits`].
    ///
    /// # Errors
    /// As [`Scorer::logits`].
    ///
    /// [`Scorer::logits`]: super::scorer::Scorer::logits
    pub fn logits(&self, pairs: &[(&Regions, &[u32])]) -> Result<Vec<Vec<f32>>> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let Answerer { config, text, model, .. } = &self.answerer;
        let inputs = padded(pairs, (config.visual_feat_dim, text.special().pad), &self.device)?;
        Ok(model.forward(&inputs, &Pass::eval().pooled_only())?.logits.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// The best answers by their logits, the best first.
    pub fn best(&self, logits: &[f32]) -> Vec<Answer> {
        self.answerer.best(logits, BEST)
    }

    /// The place of an answer among the logits.
    pub fn answer_index(&self, answer: &str) -> Option<usize> {
        self.answerer.answers.label(answer).map(|label| label as usize)
    }

    /// Answers `question` about `regions` and explains the top answer, or `answer` if one is given.
    ///
    /// # Errors
    /// [`Error::Argument`] if the question is empty, the model has no such answer, or the regions do not fit;
    /// [`Error::Candle`] if a computation fails.
    pub fn explain(&self, regions: &Regions, question: &str, answer: Option<&str>) -> Result<Answered> {
        let Self { answerer, device } = self;
        let Answerer { config, preprocessing, text, answers, model } = answerer;
        if question.trim().is_empty() {
            return Err(Error::Argument("the question is empty".into()));
        }
        preprocessing.check_features(config, regions.feature_dim)?;
        let wanted = answer.map(|name| {
            answers.label(name).map(|label| label as usize).ok_or_else(|| {
                let some = answers.answers().iter().take(8).cloned().collect::<Vec<_>>().join(", ");
                Error::Argument(format!("the model has no answer '{name}'; it has {}, such as {some}", answers.len()))
            })
        });
        let wanted = wanted.transpose()?;
        let kept: Vec<usize> = (0..regions.num_regions().min(preprocessing.regions)).collect();
        let regions = keep_regions(regions, &kept);
        let encoding = text.encode(question, preprocessing.max_length)?;
        let inputs = batch(&[(&regions, &encoding.ids)], (config.visual_feat_dim, text.special().pad), device)?;
        let output = model.forward(&inputs, &Pass::capture(Capture::Probes))?;
        let logits = output.logits.squeeze(0)?; // [answers]
        let values: Vec<f32> = logits.to_dtype(DType::F32)?.to_vec1()?;
        let best = answerer.best(&values, BEST);
        let top = || answers.label(&best.first()?.answer).map(|label| label as usize);
        let chosen = wanted.or_else(top).ok_or_else(|| Error::Shape("the model has no answers".into()))?;
        let attentions = output.trunk.attentions.as_ref();
        let attentions = attentions.ok_or_else(|| Error::Shape("the model gave no attention maps".into()))?;
        let target = logits.narrow(0, chosen, 1)?;
        let sizes = [(encoding.ids.len(), regions.num_regions())];
        let maps = maps::read(attentions, Some(&target), &sizes)?.pop();
        let scored = Scored { logit: values[chosen], encoding, maps };
        let answer = answers.answer(chosen as u32).unwrap_or_default().to_string();
        Ok(Answered { best, answer, scored, regions })
    }
}
