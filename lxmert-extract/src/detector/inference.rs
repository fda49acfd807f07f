//! The convolutional part of a detector for inference on the CPU: the same network as [`Network`]'s, with prepacked
//! weights and channels-last maps (`lxmert_core::ops::PrepackedConv2d`). It covers backbone, pyramid if there is one,
//! proposal head and region features.
//!
//! Additions and ReLUs happen inside the convolutions: a block's input is the residual of its last convolution, a
//! coarser level that of a lateral one. `LXMERT_KERNELS=reference` runs [`Network`] instead; the parity tests hold
//! either way.

use super::Network;
use super::ops::{max_pool_map, max_pool_map_ceil};
use super::prepacked::{PrepackedHead, PrepackedPyramid, PrepackedStage};
use super::roi_heads::RoiPooler;
use super::rpn::LevelPrediction;
use candle_core::{Device, Result, Tensor};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::ops::{BufferPool, FeatureMap, Precision, PrepackedConv2d, Residual, use_reference};

/// The convolutional part of a detector with prepacked weights.
#[derive(Debug)]
pub struct PrepackedNetwork {
    stem: PrepackedConv2d,
    ceil_mode: bool,
    stages: Vec<PrepackedStage>,
    fpn: Option<PrepackedPyramid>,
    rpn_hidden: PrepackedConv2d,
    /// Logits and deltas in one convolution.
    rpn_predictor: PrepackedConv2d,
    anchors_per_cell: usize,
    pooler: RoiPooler,
    head: PrepackedHead,
    pool: BufferPool,
}

impl PrepackedNetwork {
    /// Prepacks the weights of `network` for products in `precision`. Returns `None` if that is impossible: on a device
    /// other than the CPU, with a type other than f32, with batch norms that are not folded, or with
    /// `LXMERT_KERNELS=reference`.
    ///
    /// # Errors
    /// Returns an error if the shapes of the weights do not match.
    pub fn new(network: &Network, precision: Precision) -> Result<Option<Self>> {
        if use_reference() || !network.body.is_prepackable() {
            return Ok(None);
        }
        let (rpn_hidden, rpn_predictor, anchors_per_cell) = network.rpn.prepack(precision)?;
        let (stem, ceil_mode, stages) = network.body.prepack(precision)?;
        let fpn = network.fpn.as_ref().map(|fpn| fpn.prepack(precision)).transpose()?;
        let head = network.roi_heads.prepack(precision)?;
        let pooler = network.roi_heads.pooler.clone();
        let pool = BufferPool::new();
        Ok(Some(Self { stem, ceil_mode, stages, fpn, rpn_hidden, rpn_predictor, anchors_per_cell, pooler, head, pool }))
    }

    /// `images`: `[batch, 3, height, width]`, normalised and padded. Returns the levels, finest first and the pooled
    /// one last, and, if `with_proposals`, the proposal head's output for each. The tensors are channels-last in
    /// memory.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(&self, images: &Tensor, with_proposals: bool) -> Result<(Vec<Tensor>, Vec<LevelPrediction>)> {
        let mut stages = self.stages(images)?;
        let levels = match &self.fpn {
            Some(fpn) => fpn.levels(&stages)?,
            None => stages.pop().into_iter().collect(),
        };
        drop(stages);
        let wanted = levels.iter().filter(|_| with_proposals);
        let predictions = wanted.map(|level| self.predict(level)).collect::<Result<_>>()?;
        Ok((levels.into_iter().map(FeatureMap::into_tensor).collect::<Result<_>>()?, predictions))
    }

    /// The backbone's last stage, for `images` as in [`forward`](Self::forward).
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn last_map(&self, images: &Tensor) -> Result<Tensor> {
        match self.stages(images)?.pop() {
            Some(map) => map.into_tensor(),
            None => candle_core::bail!("a backbone without stages"),
        }
    }

    /// Region features, as [`RoiHeads::features`](super::roi_heads::RoiHeads::features) of the pooled `boxes` of each
    /// image (in pixels of the resized image): `[boxes of all images, representation_size]`. `levels` must not include
    /// the pooled one.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn features(&self, levels: &[Tensor], boxes: &[Vec<BoxXyxy>], padded_size: (usize, usize)) -> Result<Tensor> {
        let assigned = self.pooler.assign(levels, boxes, padded_size)?;
        let total = assigned.regions.len();
        match &self.head {
            PrepackedHead::TwoLinear(layers) => {
                let [fc6, fc7] = layers.as_ref();
                let pooled = self.pooler.pool_map(levels, &assigned, 0..total, 1, &self.pool)?;
                let inner = fc6.forward(&pooled, Residual::None)?;
                drop(pooled);
                fc7.forward(&inner, Residual::None)?.into_tensor()?.flatten_from(1)
            }
            PrepackedHead::Res5 { stage, dilation } => {
                let mut means = Vec::new();
                for first in (0..total).step_by(REGIONS_AT_ONCE) {
                    let some = first..(first + REGIONS_AT_ONCE).min(total);
                    let pooled = self.pooler.pool_map(levels, &assigned, some.clone(), *dilation, &self.pool)?;
                    let [maps, height, width, _] = pooled.shape();
                    means.extend(stage.forward_means(&pooled, maps * height * width / some.len())?);
                }
                let width = means.len() / total.max(1);
                Tensor::from_vec(means, (total, width), &Device::Cpu)
            }
        }
    }

    fn stages(&self, images: &Tensor) -> Result<Vec<FeatureMap>> {
        let stem = self.stem.forward(&FeatureMap::from_tensor(images, &self.pool)?, Residual::None)?;
        let pooled = if self.ceil_mode { max_pool_map_ceil(&stem, 3, 2)? } else { max_pool_map(&stem, 3, 2, 1)? };
        drop(stem);
        let mut outputs: Vec<FeatureMap> = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let output = stage.forward(outputs.last().unwrap_or(&pooled))?;
            if self.fpn.is_none() {
                outputs.clear();
            }
            outputs.push(output);
        }
        Ok(outputs)
    }

    fn predict(&self, level: &FeatureMap) -> Result<LevelPrediction> {
        let hidden = self.rpn_hidden.forward(level, Residual::None)?;
        let both = self.rpn_predictor.forward(&hidden, Residual::None)?.into_tensor()?;
        let anchors = self.anchors_per_cell;
        Ok(LevelPrediction { logits: both.narrow(1, 0, anchors)?, deltas: both.narrow(1, anchors, 4 * anchors)? })
    }
}

/// How many regions pass a residual stage together: at 14 × 14 cells of 2048 channels each takes 1.6 MB per map.
const REGIONS_AT_ONCE: usize = 36;
