//! The heads on proposed regions: pooling from the matching level, then two linear layers or a residual stage (whose
//! output is *the* region feature), then class logits, box deltas and attributes.

use super::config::{AttributeConfig, BoxHead, DetectorConfig, PoolerType, RoiHeadsConfig};
use super::layers::{NormMode, apply, linear};
use super::prepacked::PrepackedHead;
use super::resnet::{Stage, StageShape};
use super::roi_align::{LevelRegion, RoiAlign, roi_align, roi_align_levels};
use super::roi_pool::{RoiPool, roi_pool};
use candle_core::{Result, Tensor};
use candle_nn::{Init, Linear, VarBuilder};
use lxmert_core::boxes::{BoxXyxy, area};
use lxmert_core::ops::cuda::launches::regions::{Pooling, PoolingRule};
use lxmert_core::ops::{BufferPool, FeatureMap, Precision, PrepackedConv2d};

/// Pools boxes from the level that matches their size (Lin et al. 2017, eq. 1), or from the only one.
#[derive(Debug, Clone)]
pub struct RoiPooler {
    config: RoiHeadsConfig,
    /// 1 / stride of the only level.
    scale: Option<f32>,
}

impl RoiPooler {
    /// The pooler that `config` describes.
    pub fn new(config: &DetectorConfig) -> Self {
        // The stem and each stage but the first halve the size, and so does the stem's pooling.
        let stride = || (4 << (config.backbone.blocks.len() - 1)) as f32;
        Self { config: config.roi_heads.clone(), scale: config.fpn.is_none().then(|| stride().recip()) }
    }

    /// `levels`: those to pool from, finest first, each `[batch, channels, rows, columns]`; `boxes`: for each image of
    /// the batch, in pixels of the resized image. Returns `[boxes of all images, channels, pool_size, pool_size]` on
    /// the levels' device. [`PoolerType::RoiPool`] runs on the CPU and has no gradient.
    ///
    /// A pyramid level's scale is 2^round(log2(rows / padded height)), which is 1 / stride.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(&self, levels: &[Tensor], boxes: &[Vec<BoxXyxy>], padded_size: (usize, usize)) -> Result<Tensor> {
        let (channels, size) = (levels[0].dim(1)?, self.config.pool_size);
        let assigned = self.assign(levels, boxes, padded_size)?;
        let total = assigned.regions.len();
        if total == 0 {
            return Tensor::zeros((0, channels, size, size), levels[0].dtype(), levels[0].device());
        }
        if self.config.pooler_type == PoolerType::RoiPool {
            return self.pool_map(levels, &assigned, 0..total, 1, &BufferPool::new())?.into_tensor();
        }
        let mut pooled = Vec::new();
        let mut place = vec![0u32; total]; // the index of each box's result in `pooled`
        let mut done = 0;
        for (index, (level, scale)) in levels.iter().zip(&assigned.scales).enumerate() {
            let mut rois = Vec::new();
            for (place, region) in place.iter_mut().zip(&assigned.regions).filter(|(_, region)| region.level == index) {
                rois.push(region.image as f32);
                rois.extend(region.xyxy);
                *place = done;
                done += 1;
            }
            if !rois.is_empty() {
                let rois = Tensor::new(rois, level.device())?.reshape(((), 5))?;
                pooled.push(roi_align(level, &rois, self.roi_align(*scale))?);
            }
        }
        let pooled = Tensor::cat(&pooled, 0)?;
        if place.iter().enumerate().all(|(i, p)| i == *p as usize) {
            return Ok(pooled);
        }
        pooled.index_select(&Tensor::from_vec(place, total, pooled.device())?, 0)
    }

    /// The same for some of the regions, for inference on the CPU, channels-last; [`RoiPool`] sorts a region's cells by
    /// `dilation`.
    pub(super) fn pool_map(
        &self,
        levels: &[Tensor],
        assigned: &Assigned,
        some: std::ops::Range<usize>,
        dilation: usize,
        pool: &BufferPool,
    ) -> Result<FeatureMap> {
        let regions = &assigned.regions[some];
        match self.config.pooler_type {
            PoolerType::RoiAlign => {
                let options = assigned.scales.iter().map(|&scale| self.roi_align(scale));
                roi_align_levels(&levels.iter().zip(options).collect::<Vec<_>>(), regions, pool)
            }
            PoolerType::RoiPool => {
                let output_size = self.config.pool_size;
                let options = RoiPool { spatial_scale: assigned.scales[0], output_size, dilation };
                roi_pool(&levels[0], regions, options, pool)
            }
        }
    }

    /// [`forward`](Self::forward) as the device's kernels compute it, for one image.
    ///
    /// # Errors
    /// Returns an error if a level has another rank.
    pub fn pooling(&self, levels: &[Tensor], padded_size: (usize, usize)) -> Result<Pooling> {
        let exponents = exponents(levels, padded_size)?;
        let RoiHeadsConfig { canonical_level, canonical_box_size: canonical_size, .. } = self.config;
        let finest = -exponents.first().copied().unwrap_or(0.0);
        let sampling_ratio = self.config.sampling_ratio as u32;
        let sizes = levels.iter().zip(self.scales(&exponents));
        Ok(Pooling {
            levels: sizes
                .map(|(level, scale)| Ok((level.dim(2)? as u32, level.dim(3)? as u32, scale)))
                .collect::<Result<_>>()?,
            channels: levels.first().map_or(Ok(0), |level| level.dim(1))? as u32,
            bins: self.config.pool_size as u32,
            rule: match self.config.pooler_type {
                PoolerType::RoiAlign => PoolingRule::Align { sampling_ratio, canonical_level, canonical_size, finest },
                PoolerType::RoiPool => PoolingRule::Max,
            },
        })
    }

    /// Scale from pixels of the resized image to each level's cells.
    fn scales(&self, exponents: &[f32]) -> Vec<f32> {
        match self.scale {
            Some(scale) => vec![scale],
            None => exponents.iter().map(|exponent| exponent.exp2()).collect(),
        }
    }

    fn roi_align(&self, spatial_scale: f32) -> RoiAlign {
        let RoiHeadsConfig { pool_size: output_size, sampling_ratio, .. } = self.config;
        RoiAlign { spatial_scale, output_size, sampling_ratio }
    }

    /// Finds the level of each box.
    pub(super) fn assign(
        &self,
        levels: &[Tensor],
        boxes: &[Vec<BoxXyxy>],
        padded_size: (usize, usize),
    ) -> Result<Assigned> {
        let exponents = exponents(levels, padded_size)?;
        let finest = -exponents[0];
        let config = &self.config;
        let level_of = |b: &BoxXyxy| {
            let level = (config.canonical_level + (area(b).sqrt() / config.canonical_box_size).log2() + 1e-6).floor();
            // A box with no area has level -∞, which the clamp turns into the finest.
            ((level - finest).max(0.0) as usize).min(levels.len() - 1)
        };
        let region = |(image, b): (usize, &BoxXyxy)| LevelRegion { level: level_of(b), image, xyxy: *b };
        let all = boxes.iter().enumerate().flat_map(|(image, boxes)| boxes.iter().map(move |b| (image, b)));
        Ok(Assigned { scales: self.scales(&exponents), regions: all.map(region).collect() })
    }
}

