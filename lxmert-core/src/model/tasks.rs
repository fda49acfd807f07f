//! The models: the trunk with the head of each task.

use super::heads::{AnswerHead, PretrainingHeads};
use super::layers::Linear;
use super::{LxmertInputs, LxmertModel, LxmertOutput, Pass, Stream, init};
use crate::config::{CrossLayer, LxmertConfig};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// The output of a model that scores images and sentences.
#[derive(Debug, Clone)]
pub struct HeadOutput {
    /// The head's logits; see the model.
    pub logits: Tensor,
    /// The trunk's output.
    pub trunk: LxmertOutput,
}

/// Gives each model a list of its weights.
macro_rules! list_weights {
    ($($model:ident),*) => {
        $(impl $model {
            /// Names and shapes of every weight that `new` reads, sorted by name.
            ///
            /// # Errors
            /// Returns an error if the configuration is inconsistent.
            pub fn expected(config: &LxmertConfig) -> Result<Vec<(String, Vec<usize>)>> {
                init::expected(|vb| Self::new(config, vb).map(drop))
            }
        })*
    };
}
list_weights!(PretrainingModel, MatchingModel, AnswerModel, PairModel, ReferringModel);

/// A trunk with every head of pre-training, like the hub's `LxmertForPreTraining`.
#[derive(Debug, Clone)]
pub struct PretrainingModel {
    /// `lxmert.…`.
    pub trunk: LxmertModel,
    /// The heads, at the root.
    pub heads: PretrainingHeads,
}

impl PretrainingModel {
    /// The weights are at the root of `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        let heads = PretrainingHeads::new(config, trunk.word_embeddings(), vb)?;
        Ok(Self { trunk, heads })
    }
}

/// A trunk with a matching head.
#[derive(Debug, Clone)]
pub struct MatchingModel {
    /// The trunk: LXMERT's (`lxmert.…`) or the student project's variant.
    pub trunk: LxmertModel,
    /// LXMERT's published head (`cls.seq_relationship`) has two rows, of which row 1 means "they match"; the student
    /// project's has one.
    head: Linear,
}

impl MatchingModel {
    /// The variant in `config.cross_layer`, with the weights at the root of `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        match config.cross_layer {
            CrossLayer::Lxmert => Ok(Self {
                trunk: LxmertModel::new(config, vb.pp("lxmert"))?,
                head: Linear::new(hidden, 2, vb.pp("cls.seq_relationship"))?,
            }),
            CrossLayer::Student => Ok(Self {
                trunk: LxmertModel::student(config, vb.clone())?,
                head: Linear::new(hidden, 1, vb.pp("pooler.2"))?,
            }),
        }
    }

    /// Returns logits `[batch]`; the sigmoid of each is the probability that the pair matches. The cross entropy over
    /// the published head's two logits equals the binary cross entropy of their difference, which this is.
    ///
    /// # Errors
    /// Returns an error if the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<HeadOutput> {
        self.with_logits(self.trunk.forward(inputs, pass)?)
    }

    /// Passes both encoded streams through the cross-modality encoder and the head. Retrieval runs this once per pair,
    /// after encoding each image and each sentence once.
    ///
    /// # Errors
    /// Returns an error if the batches differ.
    pub fn match_encoded(&self, language: &Stream, vision: &Stream, pass: &Pass) -> Result<HeadOutput> {
        self.with_logits(self.trunk.cross(language, vision, pass)?)
    }

    fn with_logits(&self, trunk: LxmertOutput) -> Result<HeadOutput> {
        let scores = self.head.forward(&trunk.pooled)?; // [batch, 2 or 1]
        let matching = scores.narrow(1, scores.dim(1)? - 1, 1)?;
        let logits = if scores.dim(1)? == 2 { (matching - scores.narrow(1, 0, 1)?)? } else { matching };
        Ok(HeadOutput { logits: logits.squeeze(1)?, trunk })
    }
}

/// A trunk with an answer head (`answer_head`): VQA and GQA (Tan & Bansal 2019, §4; the hub's
/// `LxmertForQuestionAnswering`).
#[derive(Debug, Clone)]
pub struct AnswerModel {
    trunk: LxmertModel,
    head: AnswerHead,
}

impl AnswerModel {
    /// With `config.num_qa_labels` answers and the weights at the root of `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        Ok(Self { trunk, head: AnswerHead::new(config, 1, config.num_qa_labels, vb.pp("answer_head"))? })
    }

    /// Returns logits `[batch, answers]`; the sigmoid of each is the expected score of that answer if the head was
    /// trained on soft scores.
    ///
    /// # Errors
    /// Returns an error if the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<HeadOutput> {
        let trunk = self.trunk.forward(inputs, pass)?;
        Ok(HeadOutput { logits: self.head.forward(&trunk.pooled)?, trunk })
    }
}

/// A trunk that reads a sentence with each of two images, and a head over both pooled outputs: NLVR2 (Tan & Bansal
/// 2019, appendix; the original's `NLVR2Model`).
#[derive(Debug, Clone)]
pub struct PairModel {
    trunk: LxmertModel,
    head: AnswerHead,
}

impl PairModel {
    /// The weights are at the root of `vb`, the head's under `answer_head` (`[2·hidden → 2·hidden → 2]`).
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        Ok(Self { trunk, head: AnswerHead::new(config, 2, 2, vb.pp("answer_head"))? })
    }

    /// `inputs` has two adjacent rows per statement: the sentence with the left image, then the same sentence with the
    /// right one. Returns logits `[statements, 2]`; index 1 means "true".
    ///
    /// # Errors
    /// Returns an error if the number of rows is odd, or the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<HeadOutput> {
        let trunk = self.trunk.forward(inputs, pass)?;
        let (rows, hidden) = trunk.pooled.dims2()?; // [2 statements, hidden]
        if rows % 2 != 0 {
            candle_core::bail!("{rows} rows, but a statement takes two");
        }
        Ok(HeadOutput { logits: self.head.forward(&trunk.pooled.reshape((rows / 2, 2 * hidden))?)?, trunk })
    }
}

/// A trunk with a linear map of each region's final vision state (Lu et al. 2020, §3.2; Bugliarello et al. 2021).
#[derive(Debug, Clone)]
pub struct ReferringModel {
    trunk: LxmertModel,
    head: Linear,
}

impl ReferringModel {
    /// The weights are at the root of `vb`, the head's under `referring_head` (`[hidden → 1]`).
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        Ok(Self { trunk, head: Linear::new(config.hidden_size, 1, vb.pp("referring_head"))? })
    }

    /// Returns a logit per region, `[batch, regions]`: the higher, the more of the named object the region covers.
    /// Logits of padding are meaningless.
    ///
    /// # Errors
    /// Returns an error if the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<Tensor> {
        // The head reads the vision stream, so the pass must not be for the pooled output only.
        let vision = self.trunk.forward(inputs, &Pass { pooled_only: false, ..*pass })?.vision; // [batch, regions, hidden]
        self.head.forward(&vision)?.squeeze(2)
    }
}
