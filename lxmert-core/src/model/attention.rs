//! The attention sub-layer: projections, multi-head attention, output projection, dropout, residual and layer norm.

use super::layers::{LayerNorm, Linear};
use super::{AttentionMap, Capture, Pass, Stream};
use crate::config::LxmertConfig;
use crate::ops::sublayers::{AttentionSublayer, Watch};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use std::sync::{Mutex, PoisonError};

/// Attention from one stream to another, or to itself.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    /// Query, key and value.
    projections: [Linear; 3],
    heads: usize,
    output: Linear,
    layer_norm: LayerNorm,
    /// Dropout of the probabilities, and of the output.
    dropout: [f32; 2],
}

impl Attention {
    /// With BERT's names. `name` is the projections' own prefix under `vb`: `self`, or `att` in the cross-attention.
    pub fn new(config: &LxmertConfig, name: &str, vb: VarBuilder) -> Result<Self> {
        let (hidden, own, output) = (config.hidden_size, vb.pp(name), vb.pp("output"));
        let projection = |part: &str| Linear::new(hidden, hidden, own.pp(part));
        Ok(Self {
            projections: [projection("query")?, projection("key")?, projection("value")?],
            heads: config.num_attention_heads,
            output: Linear::new(hidden, hidden, output.pp("dense"))?,
            layer_norm: LayerNorm::new(hidden, config.layer_norm_eps, output.pp("LayerNorm"))?,
            dropout: [config.attention_probs_dropout_prob, config.hidden_dropout_prob],
        })
    }

    /// With the names of torch's `nn.MultiheadAttention`, which keeps the three projections in one matrix.
    pub fn torch(config: &LxmertConfig, layer_norm: LayerNorm, dropout: [f32; 2], vb: VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let weight = vb.get((3 * hidden, hidden), "in_proj_weight")?;
        let bias = vb.get(3 * hidden, "in_proj_bias")?;
        let third = |i: usize| -> Result<Linear> {
            Ok(Linear { weight: weight.narrow(0, i * hidden, hidden)?, bias: bias.narrow(0, i * hidden, hidden)? })
        };
        Ok(Self {
            projections: [third(0)?, third(1)?, third(2)?],
            heads: config.num_attention_heads,
            output: Linear::new(hidden, hidden, vb.pp("out_proj"))?,
            layer_norm,
            dropout,
        })
    }

    pub fn forward(&self, x: &Stream, context: &Stream, pass: &Pass) -> Result<Stream> {
        let sublayer = AttentionSublayer {
            projections: self.projections.each_ref().map(Linear::weights),
            heads: self.heads,
            output: self.output.weights(),
            norm: self.layer_norm.norm(),
            dropout: self.dropout,
        };
        let seen = Mutex::new(None);
        let watch = |probabilities: Tensor| {
            let (map, used) = AttentionMap::new(probabilities, pass.capture)?;
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(map);
            Ok(used)
        };
        let watch: Option<Watch> = if pass.capture == Capture::None { None } else { Some(&watch) };
        let (queries, keys) = ((&x.states, &x.rows), (&context.states, &context.rows));
        let mut out = x.with(sublayer.forward(queries, keys, &pass.run(), watch)?);
        out.maps.extend(seen.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(out)
    }
}