/// log2 of each level's scale.
fn exponents(levels: &[Tensor], padded_size: (usize, usize)) -> Result<Vec<f32>> {
    levels.iter().map(|level| Ok((level.dim(2)? as f32 / padded_size.0 as f32).log2().round())).collect()
}

/// The scale of each level, and which level each box is pooled from.
pub(super) struct Assigned {
    scales: Vec<f32>,
    pub regions: Vec<LevelRegion>,
}

/// The heads' weights.
#[derive(Debug, Clone)]
pub struct RoiHeads {
    /// Pooling.
    pub pooler: RoiPooler,
    head: Head,
    class_logits: Linear,
    box_deltas: Linear,
    attributes: Vec<AttributeHead>,
}

/// Computes the feature of a pooled region.
#[derive(Debug, Clone)]
enum Head {
    TwoLinear([Linear; 2]),
    Res5 { stage: Stage, dilation: usize },
}

#[derive(Debug, Clone)]
enum AttributeHead {
    Linear(Linear),
    /// On the feature and the embedding `[classes, embedding_size]` of the most probable class.
    ObjectEmbedding {
        embedding: Tensor,
        hidden: Linear,
        scores: Linear,
    },
}

impl AttributeHead {
    fn new(config: &DetectorConfig, attribute: &AttributeConfig, vb: &VarBuilder) -> Result<Self> {
        let (size, values) = (config.roi_heads.representation_size, attribute.classes.len());
        let Some(embedding) = &attribute.object_embedding else {
            return Ok(Self::Linear(linear(size, values, vb.pp("attributes").pp(&attribute.name))?));
        };
        let vb = vb.pp("box_predictor");
        let table = (config.num_classes(), embedding.embedding_size);
        let init = Init::Randn { mean: 0.0, stdev: 0.01 };
        Ok(Self::ObjectEmbedding {
            embedding: vb.pp("cls_embedding").get_with_hints(table, "weight", init)?,
            hidden: linear(size + embedding.embedding_size, embedding.hidden_size, vb.pp("fc_attr"))?,
            scores: linear(embedding.hidden_size, values + 1, vb.pp("attr_score"))?,
        })
    }

