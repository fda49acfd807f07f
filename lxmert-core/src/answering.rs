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
        if question.trim().is_empty() {
            return Err(Error::Argument("the question is empty".into()));
        }
        self.preprocessing.check_features(&self.config, regions.feature_dim)?;
        if regions.num_regions() == 0 {
            return Err(Error::Argument("the detector found no region in the photo".into()));
        }
        let ids = self.text.encode(question, self.preprocessing.max_length)?.ids;
        let (most, pad) = (self.preprocessing.regions, self.text.special().pad);
        let inputs = Batch::of_regions(&[(regions, &ids)], most, pad).inputs(device)?;
        let logits = self.model.forward(&inputs, &Pass::eval())?.logits.squeeze(0)?.to_vec1::<f32>()?;
        Ok(self.best(&logits, top))
    }

    /// The `top` answers with the largest logits, best first. `logits`: one per answer.
    pub fn best(&self, logits: &[f32], top: usize) -> Vec<Answer> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let answer = |label: usize| Answer {
            answer: self.answers.answer(label as u32).unwrap_or_default().to_string(),
            probability: 1.0 / (1.0 + (-logits[label]).exp()),
        };
        order.into_iter().take(top).map(answer).collect()
    }
}
