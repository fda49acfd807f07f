//! Answers to a question about an image, and judgements of a statement about two.

use super::heads::AnswerHead;
use super::{LxmertInputs, LxmertModel, LxmertOutput, Pass};
use crate::config::LxmertConfig;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// A trunk with an answer head (`answer_head`): VQA and GQA (Tan & Bansal 2019, §4; the hub's
/// `LxmertForQuestionAnswering`).
#[derive(Debug, Clone)]
pub struct AnswerModel {
    trunk: LxmertModel,
    head: AnswerHead,
}

/// What an answering pass gives.
#[derive(Debug, Clone)]
pub struct AnswerOutput {
    /// `[batch, answers]`; the sigmoid of each is the expected score of that answer where the head was trained on soft
    /// scores.
    pub logits: Tensor,
    /// The trunk's output.
    pub trunk: LxmertOutput,
}

impl AnswerModel {
    /// With `config.num_qa_labels` answers and the weights at the root of `vb`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        Ok(Self { trunk, head: AnswerHead::new(config, config.num_qa_labels, vb.pp("answer_head"))? })
    }

    /// Names and shapes of every weight [`AnswerModel::new`] reads, sorted by name.
    ///
    /// # Errors
    /// When the configuration does not fit together.
    pub fn expected(config: &LxmertConfig) -> Result<Vec<(String, Vec<usize>)>> {
        super::init::expected(|vb| Self::new(config, vb).map(drop))
    }

    /// The whole pass.
    ///
    /// # Errors
    /// When the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<AnswerOutput> {
        let trunk = self.trunk.forward(inputs, pass)?;
        Ok(AnswerOutput { logits: self.head.forward(&trunk.pooled)?, trunk })
    }
}

/// A trunk that sees a sentence with each of two images, and a head over both pooled outputs: NLVR2 (Tan & Bansal 2019,
/// appendix; the original's `NLVR2Model`).
#[derive(Debug, Clone)]
pub struct PairModel {
    trunk: LxmertModel,
    head: AnswerHead,
}

impl PairModel {
    /// The weights are at the root of `vb`, the head's under `answer_head` (`[2·hidden → 2·hidden → 2]`).
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        Ok(Self { trunk, head: AnswerHead::over(config, 2, 2, vb.pp("answer_head"))? })
    }

    /// Names and shapes of every weight [`PairModel::new`] reads, sorted by name.
    ///
    /// # Errors
    /// When the configuration does not fit together.
    pub fn expected(config: &LxmertConfig) -> Result<Vec<(String, Vec<usize>)>> {
        super::init::expected(|vb| Self::new(config, vb).map(drop))
    }

    /// `inputs` has two rows for each statement, one after the other: the sentence with the left image, then the same
    /// sentence with the right one. Gives `[statements, 2]`; index 1 is "true".
    ///
    /// # Errors
    /// When the number of rows is odd, or the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<Tensor> {
        let pooled = self.trunk.forward(inputs, pass)?.pooled; // [2 statements, hidden]
        let (rows, hidden) = pooled.dims2()?;
        if rows % 2 != 0 {
            candle_core::bail!("{rows} rows, but a statement takes two");
        }
        self.head.forward(&pooled.reshape((rows / 2, 2 * hidden))?)
    }
}
