//! All settings that distinguish one detector from another.

use super::coco;
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::files::read_text;
use lxmert_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

mod validate;

/// A Faster R-CNN on a ResNet (Ren et al. 2015), with a feature pyramid (Lin et al. 2017) or on a single level ("C4").
/// [`DetectorConfig::coco`] is torchvision's `fasterrcnn_resnet50_fpn`; [`visual_genome`](super::visual_genome) has the
/// detectors of bottom-up attention. Other widths, depths and label sets use the same code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorConfig {
    /// How an image becomes the network's input.
    #[serde(default)]
    pub transform: TransformConfig,
    /// The convolutional backbone.
    #[serde(default)]
    pub backbone: ResNetConfig,
    /// The feature pyramid; `null` if the backbone's last stage is the only level.
    #[serde(default = "FpnConfig::some")]
    pub fpn: Option<FpnConfig>,
    /// The region proposal network.
    #[serde(default)]
    pub rpn: RpnConfig,
    /// The heads on proposed regions.
    #[serde(default)]
    pub roi_heads: RoiHeadsConfig,
    /// What a box's corners mean.
    #[serde(default)]
    pub box_convention: BoxConvention,
    /// Key names of the weights.
    #[serde(default)]
    pub key_names: KeyNames,
    /// The name of every label id; 0 is background. Its length is the number of classes.
    pub label_names: Vec<String>,
    /// Attribute heads on the region feature, as in bottom-up attention (Anderson et al. 2018).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<AttributeConfig>,
}

/// The meaning of a box's two corners, and the rules that come with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxConvention {
    /// Points in the plane, as in torchvision and detectron2: the width is `x1 - x0`, boxes are clipped to the image's
    /// width, and suppression drops boxes with an IoU above its threshold.
    #[default]
    Continuous,
    /// The first and the last pixel, as in Caffe: the width is `x1 - x0 + 1`, boxes are clipped to the width - 1,
    /// suppression drops boxes with an IoU at or above its threshold, log scales are unbounded, and proposals smaller
    /// than `rpn.min_box_size` pixels of the original image are dropped before the best are ranked.
    Inclusive,
}

impl BoxConvention {
    /// What to add to `x1 - x0` to get the width.
    pub fn extra(self) -> f32 {
        match self {
            Self::Continuous => 0.0,
            Self::Inclusive => 1.0,
        }
    }
}

/// The naming scheme of the weights. In code, the network uses torchvision's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyNames {
    /// `backbone.body.layer1.0.bn1.weight`
    #[default]
    Torchvision,
    /// `backbone.res2.0.conv1.norm.weight`
    Detectron2,
}

/// Order of an image's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ChannelOrder {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// How the resized size is rounded and where pixels are sampled. All variants interpolate bilinearly without
/// antialiasing, with pixel centres at halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// torchvision: sides rounded down; normalised, then resized; the sampling step is the ratio of the sizes.
    #[default]
    Torchvision,
    /// detectron2 and Hugging Face: the short side is exactly `min_size`, the other is rounded to the nearest; resized,
    /// then normalised; the sampling step is the ratio of the sizes.
    Detectron2,
    /// Caffe: sides rounded half to even; normalised, then resized; the sampling step is 1 / scale, and boxes are
    /// divided by that one scale along both axes.
    Caffe,
}

/// Input size and normalisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformConfig {
    /// The short side is scaled to this many pixels …
    pub min_size: usize,
    /// … unless the long side then exceeds this many.
    pub max_size: usize,
    /// How to round the size and sample pixels.
    pub resize: Resize,
    /// Zero padding on the right and bottom to a multiple of this; 1 for none.
    pub size_divisor: usize,
    /// Order of the channels of the network's input.
    pub format: ChannelOrder,
    /// The full-scale value of a channel for mean and deviation: 1 or 255.
    pub pixel_max: f32,
    /// Mean of each channel, in the network's order.
    pub image_mean: [f32; 3],
    /// Standard deviation of each channel.
    pub image_std: [f32; 3],
}

impl Default for TransformConfig {
    fn default() -> Self {
        Self {
            min_size: 800,
            max_size: 1333,
            resize: Resize::Torchvision,
            size_divisor: 32,
            format: ChannelOrder::Rgb,
            pixel_max: 1.0,
            image_mean: [0.485, 0.456, 0.406],
            image_std: [0.229, 0.224, 0.225],
        }
    }
}

/// The residual block of a ResNet (He et al. 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// 1×1, 3×3, 1×1; `stride_in_1x1` says which one has the stride.
    #[default]
    Bottleneck,
    /// Two 3×3 convolutions; the first has the stride.
    Basic,
}

/// Depth and widths of the backbone. Stage `i`, counted from 0, has stride 4·2^i.
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
    /// Output channels of each stage.
    pub stage_widths: Vec<usize>,
    /// Epsilon of the batch norms; 0 for torchvision's published COCO weights.
    pub batch_norm_eps: f64,
    /// Whether a bottleneck's stride is in its first 1×1 convolution (He et al. 2016, Caffe) instead of the 3×3.
    pub stride_in_1x1: bool,
    /// Whether the 3×3 max pooling after the stem has no padding and rounds its size up (Caffe's ceil mode) instead of
    /// padding by 1.
    pub ceil_mode: bool,
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
            stride_in_1x1: false,
            ceil_mode: false,
        }
    }
}

