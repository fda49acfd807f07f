//! Referring expressions: which region does the sentence name?

use super::layers::Linear;
use super::{LxmertInputs, LxmertModel, Pass};
use crate::config::LxmertConfig;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

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
    /// When a weight is missing or misshapen.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let trunk = LxmertModel::new(config, vb.pp("lxmert"))?;
        Ok(Self { trunk, head: Linear::new(config.hidden_size, 1, vb.pp("referring_head"))? })
    }

    /// Names and shapes of every weight [`ReferringModel::new`] reads, sorted by name.
    ///
    /// # Errors
    /// When the configuration does not fit together.
    pub fn expected(config: &LxmertConfig) -> Result<Vec<(String, Vec<usize>)>> {
        super::init::expected(|vb| Self::new(config, vb).map(drop))
    }

    /// Gives a logit for each region, `[batch, regions]`: the higher, the more of the named object the region covers. Logits
    /// of padding mean nothing.
    ///
    /// # Errors
    /// When the inputs' shapes do not fit the model or each other.
    pub fn forward(&self, inputs: &LxmertInputs, pass: &Pass) -> Result<Tensor> {
        // The head reads the vision stream, so a pass for the pooled output alone will not do.
        let vision = self.trunk.forward(inputs, &Pass { pooled_only: false, ..*pass })?.vision; // [batch, regions, hidden]
        self.head.forward(&vision)?.squeeze(2)
    }
}
