//! Convolution with an optional batch norm and ReLU: the unit from which the backbone, the pyramid and the proposal
//! network are built.

use super::ops::{batch_norm, conv2d};
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Init, Linear, Module, VarBuilder};
use lxmert_core::ops::{Precision, PrepackedConv2d};

/// How to treat a batch norm when building a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormMode {
    /// Fold it into the convolution before it (torchvision's `FrozenBatchNorm2d`); for inference.
    Folded,
    /// Keep it, with running statistics; for training.
    Batch,
}

/// Shape of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Side of the square kernel; the padding is half of it.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
}

/// Convolution, then batch norm unless folded or absent, then ReLU if requested.
#[derive(Debug, Clone)]
pub struct ConvBlock {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: Option<BatchNorm>,
    stride: usize,
    padding: usize,
    relu: bool,
}

impl ConvBlock {
    /// A convolution with a bias and no norm; its weights are `weight` and `bias` under `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn with_bias(shape: ConvShape, init: Init, relu: bool, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(shape.weight_dims(), "weight", init)?;
        let bias = vb.get_with_hints(shape.outputs, "bias", Init::Const(0.0))?;
        Ok(Self { weight, bias: Some(bias), norm: None, stride: shape.stride, padding: shape.kernel / 2, relu })
    }

    /// A convolution without bias (`weight` under `conv`), and the batch norm after it (under `norm`).
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn with_norm(
        shape: ConvShape,
        relu: bool,
        eps: f64,
        mode: NormMode,
        conv: VarBuilder,
        norm: VarBuilder,
    ) -> Result<Self> {
        let weight = conv.get_with_hints(shape.weight_dims(), "weight", candle_nn::init::DEFAULT_KAIMING_NORMAL)?;
        let block =
            |weight, bias, norm| Self { weight, bias, norm, stride: shape.stride, padding: shape.kernel / 2, relu };
        match mode {
            NormMode::Batch => Ok(block(weight, None, Some(BatchNorm::new(shape.outputs, eps, norm)?))),
            NormMode::Folded => {
                let get = |name| norm.get(shape.outputs, name);
                let scale = (get("weight")? / (get("running_var")? + eps)?.sqrt()?)?;
                let bias = (get("bias")? - (get("running_mean")? * &scale)?)?;
                let weight = weight.broadcast_mul(&scale.reshape((shape.outputs, 1, 1, 1))?)?;
                Ok(block(weight, Some(bias), None))
            }
        }
    }

    /// Output channels.
    pub(super) fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Whether [`prepack`](Self::prepack) applies: f32 weights on the CPU and no separate norm.
    pub(super) fn is_prepackable(&self) -> bool {
        self.norm.is_none() && self.weight.device().is_cpu() && self.weight.dtype() == DType::F32
    }

    /// Whether the prepacked convolution uses Winograd's transforms.
    pub(super) fn is_winograd(&self, precision: Precision) -> Result<bool> {
        PrepackedConv2d::is_winograd(&self.weight, self.stride, precision)
    }

    /// The same convolution with prepacked weights. `relu` overrides the block's own, for a block that adds a residual
    /// first.
    pub(super) fn prepack(&self, relu: Option<bool>, precision: Precision) -> Result<PrepackedConv2d> {
        let relu = relu.unwrap_or(self.relu);
        PrepackedConv2d::new(&self.weight, self.bias.as_ref(), self.stride, self.padding, relu, precision)
    }

    /// Both convolutions over the same input as one, outputs one after the other, without ReLU.
    pub(super) fn prepack_both(&self, other: &Self, precision: Precision) -> Result<PrepackedConv2d> {
        let bias = match (&self.bias, &other.bias) {
            (Some(a), Some(b)) => Some(Tensor::cat(&[a, b], 0)?),
            _ => None,
        };
        let weight = Tensor::cat(&[&self.weight, &other.weight], 0)?;
        PrepackedConv2d::new(&weight, bias.as_ref(), self.stride, self.padding, false, precision)
    }

    /// `x`: `[batch, inputs, height, width]`; the result's sides are `ceil(side / stride)`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = conv2d(x, &self.weight, self.bias.as_ref(), self.stride, self.padding)?;
        match &self.norm {
            Some(norm) => norm.forward_t(&y, train, self.relu),
            None if self.relu => y.relu(),
            None => Ok(y),
        }
    }
}

/// A batch norm with running moments.
#[derive(Debug, Clone)]
struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_variance: Var,
    eps: f64,
}

/// Share of a new batch in the running moments; torch's default.
const MOMENTUM: f64 = 0.1;

impl BatchNorm {
    fn new(channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let get = |name, value| vb.get_with_hints(channels, name, Init::Const(value));
        Ok(Self {
            weight: get("weight", 1.0)?,
            bias: get("bias", 0.0)?,
            // On a variable map these are the map's own variables, so saving the map saves what is learnt here.
            running_mean: Var::from_tensor(&get("running_mean", 0.0)?)?,
            running_variance: Var::from_tensor(&get("running_var", 1.0)?)?,
            eps,
        })
    }

    fn forward_t(&self, x: &Tensor, train: bool, relu: bool) -> Result<Tensor> {
        if train {
            let normalised = batch_norm(x, &self.weight, &self.bias, self.eps, relu)?;
            let count = (x.elem_count() / x.dim(1)?) as f64;
            let unbiased = (normalised.variance * (count / (count - 1.0).max(1.0)))?;
            follow(&self.running_mean, &normalised.mean)?;
            follow(&self.running_variance, &unbiased)?;
            return Ok(normalised.y);
        }
        let scale = (&self.weight / (self.running_variance.as_detached_tensor() + self.eps)?.sqrt()?)?;
        let shift = (&self.bias - (self.running_mean.as_detached_tensor() * &scale)?)?;
        let each = (1, scale.elem_count(), 1, 1);
        let y = x.broadcast_mul(&scale.reshape(each)?)?.broadcast_add(&shift.reshape(each)?)?;
        if relu { y.relu() } else { Ok(y) }
    }
}

fn follow(running: &Var, of_batch: &Tensor) -> Result<()> {
    running.set(&((running.as_detached_tensor() * (1.0 - MOMENTUM))? + (of_batch * MOMENTUM)?)?)
}

impl ConvShape {
    fn weight_dims(self) -> (usize, usize, usize, usize) {
        (self.outputs, self.inputs, self.kernel, self.kernel)
    }
}

/// Uniform within ±1/√inputs, as torch initialises `nn.Linear`; the bias starts at 0.
///
/// # Errors
/// Returns an error if a weight is missing or misshapen.
pub fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let weight = vb.get_with_hints((outputs, inputs), "weight", Init::Uniform { lo: -bound, up: bound })?;
    Ok(Linear::new(weight, Some(vb.get_with_hints(outputs, "bias", Init::Const(0.0))?)))
}

/// Applies a linear layer with core's kernel.
pub(super) fn apply(layer: &Linear, x: &Tensor) -> Result<Tensor> {
    match layer.bias() {
        Some(bias) => lxmert_core::ops::linear(x, layer.weight(), bias),
        None => layer.forward(x),
    }
}