    fn logits(&self, features: &Tensor, class_logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(layer) => apply(layer, features),
            Self::ObjectEmbedding { embedding, hidden, scores } => {
                // Background included; it has an embedding like any class.
                let classes = embedding.index_select(&class_logits.argmax(1)?, 0)?;
                apply(scores, &apply(hidden, &Tensor::cat(&[features, &classes], 1)?)?.relu()?)
            }
        }
    }
}

/// The predictors' outputs for each region.
#[derive(Debug, Clone)]
pub struct RegionPrediction {
    /// `[regions, classes]`.
    pub class_logits: Tensor,
    /// `[regions, 4·classes]`, coordinate fastest.
    pub box_deltas: Tensor,
    /// Logits of each attribute: `[regions, values]`, preceded by one for "no attribute" if the head has it.
    pub attribute_logits: Vec<Tensor>,
}

impl RoiHeads {
    /// Weights `box_head.fc6` and `box_head.fc7`, or `res5`, then `box_predictor.cls_score`, `box_predictor.bbox_pred`
    /// and those of the attributes, all under `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &DetectorConfig, mode: NormMode, vb: VarBuilder) -> Result<Self> {
        let heads = &config.roi_heads;
        let (channels, size, classes) = (config.level_channels(), heads.representation_size, config.num_classes());
        let head = match &heads.box_head {
            BoxHead::TwoLinear => Head::TwoLinear([
                linear(channels * heads.pool_size * heads.pool_size, size, vb.pp("box_head.fc6"))?,
                linear(size, size, vb.pp("box_head.fc7"))?,
            ]),
            BoxHead::Res5(res5) => {
                let shape = StageShape {
                    blocks: res5.blocks,
                    inputs: channels,
                    bottleneck_width: res5.bottleneck_width,
                    outputs: size,
                    stride: 1,
                };
                let stage = Stage::new(&config.backbone, shape, mode, vb.pp("res5"))?;
                Head::Res5 { stage, dilation: res5.dilation }
            }
        };
        Ok(Self {
            pooler: RoiPooler::new(config),
            head,
            class_logits: linear(size, classes, vb.pp("box_predictor.cls_score"))?,
            box_deltas: linear(size, 4 * classes, vb.pp("box_predictor.bbox_pred"))?,
            attributes: config.attributes.iter().map(|a| AttributeHead::new(config, a, &vb)).collect::<Result<_>>()?,
        })
    }

    /// `pooled`: `[regions, channels, pool_size, pool_size]`. Returns the region features `[regions,
    /// representation_size]`, after a ReLU.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn features(&self, pooled: &Tensor) -> Result<Tensor> {
        match &self.head {
            Head::TwoLinear([fc6, fc7]) => apply(fc7, &apply(fc6, &pooled.flatten_from(1)?)?.relu()?)?.relu(),
            Head::Res5 { stage, dilation: d } => {
                // A 3×3 convolution of dilation d is a plain one on each of the d² maps of every d-th cell, and the
                // mean does not depend on where a cell is.
                let (regions, channels, size, _) = pooled.dims4()?;
                let side = size / d;
                let phases = pooled.reshape(&[regions, channels, side, *d, side, *d][..])?;
                let phases = phases.permute([0, 3, 5, 1, 2, 4])?.contiguous()?;
                let cells = stage.forward_t(&phases.reshape((regions * d * d, channels, side, side))?, false)?;
                let outputs = cells.dim(1)?;
                cells.reshape((regions, d * d, outputs, side * side))?.mean((1, 3))
            }
        }
    }

    /// The box head with prepacked weights, for channels-last regions.
    pub(super) fn prepack(&self, precision: Precision) -> Result<PrepackedHead> {
        match &self.head {
            Head::TwoLinear([fc6, fc7]) => {
                // A linear layer is a convolution whose one window is the whole map.
                let layer = |layer: &Linear, side: usize| {
                    let weight = layer.weight().reshape((layer.weight().dim(0)?, (), side, side))?;
                    PrepackedConv2d::new(&weight, layer.bias(), side, 0, true, precision)
                };
                Ok(PrepackedHead::TwoLinear(Box::new([layer(fc6, self.pooler.config.pool_size)?, layer(fc7, 1)?])))
            }
            Head::Res5 { stage, dilation } => {
                Ok(PrepackedHead::Res5 { stage: stage.prepack(precision)?, dilation: *dilation })
            }
        }
    }

    /// `features`: `[regions, representation_size]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn predict(&self, features: &Tensor) -> Result<RegionPrediction> {
        let class_logits = apply(&self.class_logits, features)?;
        let attribute_logits =
            self.attributes.iter().map(|a| a.logits(features, &class_logits)).collect::<Result<_>>()?;
        Ok(RegionPrediction { box_deltas: apply(&self.box_deltas, features)?, class_logits, attribute_logits })
    }
}
