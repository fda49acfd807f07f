//! Convolution with an optional batch norm and ReLU: the unit that the body, the pyramid and the
//! proposal network are made of.

use candle_core::{DType, Result, Tensor};
use candle_nn::{BatchNorm, BatchNormConfig, Init, Linear, Module, ModuleT, VarBuilder, batch_norm};
use lxmert_core::ops::{PackedConv2d, conv2d};

/// What becomes of a batch norm when a network is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormMode {
    /// Folded into the convolution before it (torchvision's `FrozenBatchNorm2d`): for inference.
    Folded,
    /// A batch norm with running statistics: for training.
    Batch,
}

/// Shape of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
    /// Channels that enter.
    pub inputs: usize,
    /// Channels that leave.
    pub outputs: usize,
    /// Side of the square kernel; the padding is half of it.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
}

/// Convolution, then batch norm unless folded or absent, then ReLU if asked for.
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
    /// A convolution with a bias and no norm, weights `weight` and `bias` under `vb`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn with_bias(shape: ConvShape, init: Init, relu: bool, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get_with_hints(shape.weight_dims(), "weight", init)?;
        let bias = vb.get_with_hints(shape.outputs, "bias", Init::Const(0.0))?;
        Ok(Self { weight, bias: Some(bias), norm: None, stride: shape.stride, padding: shape.kernel / 2, relu })
    }

    /// A convolution without bias (`weight` under `conv`) and the batch norm after it (under `norm`).
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
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
            NormMode::Batch => {
                let config = BatchNormConfig { eps, ..BatchNormConfig::default() };
                Ok(block(weight, None, Some(batch_norm(shape.outputs, config, norm)?)))
            }
            NormMode::Folded => {
                let get = |name| norm.get(shape.outputs, name);
                let scale = (get("weight")? / (get("running_var")? + eps)?.sqrt()?)?;
                let bias = (get("bias")? - (get("running_mean")? * &scale)?)?;
                let weight = weight.broadcast_mul(&scale.reshape((shape.outputs, 1, 1, 1))?)?;
                Ok(block(weight, Some(bias), None))
            }
        }
    }

    /// Channels that leave.
    pub(super) fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Whether [`pack`](Self::pack) applies: f32 weights on the CPU and no norm of its own.
    pub(super) fn is_packable(&self) -> bool {
        self.norm.is_none() && self.weight.device().is_cpu() && self.weight.dtype() == DType::F32
    }

    /// For the packed path, with its own ReLU or, where a residual is added first, the caller's choice.
    pub(super) fn pack(&self, relu: Option<bool>) -> Result<PackedConv2d> {
        PackedConv2d::new(&self.weight, self.bias.as_ref(), self.stride, self.padding, relu.unwrap_or(self.relu))
    }

    /// The outputs of two convolutions over the same input, one after the other, without ReLU.
    pub(super) fn pack_both(&self, other: &Self) -> Result<PackedConv2d> {
        let bias = match (&self.bias, &other.bias) {
            (Some(a), Some(b)) => Some(Tensor::cat(&[a, b], 0)?),
            _ => None,
        };
        let weight = Tensor::cat(&[&self.weight, &other.weight], 0)?;
        PackedConv2d::new(&weight, bias.as_ref(), self.stride, self.padding, false)
    }

    /// `x`: `[batch, inputs, height, width]`; the result's sides are `ceil(side / stride)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = conv2d(x, &self.weight, self.bias.as_ref(), self.stride, self.padding)?;
        let y = match &self.norm {
            Some(norm) => norm.forward_t(&y, train)?,
            None => y,
        };
        if self.relu { y.relu() } else { Ok(y) }
    }
}

impl ConvShape {
    fn weight_dims(self) -> (usize, usize, usize, usize) {
        (self.outputs, self.inputs, self.kernel, self.kernel)
    }
}

/// Uniform within ±1/√inputs, as torch initialises `nn.Linear`; the bias starts at 0.
///
/// # Errors
/// When a weight is missing or misshapen.
pub fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let weight = vb.get_with_hints((outputs, inputs), "weight", Init::Uniform { lo: -bound, up: bound })?;
    Ok(Linear::new(weight, Some(vb.get_with_hints(outputs, "bias", Init::Const(0.0))?)))
}

/// A linear layer by the core's kernel.
pub(super) fn apply(layer: &Linear, x: &Tensor) -> Result<Tensor> {
    match layer.bias() {
        Some(bias) => lxmert_core::ops::linear(x, layer.weight(), bias),
        None => layer.forward(x),
    }
}
