//! Body, pyramid, proposal head and region features for inference on the CPU: the same network as [`Network`]'s, over layers
//! with packed weights and channels-last maps (`lxmert_core::ops::PackedConv2d`).
//!
//! Additions and ReLUs happen inside the convolutions: a block's input is the residual of its last convolution, a
//! coarser level that of a lateral one. `LXMERT_KERNELS=reference` goes through [`Network`] instead; the parity tests
//! hold either way.

use super::Network;
use super::roi_heads::RoiPooler;
use super::rpn::LevelPrediction;
use candle_core::{Result, Tensor};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::ops::{BufferPool, FeatureMap, PackedConv2d, PackedLinear, Precision, Residual, use_reference};

/// The convolutional part of a detector with packed weights.
#[derive(Debug)]
pub struct PackedNetwork {
    stem: PackedConv2d,
    stages: Vec<Vec<PackedBlock>>,
    /// With the stage (1 and up) that each lateral convolution reads.
    laterals: Vec<(usize, PackedConv2d)>,
    outputs: Vec<PackedConv2d>,
    pool_level: bool,
    rpn_hidden: PackedConv2d,
    /// Logits and deltas in one.
    rpn_predictor: PackedConv2d,
    anchors_per_cell: usize,
    pooler: RoiPooler,
    /// The linear layers of the heads on regions.
    head: [PackedLinear; 2],
    pool: BufferPool,
}

/// A residual block; its last convolution adds the input or the projection of it, then applies the ReLU.
#[derive(Debug)]
pub(super) struct PackedBlock {
    pub convolutions: Vec<PackedConv2d>,
    pub projection: Option<PackedConv2d>,
}

impl PackedBlock {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let projected = self.projection.as_ref().map(|projection| projection.forward(x, Residual::None)).transpose()?;
        let identity = projected.as_ref().unwrap_or(x);
        let mut y: Option<FeatureMap> = None;
        for (i, convolution) in self.convolutions.iter().enumerate() {
            let last = i + 1 == self.convolutions.len();
            let residual = if last { Residual::Same(identity) } else { Residual::None };
            y = Some(convolution.forward(y.as_ref().unwrap_or(x), residual)?);
        }
        match y {
            Some(y) => Ok(y),
            None => candle_core::bail!("a residual block without convolutions"),
        }
    }
}

impl PackedNetwork {
    /// Packs the weights of `network` for products of `precision`, or gives nothing where the packed path does not apply: on
    /// another device than the CPU, in another type than f32, with batch norms that are not folded, or with
    /// `LXMERT_KERNELS=reference`.
    ///
    /// # Errors
    /// When the weights do not fit each other.
    pub fn new(network: &Network, precision: Precision) -> Result<Option<Self>> {
        if use_reference() || !network.body.is_packable() {
            return Ok(None);
        }
        let (rpn_hidden, rpn_predictor, anchors_per_cell) = network.rpn.pack(precision)?;
        let (stem, stages) = network.body.pack(precision)?;
        let (laterals, outputs, pool_level) = network.fpn.pack(precision)?;
        let channels = outputs.last().map_or(0, PackedConv2d::out_channels);
        let head = network.roi_heads.pack(channels, precision)?;
        let pooler = network.roi_heads.pooler.clone();
        let pool = BufferPool::new();
        Ok(Some(Self {
            stem,
            stages,
            laterals,
            outputs,
            pool_level,
            rpn_hidden,
            rpn_predictor,
            anchors_per_cell,
            pooler,
            head,
            pool,
        }))
    }

    /// `images`: `[batch, 3, height, width]`, normalised and padded. Gives the pyramid's levels, finest first, the pooled
    /// one last, and, `with_proposals`, what the proposal head says about each; the tensors lie channels-last in memory.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, images: &Tensor, with_proposals: bool) -> Result<(Vec<Tensor>, Vec<LevelPrediction>)> {
        let levels = self.levels(&self.stages(images)?)?;
        let wanted = levels.iter().filter(|_| with_proposals);
        let predictions = wanted.map(|level| self.predict(level)).collect::<Result<_>>()?;
        Ok((levels.into_iter().map(FeatureMap::into_tensor).collect::<Result<_>>()?, predictions))
    }

    /// The body's last stage alone, for `images` as in [`forward`](Self::forward).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn last_map(&self, images: &Tensor) -> Result<Tensor> {
        match self.stages(images)?.pop() {
            Some(map) => map.into_tensor(),
            None => candle_core::bail!("a body without stages"),
        }
    }

    /// Region features, as [`RoiHeads::features`](super::roi_heads::RoiHeads::features) of the pooled `boxes` of each image (in
    /// pixels of the resized image): `[boxes of all images, representation_size]`. `levels` without the pooled one.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn features(&self, levels: &[Tensor], boxes: &[Vec<BoxXyxy>], padded_size: (usize, usize)) -> Result<Tensor> {
        let pooled = self.pooler.packed(levels, boxes, padded_size, &self.pool)?;
        let [fc6, fc7] = &self.head;
        let inner = fc6.forward(&pooled)?;
        drop(pooled);
        fc7.forward(&inner)?.into_tensor()?.flatten_from(1)
    }

    fn stages(&self, images: &Tensor) -> Result<Vec<FeatureMap>> {
        let stem = self.stem.forward(&FeatureMap::from_tensor(images, &self.pool)?, Residual::None)?;
        let pooled = stem.max_pool2d(3, 2, 1)?;
        drop(stem);
        let mut outputs: Vec<FeatureMap> = Vec::with_capacity(self.stages.len());
        for blocks in &self.stages {
            let mut x: Option<FeatureMap> = None;
            for block in blocks {
                x = Some(block.forward(x.as_ref().or(outputs.last()).unwrap_or(&pooled))?);
            }
            outputs.extend(x);
        }
        Ok(outputs)
    }

    fn levels(&self, stages: &[FeatureMap]) -> Result<Vec<FeatureMap>> {
        let mut levels = Vec::with_capacity(self.laterals.len() + 1);
        let mut above: Option<FeatureMap> = None;
        for ((stage, lateral), output) in self.laterals.iter().zip(&self.outputs).rev() {
            let Some(stage) = stages.get(stage - 1) else { candle_core::bail!("the body has no stage {stage}") };
            let residual = above.as_ref().map_or(Residual::None, Residual::Upsampled);
            let merged = lateral.forward(stage, residual)?;
            levels.push(output.forward(&merged, Residual::None)?);
            above = Some(merged);
        }
        levels.reverse();
        if let Some(coarsest) = levels.last().filter(|_| self.pool_level) {
            let pooled = coarsest.max_pool2d(1, 2, 0)?;
            levels.push(pooled);
        }
        Ok(levels)
    }

    fn predict(&self, level: &FeatureMap) -> Result<LevelPrediction> {
        let hidden = self.rpn_hidden.forward(level, Residual::None)?;
        let both = self.rpn_predictor.forward(&hidden, Residual::None)?.into_tensor()?;
        let anchors = self.anchors_per_cell;
        Ok(LevelPrediction { logits: both.narrow(1, 0, anchors)?, deltas: both.narrow(1, anchors, 4 * anchors)? })
    }
}
