//! Everything that makes one detector differ from another, in one place.

use super::coco;
use lxmert_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A Faster R-CNN on a ResNet with a feature pyramid (Ren et al. 2015; Lin et al. 2017).
///
/// [`DetectorConfig::coco`] is torchvision's `fasterrcnn_resnet50_fpn`; other widths, depths and
/// label sets run through the same code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorConfig {
    /// How an image becomes the network's input.
    #[serde(default)]
    pub transform: TransformConfig,
    /// The convolutional body.
    #[serde(default)]
    pub backbone: ResNetConfig,
    /// The feature pyramid.
    #[serde(default)]
    pub fpn: FpnConfig,
    /// The region proposal network.
    #[serde(default)]
    pub rpn: RpnConfig,
    /// The heads on the proposed regions.
    #[serde(default)]
    pub roi_heads: RoiHeadsConfig,
    /// Name of every label id; 0 is background. Its length is the number of classes.
    pub label_names: Vec<String>,
    /// Attribute heads on the region feature, as in bottom-up attention (Anderson et al. 2018).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<AttributeConfig>,
}

/// Input size and normalisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformConfig {
    /// The short side is scaled to this many pixels …
    pub min_size: usize,
    /// … unless the long side then exceeds this many.
    pub max_size: usize,
    /// Zero padding on the right and bottom to a multiple of this.
    pub size_divisor: usize,
    /// Mean of each channel of an RGB image in 0..1.
    pub image_mean: [f32; 3],
    /// Standard deviation of each channel.
    pub image_std: [f32; 3],
}

impl Default for TransformConfig {
    fn default() -> Self {
        Self {
            min_size: 800,
            max_size: 1333,
            size_divisor: 32,
            image_mean: [0.485, 0.456, 0.406],
            image_std: [0.229, 0.224, 0.225],
        }
    }
}

/// The residual block of a ResNet (He et al. 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// 1×1, 3×3 (which has the stride), 1×1.
    #[default]
    Bottleneck,
    /// 3×3 (which has the stride), 3×3.
    Basic,
}

/// Depth and widths of the body. Stage `i` of 0.. has stride 4·2^i.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResNetConfig {
    /// Kind of residual block.
    pub block: Block,
    /// Channels of the 7×7 stem.
    pub stem_width: usize,
    /// Blocks in each stage.
    pub blocks: Vec<usize>,
    /// Channels of each stage's inner convolutions (ignored by [`Block::Basic`]).
    pub bottleneck_widths: Vec<usize>,
    /// Channels that leave each stage.
    pub stage_widths: Vec<usize>,
    /// Epsilon of the batch norms; 0 for torchvision's published COCO weights.
    pub batch_norm_eps: f64,
}

impl Default for ResNetConfig {
    fn default() -> Self {
        Self {
            block: Block::Bottleneck,
            stem_width: 64,
            blocks: vec![3, 4, 6, 3],
            bottleneck_widths: vec![64, 128, 256, 512],
            stage_widths: vec![256, 512, 1024, 2048],
            batch_norm_eps: 0.0,
        }
    }
}

/// Which stages feed the pyramid, and its width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FpnConfig {
    /// Stages of the body that feed the pyramid, 1-based and rising, as torchvision's
    /// `returned_layers`.
    pub stages: Vec<usize>,
    /// Channels of every level.
    pub channels: usize,
    /// Whether a last level is subsampled from the coarsest one (for proposals only).
    pub pool_level: bool,
}

impl Default for FpnConfig {
    fn default() -> Self {
        Self { stages: vec![1, 2, 3, 4], channels: 256, pool_level: true }
    }
}

/// Anchors and proposals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpnConfig {
    /// Anchor sizes (√area, in pixels of the resized image) of each level of the pyramid.
    pub anchor_sizes: Vec<Vec<f32>>,
    /// Height / width of the anchors.
    pub aspect_ratios: Vec<f32>,
    /// Best scored boxes of a level that go into non-maximum suppression.
    pub pre_nms_top_n: usize,
    /// Proposals of an image, over all levels.
    pub post_nms_top_n: usize,
    /// IoU above which the weaker of two proposals of a level is dropped.
    pub nms_threshold: f64,
    /// Least score (a probability) of a proposal.
    pub score_threshold: f32,
    /// Least side of a proposal in pixels of the resized image.
    pub min_box_size: f32,
    /// Weights of the box deltas.
    pub box_weights: [f32; 4],
}

impl Default for RpnConfig {
    fn default() -> Self {
        Self {
            anchor_sizes: vec![vec![32.0], vec![64.0], vec![128.0], vec![256.0], vec![512.0]],
            aspect_ratios: vec![0.5, 1.0, 2.0],
            pre_nms_top_n: 1000,
            post_nms_top_n: 1000,
            nms_threshold: 0.7,
            score_threshold: 0.0,
            min_box_size: 1e-3,
            box_weights: [1.0; 4],
        }
    }
}

