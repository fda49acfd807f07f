//! The building blocks every part shares: linear map, layer norm, feed-forward.

use super::Forward;
use crate::config::LxmertConfig;
use crate::ops::blocks::{FeedForwardBlock, Norm, Weights};
use crate::ops::{self, Packing};
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Init, Module, VarBuilder};

/// `x Wᵀ + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(crate) fn new(in_width: usize, out_width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get((out_width, in_width), "weight")?, bias: vb.get(out_width, "bias")? })
    }

    pub(crate) fn from_tensors(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, &self.bias)
    }

    /// As [`forward`](Self::forward), with the precision of a pass.
    pub(crate) fn run(&self, x: &Tensor, run: &Forward) -> Result<Tensor> {
        ops::linear_with(x, &self.weight, &self.bias, run.precision)
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        (&self.weight, &self.bias)
    }
}

/// Layer norm over the hidden width.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: vb.get_with_hints(width, "bias", Init::Const(0.0))?,
            eps,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }

    pub(crate) fn norm(&self) -> Norm<'_> {
        Norm { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}

/// The activation, with this workspace's kernel where it has one.
pub(crate) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    if activation == Activation::Gelu { ops::gelu(x) } else { activation.forward(x) }
}

/// Linear, dropout, residual, layer norm: the end of every attention and feed-forward
/// (`…output.dense`, `…output.LayerNorm`).
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) dense: Linear,
    pub(crate) layer_norm: LayerNorm,
    pub(crate) dropout: f32,
}

impl Output {
    pub(crate) fn new(in_width: usize, config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            dense: Linear::new(in_width, config.hidden_size, vb.pp("dense"))?,
            layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, vb.pp("LayerNorm"))?,
            dropout: config.hidden_dropout_prob,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, residual: &Tensor, run: &Forward) -> Result<Tensor> {
        let x = ops::dropout(&self.dense.run(x, run)?, self.dropout, run.rng)?;
        self.layer_norm.forward(&(x + residual)?)
    }
}

/// The feed-forward sub-layer (`intermediate`, `output`).
#[derive(Debug, Clone)]
pub(crate) struct FeedForward {
    intermediate: Linear,
    activation: Activation,
    output: Output,
}

impl FeedForward {
    /// `intermediate` and `output` are the two parts' prefixes, which differ between layers.
    pub(crate) fn new(config: &LxmertConfig, intermediate: VarBuilder, output: VarBuilder) -> Result<Self> {
        Ok(Self {
            intermediate: Linear::new(config.hidden_size, config.intermediate_size, intermediate.pp("dense"))?,
            activation: config.hidden_act,
            output: Output::new(config.intermediate_size, config, output)?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, run: &Forward) -> Result<Tensor> {
        let inner = activate(self.activation, &self.intermediate.run(x, run)?)?;
        self.output.forward(&inner, x, run)
    }

    /// The same of packed rows, as one operation where the activation allows.
    pub(crate) fn packed(&self, x: &Tensor, packing: &Packing, run: &Forward) -> Result<Tensor> {
        let activation = match self.activation {
            Activation::Gelu => ops::Activation::Gelu,
            Activation::Relu => ops::Activation::Relu,
            _ => return self.forward(x, run),
        };
        let Output { dense, layer_norm, dropout } = &self.output;
        let block = FeedForwardBlock {
            first: self.intermediate.weights(),
            activation,
            second: dense.weights(),
            norm: layer_norm.norm(),
            dropout: [0.0, *dropout],
            precision: run.precision,
            packed: run.packed,
        };
        block.forward(x, packing, run.rng)
    }
}
