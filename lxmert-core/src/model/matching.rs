//! Image-text matching: does this sentence describe this image?

use super::layers::Linear;
use super::{LxmertInputs, LxmertModel, LxmertOutput, Pass, Stream};
use crate::config::{CrossLayer, LxmertConfig};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// A trunk with a matching head.
#[derive(Debug, Clone)]
pub struct MatchingModel {
    /// The trunk: LXMERT's (`lxmert.…`) or the student project's variant.
    pub trunk: LxmertModel,
    /// LXMERT's published head (`cls.seq_relationship`) has two rows, of which row 1 is "they match"; the student project's
    /// has one.
    head: Linear,
}

/// What a matching pass gives.
#[derive(Debug, Clone)]
pub struct MatchingOutput {
    /// `[batch]`; its sigmoid is the probability that the pair matches. The cross entropy over the
    /// published head's two logits equals the binary cross entropy of this one, their difference.
    pub logits: Tensor,
    /// The trunk's output.
    pub trunk: LxmertOutput,
}

impl MatchingModel {
    /// The model that `config.cross_layer` names, with the weights at the root of `vb`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
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

    /// Names and shapes of every weight [`MatchingModel::new`] reads, sorted by name.
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
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<MatchingOutput> {
        self.with_logits(self.trunk.forward(inputs, pass)?)
    }

    /// Both encoded streams through the cross-modality encoder and the head: what retrieval runs
    /// once per pair, after encoding each image and each sentence once.
    ///
    /// # Errors
    /// When the batches differ.
    pub fn match_encoded(&self, language: &Stream, vision: &Stream, pass: &Pass) -> Result<MatchingOutput> {
        self.with_logits(self.trunk.cross(language, vision, pass)?)
    }

    fn with_logits(&self, trunk: LxmertOutput) -> Result<MatchingOutput> {
        let scores = self.head.forward(&trunk.pooled)?; // [batch, 2 or 1]
        let matching = scores.narrow(1, scores.dim(1)? - 1, 1)?;
        let logits = if scores.dim(1)? == 2 { (matching - scores.narrow(1, 0, 1)?)? } else { matching };
        Ok(MatchingOutput { logits: logits.squeeze(1)?, trunk })
    }
}
