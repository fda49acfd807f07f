//! Multi-head attention with its projections, returning the map on request.

use super::layers::{LayerNorm, Linear, Output};
use super::{AttentionMap, Capture, Forward};
use crate::config::LxmertConfig;
use crate::ops::blocks::Projections;
use crate::ops::{self, AttentionOptions, KeyMask, Packing};
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
    /// All three in one, where the checkpoint has them so.
    joint: Option<Linear>,
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
            joint: None,
        })
    }

    /// From the rows of one `[3 · hidden, hidden]` weight and their biases.
    pub(crate) fn from_joint(weight: Tensor, bias: Tensor, heads: usize, dropout: f32) -> Result<Self> {
        let hidden = bias.dim(0)? / 3;
        let part = |i: usize| -> Result<Linear> {
            Ok(Linear::from_tensors(weight.narrow(0, i * hidden, hidden)?, bias.narrow(0, i * hidden, hidden)?))
        };
        let (query, key, value) = (part(0)?, part(1)?, part(2)?);
        Ok(Self { query, key, value, heads, dropout, joint: Some(Linear::from_tensors(weight, bias)) })
    }

    /// Attention over packed rows, output projection, dropout, residual and layer norm as one operation.
    pub(crate) fn packed(
        &self,
        x: (&Tensor, &Packing),
        context: (&Tensor, &Packing),
        output: &Linear,
        norm: &LayerNorm,
        dropout: f32,
        run: &Forward,
    ) -> Result<Tensor> {
        let projections = match &self.joint {
            Some(joint) => Projections::Joint(joint.weights()),
            None => Projections::Separate([&self.query, &self.key, &self.value].map(Linear::weights)),
        };
        let block = ops::blocks::AttentionBlock {
            projections,
            heads: self.heads,
            output: output.weights(),
            norm: norm.norm(),
            dropout: [self.dropout, dropout],
            precision: run.precision,
            packed: run.packed,
        };
        block.forward(x, context, run.rng)
    }

    /// `x`: `[batch, queries, hidden]`; `context`: `[batch, keys, hidden]`, whose padding `mask` says.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: Option<&KeyMask>,
        run: &Forward,
    ) -> Result<(Tensor, Option<AttentionMap>)> {
        let (q, k, v) = (self.query.run(x, run)?, self.key.run(context, run)?, self.value.run(context, run)?);
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

    /// The same of packed rows.
    pub(crate) fn packed(&self, x: (&Tensor, &Packing), context: (&Tensor, &Packing), run: &Forward) -> Result<Tensor> {
        let Output { dense, layer_norm, dropout } = &self.output;
        self.attention.packed(x, context, dense, layer_norm, *dropout, run)
    }
}
