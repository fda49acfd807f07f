//! Multi-head attention with its projections, returning the map on request.

use super::layers::{Linear, Output};
use super::{AttentionMap, Capture, Forward};
use crate::config::LxmertConfig;
use crate::ops::{self, AttentionOptions, KeyMask};
use candle_core::{Result, Tensor, Var};
use candle_nn::VarBuilder;

/// Query, key and value projections and the attention proper (`…self` or `…att`).
#[derive(Debug, Clone)]
pub(crate) struct MultiHead {
    query: Linear,
    key: Linear,
    value: Linear,
    heads: usize,
    dropout: f32,
}

impl MultiHead {
    pub(crate) fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let projection = |name: &str| Linear::new(config.hidden_size, config.hidden_size, vb.pp(name));
        Ok(Self {
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            heads: config.num_attention_heads,
            dropout: config.attention_probs_dropout_prob,
        })
    }

    pub(crate) fn from_parts(query: Linear, key: Linear, value: Linear, heads: usize, dropout: f32) -> Self {
        Self { query, key, value, heads, dropout }
    }

    /// `x`: `[batch, queries, hidden]`; `context`: `[batch, keys, hidden]`, whose padding `mask` says.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: Option<&KeyMask>,
        run: &Forward,
    ) -> Result<(Tensor, Option<AttentionMap>)> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(context)?, self.value.forward(context)?);
        let options = AttentionOptions { heads: self.heads, mask, dropout_probability: self.dropout, rng: run.rng };
        if run.capture == Capture::None {
            return Ok((ops::attention(&q, &k, &v, &options)?, None));
        }
        let probabilities = ops::attention_probabilities(&q, &k, &options)?;
        // Adding a zero variable changes no value; its gradient is the map's.
        let probe = match run.capture {
            Capture::Probes => Some(Var::zeros(probabilities.shape(), probabilities.dtype(), probabilities.device())?),
            _ => None,
        };
        let used = match &probe {
            Some(probe) => (&probabilities + probe.as_tensor())?,
            None => probabilities.clone(),
        };
        let context = ops::attention_weigh(&used, &v, &options)?;
        Ok((context, Some(AttentionMap { probabilities, probe })))
    }
}

/// Attention, then dense, dropout, residual and layer norm.
#[derive(Debug, Clone)]
pub(crate) struct AttentionBlock {
    attention: MultiHead,
    output: Output,
}

impl AttentionBlock {
    /// `name` is the attention's own prefix under `vb`: `self`, or `att` in the cross attention.
    pub(crate) fn new(config: &LxmertConfig, name: &str, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            attention: MultiHead::new(config, vb.pp(name))?,
            output: Output::new(config.hidden_size, config, vb.pp("output"))?,
        })
    }

    pub(crate) fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: Option<&KeyMask>,
        run: &Forward,
    ) -> Result<(Tensor, Option<AttentionMap>)> {
        let (attended, map) = self.attention.forward(x, context, mask, run)?;
        Ok((self.output.forward(&attended, x, run)?, map))
    }
}