/// Which stages feed the pyramid, and its width.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FpnConfig {
    /// Stages of the backbone that feed the pyramid, 1-based and ascending, as torchvision's `returned_layers`.
    pub stages: Vec<usize>,
    /// Channels of every level.
    pub channels: usize,
    /// Whether to add a last level, subsampled from the coarsest one (for proposals only).
    pub pool_level: bool,
}

impl Default for FpnConfig {
    fn default() -> Self {
        Self { stages: vec![1, 2, 3, 4], channels: 256, pool_level: true }
    }
}

impl FpnConfig {
    fn some() -> Option<Self> {
        Some(Self::default())
    }
}

/// How to compute a cell's anchors from sizes and aspect ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorStyle {
    /// torchvision: ratio by ratio, around the origin, corners rounded to whole pixels (half to even).
    #[default]
    Torchvision,
    /// detectron2: size by size, around the origin, not rounded.
    Detectron2,
    /// Caffe: ratio by ratio, around (7.5, 7.5), from a 16 × 16 box whose sides are rounded before scaling; corners are
    /// first and last pixels.
    Caffe,
}

/// Anchors and proposals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpnConfig {
    /// Anchor sizes (√area, in pixels of the resized image) of each level of the pyramid.
    pub anchor_sizes: Vec<Vec<f32>>,
    /// Height / width of the anchors.
    pub aspect_ratios: Vec<f32>,
    /// How to compute anchors from sizes and ratios.
    pub anchor_style: AnchorStyle,
    /// The anchors of a cell of the only level, instead of computed ones; some weight files contain them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell_anchors: Option<Vec<BoxXyxy>>,
    /// Distance between neighbouring cells in pixels of the resized image; if absent, the padded image's size divided
    /// by the level's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_stride: Option<usize>,
    /// Channels of the hidden convolution; if absent, as many as the levels have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_channels: Option<usize>,
    /// How many of a level's best-scored boxes enter non-maximum suppression.
    pub pre_nms_top_n: usize,
    /// Maximum proposals per image, over all levels.
    pub post_nms_top_n: usize,
    /// Of two proposals of a level with an IoU above this, the weaker is dropped.
    pub nms_threshold: f64,
    /// Minimum score (a probability) of a proposal.
    pub score_threshold: f32,
    /// Minimum side of a proposal in pixels of the resized image (of the original image with
    /// [`BoxConvention::Inclusive`]).
    pub min_box_size: f32,
    /// Weights of the box deltas.
    pub box_weights: [f32; 4],
}

impl Default for RpnConfig {
    fn default() -> Self {
        Self {
            anchor_sizes: vec![vec![32.0], vec![64.0], vec![128.0], vec![256.0], vec![512.0]],
            aspect_ratios: vec![0.5, 1.0, 2.0],
            anchor_style: AnchorStyle::Torchvision,
            cell_anchors: None,
            anchor_stride: None,
            hidden_channels: None,
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
    /// Anchors per cell: sizes of a level × aspect ratios (the same for every level).
    pub fn anchors_per_cell(&self) -> usize {
        self.anchor_sizes.first().map_or(0, Vec::len) * self.aspect_ratios.len()
    }
}

/// How to pool regions from a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PoolerType {
    /// Averages of bilinear samples (He et al. 2017).
    #[default]
    #[serde(rename = "ROIAlign")]
    RoiAlign,
    /// Maxima of whole cells (Girshick 2015).
    #[serde(rename = "ROIPool")]
    RoiPool,
}

/// How to compute the feature of a pooled region.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxHead {
    /// Two linear layers with ReLU.
    #[default]
    TwoLinear,
    /// The backbone's last residual stage, run on each region with stride 1, then the mean of its cells ("C4").
    Res5(Res5Config),
}

/// The residual stage used as a box head; it outputs `representation_size` channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Res5Config {
    /// Residual blocks.
    pub blocks: usize,
    /// Channels of the inner convolutions.
    pub bottleneck_width: usize,
    /// Dilation of the 3×3 convolutions; must divide the pooling size.
    pub dilation: usize,
}

/// Which regions represent an image, and in which order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionRule {
    /// Each place once, best first, then repeats; features are pooled at the region's own box.
    #[default]
    Detections,
    /// Hugging Face's: each proposal represents its best class, at that class's box. Suppression ignores the class and
    /// uses the first of these thresholds that leaves enough regions; the best are kept, with the proposal's feature.
    ClassAgnostic {
        /// Thresholds to try in order: of two boxes with an IoU above one, the weaker is dropped.
        nms_thresholds: Vec<f64>,
    },
    /// Caffe's: suppression within each class over all proposals, whose boxes stay unchanged; a proposal's confidence
    /// is that of the best class in which it survives.
    ClassAware {
        /// Of two boxes with an IoU at or above this, the weaker is dropped.
        nms_threshold: f64,
        /// A proposal with at least this confidence is a region, within the limits of the wanted number of regions.
        score_threshold: f32,
    },
}