impl RpnConfig {
    /// Anchors in each cell: sizes of a level × aspect ratios (the same for every level).
    pub fn anchors_per_cell(&self) -> usize {
        self.anchor_sizes.first().map_or(0, Vec::len) * self.aspect_ratios.len()
    }
}

/// Pooling, the box head and the choice of detections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoiHeadsConfig {
    /// Cells of a pooled region in each direction.
    pub pool_size: usize,
    /// Samples of a pooling cell in each direction.
    pub sampling_ratio: usize,
    /// √area of a box that is pooled from the level `canonical_level` (Lin et al. 2017, eq. 1).
    pub canonical_box_size: f32,
    /// Level (log2 of its stride) of a box of the canonical size.
    pub canonical_level: f32,
    /// Length of a region's feature.
    pub representation_size: usize,
    /// Weights of the box deltas.
    pub box_weights: [f32; 4],
    /// A detection's score is above this.
    pub score_threshold: f32,
    /// IoU above which the weaker of two detections of a class is dropped.
    pub nms_threshold: f64,
    /// Most detections of an image.
    pub max_detections: usize,
    /// Least side of a detection in pixels of the resized image.
    pub min_box_size: f32,
}

impl Default for RoiHeadsConfig {
    fn default() -> Self {
        Self {
            pool_size: 7,
            sampling_ratio: 2,
            canonical_box_size: 224.0,
            canonical_level: 4.0,
            representation_size: 1024,
            box_weights: [10.0, 10.0, 5.0, 5.0],
            score_threshold: 0.05,
            nms_threshold: 0.5,
            max_detections: 100,
            min_box_size: 1e-2,
        }
    }
}

/// One attribute, such as the colour, and its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeConfig {
    /// Name; the head's weights are `roi_heads.attributes.<name>`.
    pub name: String,
    /// Names of its values.
    pub classes: Vec<String>,
}

impl DetectorConfig {
    /// torchvision's `fasterrcnn_resnet50_fpn` with the published COCO weights.
    pub fn coco() -> Self {
        Self {
            transform: TransformConfig::default(),
            backbone: ResNetConfig::default(),
            fpn: FpnConfig::default(),
            rpn: RpnConfig::default(),
            roi_heads: RoiHeadsConfig::default(),
            label_names: coco::LABEL_NAMES.iter().map(|n| (*n).to_string()).collect(),
            attributes: Vec::new(),
        }
    }

