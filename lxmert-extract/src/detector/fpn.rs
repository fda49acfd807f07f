//! The feature pyramid (Lin et al. 2017) adds coarse levels, semantically strong, to fine ones, spatially precise.

use super::config::{FpnConfig, ResNetConfig};
use super::layers::{ConvBlock, ConvShape};
use super::prepacked::PrepackedPyramid;
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use lxmert_core::ops::Precision;

/// The pyramid's convolutions.
#[derive(Debug, Clone)]
pub struct FeaturePyramid {
    /// 1×1 convolutions from a stage's width to the pyramid's.
    laterals: Vec<ConvBlock>,
    /// 3×3 convolutions on each merged level.
    outputs: Vec<ConvBlock>,
    stages: Vec<usize>,
    pool_level: bool,
}

impl FeaturePyramid {
    /// Weights `inner_blocks.i.0` and `layer_blocks.i.0` under `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &FpnConfig, body: &ResNetConfig, vb: VarBuilder) -> Result<Self> {
        let mut laterals = Vec::with_capacity(config.stages.len());
        let mut outputs = Vec::with_capacity(config.stages.len());
        for (i, &stage) in config.stages.iter().enumerate() {
            let lateral =
                ConvShape { inputs: body.stage_widths[stage - 1], outputs: config.channels, kernel: 1, stride: 1 };
            let output = ConvShape { inputs: config.channels, outputs: config.channels, kernel: 3, stride: 1 };
            laterals.push(ConvBlock::with_bias(
                lateral,
                kaiming_uniform(lateral),
                false,
                vb.pp(format!("inner_blocks.{i}.0")),
            )?);
            outputs.push(ConvBlock::with_bias(
                output,
                kaiming_uniform(output),
                false,
                vb.pp(format!("layer_blocks.{i}.0")),
            )?);
        }
        Ok(Self { laterals, outputs, stages: config.stages.clone(), pool_level: config.pool_level })
    }

    /// The same with prepacked weights.
    pub(super) fn prepack(&self, precision: Precision) -> Result<PrepackedPyramid> {
        let laterals = self
            .stages
            .iter()
            .zip(&self.laterals)
            .map(|(&stage, lateral)| Ok((stage, lateral.prepack(None, precision)?)));
        let outputs = self.outputs.iter().map(|output| output.prepack(None, precision));
        Ok(PrepackedPyramid {
            laterals: laterals.collect::<Result<_>>()?,
            outputs: outputs.collect::<Result<_>>()?,
            pool_level: self.pool_level,
        })
    }

    /// `stages`: every output of the backbone, finest first. Returns the levels, finest first, each `[batch, channels,
    /// height / stride, width / stride]`; the pooled level, if there is one, is last.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward_t(&self, stages: &[Tensor], train: bool) -> Result<Vec<Tensor>> {
        let mut levels = Vec::with_capacity(self.laterals.len() + 1);
        let mut above: Option<Tensor> = None;
        for i in (0..self.laterals.len()).rev() {
            let lateral = self.laterals[i].forward_t(&stages[self.stages[i] - 1], train)?;
            let merged = match &above {
                Some(coarser) => (upsample_nearest(coarser, lateral.dim(2)?, lateral.dim(3)?)? + lateral)?,
                None => lateral,
            };
            levels.push(self.outputs[i].forward_t(&merged, train)?);
            above = Some(merged);
        }
        levels.reverse();
        if self.pool_level {
            levels.push(subsample(&levels[levels.len() - 1])?);
        }
        Ok(levels)
    }
}

fn kaiming_uniform(shape: ConvShape) -> Init {
    // torchvision uses kaiming_uniform with a = 1, which is ±√(3 / fan_in).
    let bound = (3.0 / (shape.inputs * shape.kernel * shape.kernel) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// Nearest-neighbour upsampling to `height` × `width`. Its gradient adds to others; candle's own `upsample_nearest2d`
/// overwrites the gradient of an input that is used twice, as a merged level is.
fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if height.is_multiple_of(h) && width.is_multiple_of(w) {
        let (fy, fx) = (height / h, width / w);
        return x.reshape((n, c, h, 1, w, 1))?.broadcast_as((n, c, h, fy, w, fx))?.reshape((n, c, height, width));
    }
    // torch: source = floor(target · (input size / output size)), the ratio in f32
    let index = |from: usize, to: usize| {
        let ratio = from as f32 / to as f32;
        let source: Vec<u32> = (0..to).map(|i| ((i as f32 * ratio) as usize).min(from - 1) as u32).collect();
        Tensor::from_vec(source, to, x.device())
    };
    x.index_select(&index(h, height)?, 2)?.index_select(&index(w, width)?, 3)
}

/// 1×1 max pooling with stride 2: every second row and column.
fn subsample(x: &Tensor) -> Result<Tensor> {
    let pick = |side: usize| Tensor::arange_step(0u32, side as u32, 2, x.device());
    x.index_select(&pick(x.dim(2)?)?, 2)?.index_select(&pick(x.dim(3)?)?, 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn upsampling_repeats_and_accumulates_gradients() -> Result<()> {
        let x = Var::from_tensor(&Tensor::arange(0f32, 4f32, &Device::Cpu)?.reshape((1, 1, 2, 2))?)?;
        let up = upsample_nearest(&x, 4, 4)?;
        assert_eq!(up.flatten_all()?.to_vec1::<f32>()?[..8], [0., 0., 1., 1., 0., 0., 1., 1.]);
        let loss = (up.sum_all()? + x.sqr()?.sum_all()?)?;
        let grads = loss.backward()?;
        let grad = grads.get(&x).expect("x is used").flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(grad, [4., 6., 8., 10.]);
        Ok(())
    }

    #[test]
    fn odd_sizes_follow_torch() -> Result<()> {
        // python: F.interpolate(torch.arange(3.)[None, None, None], size=(1, 5), mode="nearest")
        let x = Tensor::arange(0f32, 3f32, &Device::Cpu)?.reshape((1, 1, 1, 3))?;
        assert_eq!(upsample_nearest(&x, 1, 5)?.flatten_all()?.to_vec1::<f32>()?, [0., 0., 1., 1., 2.]);
        assert_eq!(subsample(&x)?.flatten_all()?.to_vec1::<f32>()?, [0., 2.]);
        Ok(())
    }
}
