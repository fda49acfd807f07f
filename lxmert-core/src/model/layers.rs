//! Linear map, layer norm, the feed-forward sub-layer, and the layers built from them (Tan & Bansal 2019, §2.2).

use super::attention::Attention;
use super::{Pass, Stream};
use crate::config::LxmertConfig;
use crate::ops;
use crate::ops::sublayers::{FeedForwardSublayer, Norm, Weights};
use candle_core::{Result, Tensor};
use candle_nn::{Activation, Init, VarBuilder};

/// `x Wᵀ + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Linear {
    pub fn new(in_width: usize, out_width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get((out_width, in_width), "weight")?, bias: vb.get(out_width, "bias")? })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, &self.bias)
    }

    pub fn weights(&self) -> Weights<'_> {
        (&self.weight, &self.bias)
    }
}

/// Layer norm over the hidden width.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: vb.get_with_hints(width, "bias", Init::Const(0.0))?,
            eps,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }

    pub fn norm(&self) -> Norm<'_> {
        Norm { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}

/// The feed-forward sub-layer: linear, activation, linear, dropout, residual, layer norm.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    pub first: Linear,
    pub activation: Activation,
    pub second: Linear,
    pub layer_norm: LayerNorm,
    /// Dropout of the inner values, and of the output.
    pub dropout: [f32; 2],
}

impl FeedForward {
    /// With BERT's names. `intermediate` and `output` are the two parts' prefixes, which differ between layers.
    pub fn new(config: &LxmertConfig, intermediate: VarBuilder, output: VarBuilder) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            first: Linear::new(hidden, inner, intermediate.pp("dense"))?,
            activation: config.hidden_act,
            second: Linear::new(inner, hidden, output.pp("dense"))?,
            layer_norm: LayerNorm::new(hidden, config.layer_norm_eps, output.pp("LayerNorm"))?,
            dropout: [0.0, config.hidden_dropout_prob],
        })
    }

    pub fn forward(&self, x: &Stream, pass: &Pass) -> Result<Stream> {
        let sublayer = FeedForwardSublayer {
            first: self.first.weights(),
            activation: self.activation,
            second: self.second.weights(),
            norm: self.layer_norm.norm(),
            dropout: self.dropout,
        };
        Ok(x.with(sublayer.forward(&x.states, &x.rows, &pass.run())?))
    }
}

/// Attention, then feed-forward.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub attention: Attention,
    pub feed_forward: FeedForward,
}

impl Layer {
    /// A layer of a single-modality encoder (`layer.i` or `r_layers.i`).
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            attention: Attention::new(config, "self", vb.pp("attention"))?,
            feed_forward: FeedForward::new(config, vb.pp("intermediate"), vb.pp("output"))?,
        })
    }

    /// `x` attends to `context`; in an encoder that is `x` itself.
    pub fn forward(&self, x: &Stream, context: &Stream, pass: &Pass) -> Result<Stream> {
        self.feed_forward.forward(&self.attention.forward(x, context, pass)?, pass)
    }

    /// Passes `x` through an encoder's layers in turn.
    pub fn encode(layers: &[Self], x: Stream, pass: &Pass) -> Result<Stream> {
        layers.iter().try_fold(x, |x, layer| layer.forward(&x, &x, pass))
    }
}

/// One cross-modality layer.
#[derive(Debug, Clone)]
pub(super) enum CrossModalityLayer {
    /// LXMERT's (`x_layers.i`): one shared cross-attention serves both directions from the layer's inputs, then each
    /// stream has its self-attention and feed-forward.
    Shared { cross: Attention, language: Layer, vision: Layer },
    /// The student project's: each stream has its own cross-attention and feed-forward, and the image attends to the
    /// already updated sentence.
    Separate { language: Layer, vision: Layer },
}

impl CrossModalityLayer {
    /// LXMERT's.
    pub fn new(config: &LxmertConfig, vb: VarBuilder) -> Result<Self> {
        let stream = |name: &str| -> Result<Layer> {
            let part = |part: &str| vb.pp(format!("{name}_{part}"));
            Ok(Layer {
                attention: Attention::new(config, "self", part("self_att"))?,
                feed_forward: FeedForward::new(config, part("inter"), part("output"))?,
            })
        };
        Ok(Self::Shared {
            cross: Attention::new(config, "att", vb.pp("visual_attention"))?,
            language: stream("lang")?,
            vision: stream("visn")?,
        })
    }

    /// Both streams, after attending to each other.
    pub fn forward(&self, l: &Stream, v: &Stream, pass: &Pass) -> Result<(Stream, Stream)> {
        match self {
            Self::Shared { cross, language, vision } => {
                let (l, v) = (cross.forward(l, v, pass)?, cross.forward(v, l, pass)?);
                Ok((language.forward(&l, &l, pass)?, vision.forward(&v, &v, pass)?))
            }
            Self::Separate { language, vision } => {
                let l = language.forward(l, v, pass)?;
                let v = vision.forward(v, &l, pass)?;
                Ok((l, v))
            }
        }
    }

    /// Only the first word of each sentence. In training its dropout masks differ from those of
    /// [`forward`](Self::forward), which draws more of them.
    pub fn forward_first(&self, l: &Stream, v: &Stream, pass: &Pass) -> Result<Stream> {
        match self {
            Self::Shared { cross, language, .. } => {
                let l = cross.forward(l, v, pass)?;
                language.forward(&l.first()?, &l, pass)
            }
            Self::Separate { language, .. } => language.forward(&l.first()?, v, pass),
        }
    }
}
