//! Asking a checkpoint questions about an image.

use crate::answers::AnswerTable;
use crate::batch::Batch;
use crate::config::LxmertConfig;
use crate::features::Regions;
use crate::model::{AnswerModel, Pass};
use crate::pretrained::{Preprocessing, Pretrained};
use crate::text::WordPiece;
use crate::{Error, Result};
use candle_core::Device;

/// A model that answers questions, with everything needed to ask it.
pub struct Answerer {
    /// The model's configuration.
    pub config: LxmertConfig,
    /// How to prepare data for it.
    pub preprocessing: Preprocessing,
    /// Its tokeniser.
    pub text: WordPiece,
    /// Its answers.
    pub answers: AnswerTable,
    /// The model.
    pub model: AnswerModel,
}

/// An answer with its probability.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Answer {
    /// The answer.
    pub answer: String,
    /// The sigmoid of its logit, that is, its expected score. The probabilities of all answers do not add up to 1. For
    /// a head trained with `--answer-loss one` only their order is meaningful.
    pub probability: f32,
    /// The answer head's output.
    pub logit: f32,
}

impl Answerer {
    /// Builds the checkpoint's model on `device`.
    ///
    /// # Errors
    /// Returns an error if the checkpoint does not answer questions, its weights do not fit its configuration, or its
    /// answers are unknown.
    pub fn new(pretrained: Pretrained, device: &Device) -> Result<Self> {
        let (model, answers) = (pretrained.answering(device)?, pretrained.answers()?);
        let Pretrained { config, preprocessing, text, .. } = pretrained;
        Ok(Self { config, preprocessing, text, answers, model })
    }

    /// The `top` best answers to a question about an image's regions, best first.
    ///
    /// # Errors
    /// Returns an error if the regions' features have another length than the model needs, or a computation fails.
    pub fn ask(&self, regions: &Regions, question: &str, top: usize, device: &Device) -> Result<Vec<Answer>> {
        let (ids, most) = self.checked(regions, question)?;
        let inputs = Batch::of_regions(&[(regions, &ids)], most, self.text.special().pad).inputs(device)?;
        let logits = self.model.forward(&inputs, &Pass::eval())?.logits.squeeze(0)?.to_vec1::<f32>()?;
        Ok(self.best(&logits, top))
    }

    /// What the first answer rests on: for each region that the model looks at, by how much the answer's logit falls when the
    /// model may not look at that region. It can rise, so some are negative.
    ///
    /// # Errors
    /// As [`Answerer::ask`], and when the table has no such answer.
    pub fn rests_on(&self, regions: &Regions, question: &str, answer: &Answer, device: &Device) -> Result<Vec<f32>> {
        // Rows that are computed at once: as many as an image has regions at most, as published.
        const ROWS: usize = 36;
        let label = self.answers.label(&answer.answer);
        let label = label.ok_or_else(|| Error::Argument(format!("the model has no answer '{}'", answer.answer)))?;
        let (ids, most) = self.checked(regions, question)?;
        let count = regions.num_regions().min(most);
        let hidden: Vec<usize> = (0..count).collect();
        let mut falls = Vec::with_capacity(count);
        for hidden in hidden.chunks(ROWS) {
            let mut batch =
                Batch::of_regions(&vec![(regions, ids.as_slice()); hidden.len()], most, self.text.special().pad);
            for (row, region) in hidden.iter().enumerate() {
                batch.region_mask[row * count + region] = 0.0;
            }
            let logits = self.model.forward(&batch.inputs(device)?, &Pass::eval())?.logits; // [rows, answers]
            let logits = logits.narrow(1, label as usize, 1)?.flatten_all()?.to_vec1::<f32>()?;
            falls.extend(logits.iter().map(|without| answer.logit - without));
        }
        Ok(falls)
    }

    /// The question's WordPieces, and how many regions the model looks at, after both were checked.
    fn checked(&self, regions: &Regions, question: &str) -> Result<(Vec<u32>, usize)> {
        if question.trim().is_empty() {
            return Err(Error::Argument("the question is empty".into()));
        }
        self.preprocessing.check_features(&self.config, regions.feature_dim)?;
        if regions.num_regions() == 0 {
            return Err(Error::Argument("the detector found no region in the photo".into()));
        }
        let ids = self.text.encode(question, self.preprocessing.max_length)?.ids;
        Ok((ids, self.preprocessing.regions))
    }

    /// The `top` answers with the largest logits, best first. `logits`: one per answer.
    pub fn best(&self, logits: &[f32], top: usize) -> Vec<Answer> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let answer = |label: usize| Answer {
            answer: self.answers.answer(label as u32).unwrap_or_default().to_string(),
            probability: 1.0 / (1.0 + (-logits[label]).exp()),
            logit: logits[label],
        };
        order.into_iter().take(top).map(answer).collect()
    }
}
