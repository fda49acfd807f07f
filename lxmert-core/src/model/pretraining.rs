//! The trunk with every head of pre-training: the hub's `LxmertForPreTraining`.

use super::heads::{PretrainingHeads, PretrainingLogits};
use super::{Forward, LxmertInputs, LxmertModel, LxmertOutput};
use crate::config::LxmertConfig;
use candle_core::Result;
use candle_nn::VarBuilder;

/// A trunk (`lxmert.…`) with the pre-training heads (`cls.…`, `obj_predict_head.…`, `answer_head.…`). Heads
/// of 0 classes (`num_object_labels`, `num_attr_labels`, `num_qa_labels`) do not exist, nor do their weights.
#[derive(Debug, Clone)]
pub struct PretrainingModel {
    /// The trunk.
    pub trunk: LxmertModel,
    /// The heads, to be run by themselves where a task needs only one.
    pub heads: PretrainingHeads,
}

impl PretrainingModel {
    /// The weights at the root of `vb`; the word decoder is the word embedding table itself.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        Ok(Self { heads: PretrainingHeads::new(config, trunk.word_embeddings(), vb)?, trunk })
    }

    /// Names and shapes of every weight [`PretrainingModel::new`] reads, sorted by name.
    ///
    /// # Errors
    /// When the configuration does not fit together.
    pub fn expected(config: &LxmertConfig) -> Result<Vec<(String, Vec<usize>)>> {
        super::init::expected(|vb| Self::new(config, vb).map(drop))
    }

    /// The whole pass with every head at every position.
    ///
    /// # Errors
    /// When the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, run: &Forward) -> Result<(LxmertOutput, PretrainingLogits)> {
        let output = self.trunk.forward(inputs, run)?;
        let logits = self.heads.forward(&output)?;
        Ok((output, logits))
    }
}