/// Pooling, the box head, and the choice of detections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoiHeadsConfig {
    /// How to pool regions.
    pub pooler_type: PoolerType,
    /// Cells per side of a pooled region.
    pub pool_size: usize,
    /// Samples per side of a pooling cell.
    pub sampling_ratio: usize,
    /// √area of a box that is pooled from the level `canonical_level` (Lin et al. 2017, eq. 1).
    pub canonical_box_size: f32,
    /// The level (log2 of its stride) for a box of the canonical size.
    pub canonical_level: f32,
    /// How to compute the feature.
    pub box_head: BoxHead,
    /// Length of a region's feature.
    pub representation_size: usize,
    /// Weights of the box deltas.
    pub box_weights: [f32; 4],
    /// Minimum score of a detection, exclusive.
    pub score_threshold: f32,
    /// Of two detections of a class with an IoU above this, the weaker is dropped.
    pub nms_threshold: f64,
    /// Maximum detections per image.
    pub max_detections: usize,
    /// Minimum side of a detection in pixels of the resized image.
    pub min_box_size: f32,
    /// Which regions represent an image.
    pub region_rule: RegionRule,
}

impl Default for RoiHeadsConfig {
    fn default() -> Self {
        Self {
            pooler_type: PoolerType::RoiAlign,
            pool_size: 7,
            sampling_ratio: 2,
            canonical_box_size: 224.0,
            canonical_level: 4.0,
            box_head: BoxHead::TwoLinear,
            representation_size: 1024,
            box_weights: [10.0, 10.0, 5.0, 5.0],
            score_threshold: 0.05,
            nms_threshold: 0.5,
            max_detections: 100,
            min_box_size: 1e-2,
            region_rule: RegionRule::Detections,
        }
    }
}

/// One attribute, such as colour, and its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeConfig {
    /// Its name; a linear head's weights are `roi_heads.attributes.<name>`.
    pub name: String,
    /// Names of its values.
    pub classes: Vec<String>,
    /// Bottom-up attention's head, which depends on the object class; if absent, a linear layer on the feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_embedding: Option<ObjectEmbeddingConfig>,
}

/// An attribute head on the feature and an embedding of the region's most probable class, background included
/// (`cls_embedding`, `fc_attr`, `attr_score`). Its first logit means "no attribute".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectEmbeddingConfig {
    /// Length of a class's embedding.
    pub embedding_size: usize,
    /// Width of the hidden layer.
    pub hidden_size: usize,
    /// Whether "no attribute" takes a share of the probability (Caffe) or is removed first (Hugging Face).
    pub counts_no_attribute: bool,
}

impl DetectorConfig {
    /// torchvision's `fasterrcnn_resnet50_fpn` with the published COCO weights.
    pub fn coco() -> Self {
        Self {
            transform: TransformConfig::default(),
            backbone: ResNetConfig::default(),
            fpn: FpnConfig::some(),
            rpn: RpnConfig::default(),
            roi_heads: RoiHeadsConfig::default(),
            box_convention: BoxConvention::default(),
            key_names: KeyNames::default(),
            label_names: coco::LABEL_NAMES.iter().map(|n| (*n).to_string()).collect(),
            attributes: Vec::new(),
        }
    }

    /// Reads and checks a JSON file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, is not JSON with these fields, or fails
    /// [`DetectorConfig::validate`].
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_json(&read_text(path)?, path)
    }

    /// Checks the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// When it lacks a field or describes a network that cannot be built.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(Error::json(path))?;
        config.validate().map_err(|e| Error::format(path, e.to_string()))?;
        Ok(config)
    }

    /// Number of labels, background included.
    pub fn num_classes(&self) -> usize {
        self.label_names.len()
    }

    /// Number of levels that proposals come from: those of the pyramid, the pooled one included, or one.
    pub fn num_levels(&self) -> usize {
        self.num_pooled_levels() + usize::from(self.fpn.as_ref().is_some_and(|fpn| fpn.pool_level))
    }

    /// Number of levels that regions are pooled from.
    pub fn num_pooled_levels(&self) -> usize {
        self.fpn.as_ref().map_or(1, |fpn| fpn.stages.len())
    }

    /// Channels of every level.
    pub fn level_channels(&self) -> usize {
        match &self.fpn {
            Some(fpn) => fpn.channels,
            None => self.backbone.stage_widths.last().copied().unwrap_or(0),
        }
    }

    /// Whether stored labels start at the first object, as in bottom-up attention's files, so that label 0 is not
    /// background.
    pub fn has_labels_without_background(&self) -> bool {
        self.roi_heads.region_rule != RegionRule::Detections
    }

    /// The name of every label id of a stored region.
    pub fn region_label_names(&self) -> &[String] {
        &self.label_names[usize::from(self.has_labels_without_background())..]
    }
}