    /// Reads and checks a JSON file.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON of these fields, or [`DetectorConfig::validate`]
    /// refuses it.
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: Self = serde_json::from_str(&text).map_err(Error::json(path))?;
        config.validate().map_err(|e| Error::format(path, e.to_string()))?;
        Ok(config)
    }

    /// Number of labels, background included.
    pub fn num_classes(&self) -> usize {
        self.label_names.len()
    }

    /// Levels of the pyramid, the pooled one included.
    pub fn num_levels(&self) -> usize {
        self.fpn.stages.len() + usize::from(self.fpn.pool_level)
    }

    /// Checks that the fields agree with each other and that no size is absurd.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the field and what it should be.
    pub fn validate(&self) -> Result<()> {
        const LARGEST: usize = 1 << 16;
        let refuse = |what: String| Err(Error::Argument(format!("detector configuration: {what}")));
        let body = &self.backbone;
        let stages = body.blocks.len();
        if !(1..=6).contains(&stages) || body.stage_widths.len() != stages {
            return refuse(format!(
                "backbone.blocks and backbone.stage_widths must have 1 to 6 entries each, as many as each other, but have {stages} and {}",
                body.stage_widths.len()
            ));
        }
        if body.block == Block::Bottleneck && body.bottleneck_widths.len() != stages {
            return refuse(format!(
                "backbone.bottleneck_widths has {} entries for {stages} stages",
                body.bottleneck_widths.len()
            ));
        }
        let rising = self.fpn.stages.windows(2).all(|pair| pair[0] < pair[1]);
        if self.fpn.stages.is_empty() || !rising || self.fpn.stages.iter().any(|s| !(1..=stages).contains(s)) {
            return refuse(format!("fpn.stages {:?} must rise within 1..={stages}", self.fpn.stages));
        }
        if self.rpn.anchor_sizes.len() != self.num_levels() {
            return refuse(format!(
                "rpn.anchor_sizes has {} entries for {} pyramid levels",
                self.rpn.anchor_sizes.len(),
                self.num_levels()
            ));
        }
        let per_level = self.rpn.anchor_sizes[0].len();
        if per_level == 0 || self.rpn.anchor_sizes.iter().any(|sizes| sizes.len() != per_level) {
            return refuse("rpn.anchor_sizes must hold as many sizes for each level, at least one".into());
        }
        let positive = |v: &f32| v.is_finite() && *v > 0.0;
        if !self.rpn.anchor_sizes.iter().flatten().all(positive)
            || self.rpn.aspect_ratios.is_empty()
            || !self.rpn.aspect_ratios.iter().all(positive)
        {
            return refuse("rpn.anchor_sizes and rpn.aspect_ratios must be positive numbers".into());
        }
        let floats = [
            ("transform.image_std", self.transform.image_std.as_slice()),
            ("rpn.box_weights", self.rpn.box_weights.as_slice()),
            ("roi_heads.box_weights", self.roi_heads.box_weights.as_slice()),
            ("roi_heads.canonical_box_size", std::slice::from_ref(&self.roi_heads.canonical_box_size)),
        ];
        if let Some((name, _)) = floats.iter().find(|(_, values)| !values.iter().all(positive)) {
            return refuse(format!("{name} must be positive"));
        }
        let heads = &self.roi_heads;
        let mut sizes = vec![
            ("transform.min_size", self.transform.min_size),
            ("transform.max_size", self.transform.max_size),
            ("transform.size_divisor", self.transform.size_divisor),
            ("backbone.stem_width", body.stem_width),
            ("fpn.channels", self.fpn.channels),
            ("rpn.pre_nms_top_n", self.rpn.pre_nms_top_n),
            ("rpn.post_nms_top_n", self.rpn.post_nms_top_n),
            ("roi_heads.pool_size", heads.pool_size),
            ("roi_heads.sampling_ratio", heads.sampling_ratio),
            ("roi_heads.representation_size", heads.representation_size),
            ("roi_heads.max_detections", heads.max_detections),
        ];
        sizes.extend(body.blocks.iter().map(|n| ("backbone.blocks", *n)));
        sizes.extend(body.stage_widths.iter().map(|n| ("backbone.stage_widths", *n)));
        if body.block == Block::Bottleneck {
            sizes.extend(body.bottleneck_widths.iter().map(|n| ("backbone.bottleneck_widths", *n)));
        }
        if let Some((name, value)) = sizes.iter().find(|(_, n)| !(1..=LARGEST).contains(n)) {
            return refuse(format!("{name} is {value}, not within 1..={LARGEST}"));
        }
        let coarsest = 4usize << (self.fpn.stages[self.fpn.stages.len() - 1] - 1);
        if !self.transform.size_divisor.is_multiple_of(coarsest) {
            return refuse(format!(
                "transform.size_divisor {} is not a multiple of the coarsest stride {coarsest}",
                self.transform.size_divisor
            ));
        }
        if !(body.batch_norm_eps.is_finite() && body.batch_norm_eps >= 0.0) {
            return refuse(format!("backbone.batch_norm_eps is {}", body.batch_norm_eps));
        }
        if !(2..=LARGEST).contains(&self.num_classes()) {
            return refuse("label_names needs background (id 0) and at least one label".into());
        }
        if let Some(attribute) = self.attributes.iter().find(|a| a.classes.is_empty() || a.name.is_empty()) {
            return refuse(format!("attribute '{}' lacks a name or classes", attribute.name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coco_preset_is_valid_and_survives_json() -> anyhow::Result<()> {
        let config = DetectorConfig::coco();
        config.validate()?;
        let text = serde_json::to_string(&config)?;
        assert_eq!(serde_json::from_str::<DetectorConfig>(&text)?, config);
        assert_eq!((config.num_classes(), config.num_levels(), config.rpn.anchors_per_cell()), (91, 5, 3));
        Ok(())
    }

    #[test]
    fn contradictions_are_refused_by_field() {
        let refusal = |change: fn(&mut DetectorConfig)| {
            let mut config = DetectorConfig::coco();
            change(&mut config);
            config.validate().map_or_else(|e| e.to_string(), |()| "accepted".into())
        };
        assert!(refusal(|c| c.rpn.anchor_sizes.truncate(4)).contains("rpn.anchor_sizes has 4"));
        assert!(refusal(|c| c.rpn.anchor_sizes[2].clear()).contains("as many sizes"));
        assert!(refusal(|c| c.fpn.stages = vec![2, 2, 3, 4]).contains("fpn.stages"));
        assert!(refusal(|c| c.backbone.stage_widths[1] = 0).contains("backbone.stage_widths is 0"));
        assert!(refusal(|c| c.transform.size_divisor = 16).contains("coarsest stride 32"));
        assert!(refusal(|c| c.transform.image_std[0] = 0.0).contains("image_std"));
        assert!(refusal(|c| c.label_names.truncate(1)).contains("label_names"));
        assert!(refusal(|c| c.roi_heads.pool_size = usize::MAX).contains("pool_size"));
    }
}
