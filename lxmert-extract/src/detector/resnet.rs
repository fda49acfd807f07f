//! The backbone: a residual network (He et al. 2016). A "C4" detector also runs its last stage on each region; see
//! [`roi_heads`](super::roi_heads). Key names are torchvision's.

use super::config::{Block, ResNetConfig};
use super::layers::{ConvBlock, ConvShape, NormMode};
use super::ops::max_pool2d;
use super::prepacked::{PrepackedBlock, PrepackedStage};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::ops::{Precision, PrepackedConv2d};

/// The residual network without its classifier.
#[derive(Debug, Clone)]
pub struct ResNet {
    stem: ConvBlock,
    ceil_mode: bool,
    stages: Vec<Stage>,
}

/// Residual blocks of one width, one after another.
#[derive(Debug, Clone)]
pub struct Stage(Vec<ResidualBlock>);

/// Sizes of a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageShape {
    /// Number of blocks.
    pub blocks: usize,
    /// Input channels.
    pub inputs: usize,
    /// Channels of the inner convolutions (ignored by [`Block::Basic`]).
    pub bottleneck_width: usize,
    /// Output channels.
    pub outputs: usize,
    /// Stride of the first block.
    pub stride: usize,
}

/// A residual block: convolutions, plus the input or its projection, then ReLU.
#[derive(Debug, Clone)]
struct ResidualBlock {
    convolutions: Vec<ConvBlock>,
    projection: Option<ConvBlock>,
}

impl ResidualBlock {
    /// `shape.inputs` and `shape.stride` are those of this block.
    fn new(config: &ResNetConfig, shape: StageShape, mode: NormMode, vb: VarBuilder) -> Result<Self> {
        let StageShape { inputs, bottleneck_width: inner, outputs, stride, .. } = shape;
        // (output channels, kernel, stride) of each convolution in turn
        let plan = match config.block {
            Block::Bottleneck if config.stride_in_1x1 => vec![(inner, 1, stride), (inner, 3, 1), (outputs, 1, 1)],
            Block::Bottleneck => vec![(inner, 1, 1), (inner, 3, stride), (outputs, 1, 1)],
            Block::Basic => vec![(outputs, 3, stride), (outputs, 3, 1)],
        };
        let conv = |shape, relu, conv: VarBuilder, norm: VarBuilder| {
            ConvBlock::with_norm(shape, relu, config.batch_norm_eps, mode, conv, norm)
        };
        let mut convolutions = Vec::with_capacity(plan.len());
        let mut width = inputs;
        for (i, &(outputs, kernel, stride)) in plan.iter().enumerate() {
            let shape = ConvShape { inputs: width, outputs, kernel, stride };
            let relu = i + 1 < plan.len();
            let n = i + 1;
            convolutions.push(conv(shape, relu, vb.pp(format!("conv{n}")), vb.pp(format!("bn{n}")))?);
            width = outputs;
        }
        let projection = if stride != 1 || inputs != outputs {
            let shape = ConvShape { inputs, outputs, kernel: 1, stride };
            Some(conv(shape, false, vb.pp("downsample.0"), vb.pp("downsample.1"))?)
        } else {
            None
        };
        Ok(Self { convolutions, projection })
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut y = x.clone();
        for convolution in &self.convolutions {
            y = convolution.forward_t(&y, train)?;
        }
        let identity = match &self.projection {
            Some(projection) => projection.forward_t(x, train)?,
            None => x.clone(),
        };
        (y + identity)?.relu()
    }
}

