//! The heads on proposed regions: pooling from the fitting pyramid level, two linear layers (whose
//! output is *the* region feature), then class logits and box deltas.

use super::config::{AttributeConfig, DetectorConfig, RoiHeadsConfig};
use super::layers::{apply, linear};
use candle_core::{Result, Tensor};
use candle_nn::{Linear, VarBuilder};
use lxmert_core::boxes::{BoxXyxy, area};
use lxmert_core::ops::{
    BufferPool, FeatureMap, LevelRegion, PackedLinear, Precision, RoiAlign, roi_align, roi_align_levels,
};

/// Pools boxes from the level that fits their size (Lin et al. 2017, eq. 1).
#[derive(Debug, Clone)]
pub struct RoiPooler {
    pool_size: usize,
    sampling_ratio: usize,
    canonical_box_size: f32,
    canonical_level: f32,
}

impl RoiPooler {
    /// As `config` says.
    pub fn new(config: &RoiHeadsConfig) -> Self {
        Self {
            pool_size: config.pool_size,
            sampling_ratio: config.sampling_ratio,
            canonical_box_size: config.canonical_box_size,
            canonical_level: config.canonical_level,
        }
    }

    /// `levels`: the pyramid without its pooled level, finest first, each `[batch, channels, rows, columns]`;
    /// `boxes`: for each image of the batch, in pixels of the resized image. Gives
    /// `[boxes of all images, channels, pool_size, pool_size]`, on the levels' device.
    ///
    /// A level's scale is 2^round(log2(rows / padded height)), which is 1 / stride.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, levels: &[Tensor], boxes: &[Vec<BoxXyxy>], padded_size: (usize, usize)) -> Result<Tensor> {
        let channels = levels[0].dim(1)?;
        let assigned = self.assign(levels, boxes, padded_size)?;
        let total = assigned.regions.len();
        if total == 0 {
            return Tensor::zeros((0, channels, self.pool_size, self.pool_size), levels[0].dtype(), levels[0].device());
        }
        let mut pooled = Vec::new();
        let mut place = vec![0u32; total]; // where each box's result lies in `pooled`
        let mut done = 0;
        for (index, (level, options)) in levels.iter().zip(&assigned.options).enumerate() {
            let mut rois = Vec::new();
            for (place, region) in place.iter_mut().zip(&assigned.regions).filter(|(_, region)| region.level == index) {
                rois.push(region.image as f32);
                rois.extend(region.xyxy);
                *place = done;
                done += 1;
            }
            if !rois.is_empty() {
                let rois = Tensor::new(rois, level.device())?.reshape(((), 5))?;
                pooled.push(roi_align(level, &rois, *options)?);
            }
        }
        let pooled = Tensor::cat(&pooled, 0)?;
        if place.iter().enumerate().all(|(i, p)| i == *p as usize) {
            return Ok(pooled);
        }
        pooled.index_select(&Tensor::from_vec(place, total, pooled.device())?, 0)
    }

    /// The same for inference on the CPU, channels last.
    pub(super) fn packed(
        &self,
        levels: &[Tensor],
        boxes: &[Vec<BoxXyxy>],
        padded_size: (usize, usize),
        pool: &BufferPool,
    ) -> Result<FeatureMap> {
        let assigned = self.assign(levels, boxes, padded_size)?;
        let levels: Vec<(&Tensor, RoiAlign)> = levels.iter().zip(assigned.options).collect();
        roi_align_levels(&levels, &assigned.regions, pool)
    }

    fn assign(&self, levels: &[Tensor], boxes: &[Vec<BoxXyxy>], padded_size: (usize, usize)) -> Result<Assigned> {
        let scales = levels
            .iter()
            .map(|level| Ok((level.dim(2)? as f32 / padded_size.0 as f32).log2().round()))
            .collect::<Result<Vec<f32>>>()?;
        let finest = -scales[0];
        let level_of = |b: &BoxXyxy| {
            let level = (self.canonical_level + (area(b).sqrt() / self.canonical_box_size).log2() + 1e-6).floor();
            // A box without area has level -∞, which the clamp makes the finest.
            ((level - finest).max(0.0) as usize).min(levels.len() - 1)
        };
        let options = scales.iter().map(|scale| RoiAlign {
            spatial_scale: scale.exp2(),
            output_size: self.pool_size,
            sampling_ratio: self.sampling_ratio,
        });
        let region = |(image, b): (usize, &BoxXyxy)| LevelRegion { level: level_of(b), image, xyxy: *b };
        let all = boxes.iter().enumerate().flat_map(|(image, boxes)| boxes.iter().map(move |b| (image, b)));
        Ok(Assigned { options: options.collect(), regions: all.map(region).collect() })
    }
}

