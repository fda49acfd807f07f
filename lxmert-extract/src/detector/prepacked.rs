//! The detector's parts with prepacked weights: residual stages, the feature pyramid, the region head.

use super::ops::max_pool_map;
use candle_core::Result;
use lxmert_core::ops::{FeatureMap, PrepackedConv2d, Residual};

/// The feature pyramid.
#[derive(Debug)]
pub(super) struct PrepackedPyramid {
    /// The lateral convolutions, each with the stage (1 and up) that it reads.
    pub laterals: Vec<(usize, PrepackedConv2d)>,
    pub outputs: Vec<PrepackedConv2d>,
    pub pool_level: bool,
}

impl PrepackedPyramid {
    /// The levels, finest first, from the backbone's `stages`.
    pub fn levels(&self, stages: &[FeatureMap]) -> Result<Vec<FeatureMap>> {
        let mut levels = Vec::with_capacity(self.laterals.len() + 1);
        let mut above: Option<FeatureMap> = None;
        for ((stage, lateral), output) in self.laterals.iter().zip(&self.outputs).rev() {
            let Some(stage) = stages.get(stage - 1) else { candle_core::bail!("the backbone has no stage {stage}") };
            let residual = above.as_ref().map_or(Residual::None, Residual::Upsampled);
            let merged = lateral.forward(stage, residual)?;
            levels.push(output.forward(&merged, Residual::None)?);
            above = Some(merged);
        }
        levels.reverse();
        if let Some(coarsest) = levels.last().filter(|_| self.pool_level) {
            let pooled = max_pool_map(coarsest, 1, 2, 0)?;
            levels.push(pooled);
        }
        Ok(levels)
    }
}

/// Computes the feature of a pooled region.
#[derive(Debug)]
pub(super) enum PrepackedHead {
    TwoLinear(Box<[PrepackedConv2d; 2]>),
    /// Runs on a region's cells sorted by the dilation; see [`RoiPool`](super::roi_pool::RoiPool).
    Res5 {
        stage: PrepackedStage,
        dilation: usize,
    },
}

/// Residual blocks, one after another.
#[derive(Debug)]
pub(super) struct PrepackedStage(pub Vec<PrepackedBlock>);

impl PrepackedStage {
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.with_last(x, |block, x| block.forward(x))
    }

    /// The means of [`forward`](Self::forward)'s result over every `pixels` pixels.
    pub fn forward_means(&self, x: &FeatureMap, pixels: usize) -> Result<Vec<f32>> {
        self.with_last(x, |block, x| block.with_last(x, |conv, y, residual| conv.forward_means(y, residual, pixels)))
    }

    /// All blocks but the last, then what `last` makes of the last and its input.
    fn with_last<T>(&self, x: &FeatureMap, last: impl FnOnce(&PrepackedBlock, &FeatureMap) -> Result<T>) -> Result<T> {
        let Some((block, before)) = self.0.split_last() else { candle_core::bail!("a residual stage without blocks") };
        let mut y: Option<FeatureMap> = None;
        for block in before {
            y = Some(block.forward(y.as_ref().unwrap_or(x))?);
        }
        last(block, y.as_ref().unwrap_or(x))
    }
}

/// A residual block. Its last convolution adds the input or its projection, then applies the ReLU.
#[derive(Debug)]
pub(super) struct PrepackedBlock {
    pub convolutions: Vec<PrepackedConv2d>,
    pub projection: Option<PrepackedConv2d>,
}

impl PrepackedBlock {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.with_last(x, PrepackedConv2d::forward)
    }

    /// All convolutions but the last, then what `last` makes of the last, its input and its residual.
    fn with_last<T>(
        &self,
        x: &FeatureMap,
        last: impl FnOnce(&PrepackedConv2d, &FeatureMap, Residual) -> Result<T>,
    ) -> Result<T> {
        let Some((convolution, before)) = self.convolutions.split_last() else {
            candle_core::bail!("a residual block without convolutions")
        };
        let mut y: Option<FeatureMap> = None;
        for convolution in before {
            y = Some(convolution.forward(y.as_ref().unwrap_or(x), Residual::None)?);
        }
        let residual = match &self.projection {
            Some(projection) => Residual::Projected(x, projection),
            None => Residual::Same(x),
        };
        last(convolution, y.as_ref().unwrap_or(x), residual)
    }
}
