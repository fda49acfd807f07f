//! The body: a residual network (He et al. 2016), with the stride in a bottleneck's 3×3
//! convolution as torchvision has it ("v1.5"). Key names are torchvision's.

use super::config::{Block, ResNetConfig};
use super::inference::PackedBlock;
use super::layers::{ConvBlock, ConvShape, NormMode};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::ops::{PackedConv2d, Precision, max_pool2d};

/// The residual network without its classifier.
#[derive(Debug, Clone)]
pub struct ResNet {
    stem: ConvBlock,
    stages: Vec<Vec<ResidualBlock>>,
}

/// A residual block: convolutions, plus the input or its projection, then ReLU.
#[derive(Debug, Clone)]
struct ResidualBlock {
    convolutions: Vec<ConvBlock>,
    projection: Option<ConvBlock>,
}

impl ResidualBlock {
    fn new(
        config: &ResNetConfig,
        stage: usize,
        index: usize,
        inputs: usize,
        mode: NormMode,
        vb: VarBuilder,
    ) -> Result<Self> {
        let outputs = config.stage_widths[stage];
        let stride = if index == 0 && stage > 0 { 2 } else { 1 };
        // (channels out, kernel, stride) of each convolution in turn
        let plan = match config.block {
            Block::Bottleneck => {
                let inner = config.bottleneck_widths[stage];
                vec![(inner, 1, 1), (inner, 3, stride), (outputs, 1, 1)]
            }
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

impl ResNet {
    /// Whether [`pack`](Self::pack) applies.
    pub(super) fn is_packable(&self) -> bool {
        self.stem.is_packable()
    }

    /// Stem and stages for the packed path.
    pub(super) fn pack(&self, precision: Precision) -> Result<(PackedConv2d, Vec<Vec<PackedBlock>>)> {
        let block = |block: &ResidualBlock| {
            let count = block.convolutions.len();
            let pack = |(i, conv): (usize, &ConvBlock)| {
                // Winograd's transforms multiply the rounding to bf16, and the errors of the blocks add up.
                let precision = if conv.is_winograd(precision)? { Precision::F32 } else { precision };
                // The block's last ReLU comes after the addition, which the last convolution does.
                conv.pack((i + 1 == count).then_some(true), precision)
            };
            Ok(PackedBlock {
                convolutions: block.convolutions.iter().enumerate().map(pack).collect::<Result<_>>()?,
                projection: block.projection.as_ref().map(|p| p.pack(None, precision)).transpose()?,
            })
        };
        let stage = |blocks: &Vec<ResidualBlock>| blocks.iter().map(block).collect::<Result<_>>();
        Ok((self.stem.pack(None, precision)?, self.stages.iter().map(stage).collect::<Result<_>>()?))
    }

    /// Weights `conv1`, `bn1`, `layer1.0.conv1` … under `vb`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &ResNetConfig, mode: NormMode, vb: VarBuilder) -> Result<Self> {
        let shape = ConvShape { inputs: 3, outputs: config.stem_width, kernel: 7, stride: 2 };
        let stem = ConvBlock::with_norm(shape, true, config.batch_norm_eps, mode, vb.pp("conv1"), vb.pp("bn1"))?;
        let mut stages = Vec::with_capacity(config.blocks.len());
        let mut width = config.stem_width;
        for (stage, &blocks) in config.blocks.iter().enumerate() {
            let vb = vb.pp(format!("layer{}", stage + 1));
            let blocks = (0..blocks)
                .map(|index| {
                    let inputs = if index == 0 { width } else { config.stage_widths[stage] };
                    ResidualBlock::new(config, stage, index, inputs, mode, vb.pp(index))
                })
                .collect::<Result<Vec<_>>>()?;
            stages.push(blocks);
            width = config.stage_widths[stage];
        }
        Ok(Self { stem, stages })
    }

    /// `images`: `[batch, 3, height, width]`, normalised. Gives every stage's output, finest first:
    /// `[batch, stage_widths[i], height / (4·2^i), width / (4·2^i)]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_t(&self, images: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        let mut x = max_pool2d(&self.stem.forward_t(images, train)?, 3, 2, 1)?;
        let mut outputs = Vec::with_capacity(self.stages.len());
        for blocks in &self.stages {
            for block in blocks {
                x = block.forward_t(&x, train)?;
            }
            outputs.push(x.clone());
        }
        Ok(outputs)
    }
}