/// How each level is sampled, and which level each box is pooled from.
struct Assigned {
    options: Vec<RoiAlign>,
    regions: Vec<LevelRegion>,
}

/// The heads' weights.
#[derive(Debug, Clone)]
pub struct RoiHeads {
    /// Pooling from the pyramid.
    pub pooler: RoiPooler,
    fc6: Linear,
    fc7: Linear,
    class_logits: Linear,
    box_deltas: Linear,
    attributes: Vec<Linear>,
}

/// What the predictors say about each region.
#[derive(Debug, Clone)]
pub struct RegionPrediction {
    /// `[regions, classes]`.
    pub class_logits: Tensor,
    /// `[regions, 4·classes]`, coordinate fastest.
    pub box_deltas: Tensor,
    /// Logits of each attribute: `[regions, values]`.
    pub attribute_logits: Vec<Tensor>,
}

impl RoiHeads {
    /// Weights `box_head.fc6`, `box_head.fc7`, `box_predictor.cls_score`, `box_predictor.bbox_pred` and
    /// `attributes.<name>` under `vb`.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &DetectorConfig, vb: VarBuilder) -> Result<Self> {
        let heads = &config.roi_heads;
        let pooled = config.fpn.channels * heads.pool_size * heads.pool_size;
        let (size, classes) = (heads.representation_size, config.num_classes());
        let attribute = |a: &AttributeConfig| linear(size, a.classes.len(), vb.pp("attributes").pp(&a.name));
        Ok(Self {
            pooler: RoiPooler::new(heads),
            fc6: linear(pooled, size, vb.pp("box_head.fc6"))?,
            fc7: linear(size, size, vb.pp("box_head.fc7"))?,
            class_logits: linear(size, classes, vb.pp("box_predictor.cls_score"))?,
            box_deltas: linear(size, 4 * classes, vb.pp("box_predictor.bbox_pred"))?,
            attributes: config.attributes.iter().map(attribute).collect::<Result<_>>()?,
        })
    }

    /// `pooled`: `[regions, channels, pool_size, pool_size]`. Gives the region features
    /// `[regions, representation_size]`, after a ReLU.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn features(&self, pooled: &Tensor) -> Result<Tensor> {
        let x = apply(&self.fc6, &pooled.flatten_from(1)?)?.relu()?;
        apply(&self.fc7, &x)?.relu()
    }

    /// The two linear layers for the packed path, whose regions lie channels last.
    pub(super) fn pack(&self, channels: usize, precision: Precision) -> Result<[PackedLinear; 2]> {
        let (out, inner) = self.fc6.weight().dims2()?;
        let bins = inner / channels;
        let fc6 = self.fc6.weight().reshape((out, channels, bins))?.transpose(1, 2)?.reshape((out, inner))?;
        Ok([
            PackedLinear::new(&fc6, self.fc6.bias(), true, precision)?,
            PackedLinear::new(self.fc7.weight(), self.fc7.bias(), true, precision)?,
        ])
    }

    /// `features`: `[regions, representation_size]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn predict(&self, features: &Tensor) -> Result<RegionPrediction> {
        Ok(RegionPrediction {
            class_logits: apply(&self.class_logits, features)?,
            box_deltas: apply(&self.box_deltas, features)?,
            attribute_logits: self.attributes.iter().map(|a| apply(a, features)).collect::<Result<_>>()?,
        })
    }
}