impl Stage {
    /// Blocks `0`, `1`, … under `vb`, of the kind in `config`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &ResNetConfig, shape: StageShape, mode: NormMode, vb: VarBuilder) -> Result<Self> {
        let block = |index| {
            let first = index == 0;
            let shape = StageShape {
                inputs: if first { shape.inputs } else { shape.outputs },
                stride: if first { shape.stride } else { 1 },
                ..shape
            };
            ResidualBlock::new(config, shape, mode, vb.pp(index))
        };
        Ok(Self((0..shape.blocks).map(block).collect::<Result<_>>()?))
    }

    /// `x`: `[batch, inputs, height, width]`. Returns `[batch, outputs, height / stride, width / stride]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.0.iter().try_fold(x.clone(), |x, block| block.forward_t(&x, train))
    }

    /// The same with prepacked weights.
    pub(super) fn prepack(&self, precision: Precision) -> Result<PrepackedStage> {
        let block = |block: &ResidualBlock| {
            let count = block.convolutions.len();
            let prepack = |(i, conv): (usize, &ConvBlock)| {
                // Winograd's transforms magnify the rounding to bf16, and the errors of the blocks add up.
                let precision = if conv.is_winograd(precision)? { Precision::F32 } else { precision };
                // The block's last ReLU follows the addition, which happens in the last convolution.
                conv.prepack((i + 1 == count).then_some(true), precision)
            };
            Ok(PrepackedBlock {
                convolutions: block.convolutions.iter().enumerate().map(prepack).collect::<Result<_>>()?,
                projection: block.projection.as_ref().map(|p| p.prepack(None, precision)).transpose()?,
            })
        };
        Ok(PrepackedStage(self.0.iter().map(block).collect::<Result<_>>()?))
    }
}

impl ResNet {
    /// Whether [`prepack`](Self::prepack) applies.
    pub(super) fn is_prepackable(&self) -> bool {
        self.stem.is_prepackable()
    }

    /// The stem, whether its pooling is in ceil mode, and the stages, with prepacked weights.
    pub(super) fn prepack(&self, precision: Precision) -> Result<(PrepackedConv2d, bool, Vec<PrepackedStage>)> {
        let stages = self.stages.iter().map(|stage| stage.prepack(precision)).collect::<Result<_>>()?;
        Ok((self.stem.prepack(None, precision)?, self.ceil_mode, stages))
    }

    /// Weights `conv1`, `bn1`, `layer1.0.conv1` … under `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &ResNetConfig, mode: NormMode, vb: VarBuilder) -> Result<Self> {
        let shape = ConvShape { inputs: 3, outputs: config.stem_width, kernel: 7, stride: 2 };
        let stem = ConvBlock::with_norm(shape, true, config.batch_norm_eps, mode, vb.pp("conv1"), vb.pp("bn1"))?;
        let mut stages = Vec::with_capacity(config.blocks.len());
        let mut inputs = config.stem_width;
        for (i, &blocks) in config.blocks.iter().enumerate() {
            let outputs = config.stage_widths[i];
            let bottleneck_width = config.bottleneck_widths.get(i).copied().unwrap_or(0);
            let shape = StageShape { blocks, inputs, bottleneck_width, outputs, stride: if i == 0 { 1 } else { 2 } };
            stages.push(Stage::new(config, shape, mode, vb.pp(format!("layer{}", i + 1)))?);
            inputs = outputs;
        }
        Ok(Self { stem, ceil_mode: config.ceil_mode, stages })
    }

    /// `images`: `[batch, 3, height, width]`, normalised. Returns every stage's output, finest first: `[batch,
    /// stage_widths[i], height / (4·2^i), width / (4·2^i)]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward_t(&self, images: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        let mut x = self.pool(&self.stem_t(images, train)?)?;
        let mut outputs = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = stage.forward_t(&x, train)?;
            outputs.push(x.clone());
        }
        Ok(outputs)
    }

    /// Only the 7×7 convolution with stride 2.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn stem_t(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.stem.forward_t(images, train)
    }

    /// The 3×3 max pooling with stride 2 after the stem.
    ///
    /// # Errors
    /// Returns an error if `x` is not a batch of maps.
    pub fn pool(&self, x: &Tensor) -> Result<Tensor> {
        if self.ceil_mode {
            // Outside the border a window sees 0, and no value after a ReLU is smaller. A single row or column is
            // smaller than a window.
            let border = |side: usize| if side == 1 { 2 } else { 1 };
            let padded = x.pad_with_zeros(2, 0, border(x.dim(2)?))?.pad_with_zeros(3, 0, border(x.dim(3)?))?;
            return max_pool2d(&padded, 3, 2, 0);
        }
        max_pool2d(x, 3, 2, 1)
    }
}
