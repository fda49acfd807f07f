//! Faster R-CNN on a ResNet, with a feature pyramid or on a single level, split into the field's usual stages:
//!
//! | stage | file | from → to |
//! | --- | --- | --- |
//! | transform | [`transform`] | image → resized, normalised, padded input |
//! | body | [`resnet`] | input → a map per stage |
//! | pyramid | [`fpn`] | stages → levels of equal width |
//! | anchors | [`anchors`] | level sizes → boxes to start from |
//! | proposals | [`rpn`] | levels + anchors → boxes worth a closer look |
//! | pooling | [`roi_align`], [`roi_pool`] | levels + boxes → equal maps of each |
//! | RoI heads | [`roi_heads`] | levels + boxes → features, class logits, box deltas, attributes |
//! | postprocess | [`detect`] | all of it → labelled boxes |
//! | selection | [`selection`] | all of it → the regions that stand for an image |
//!
//! On the CPU, inference uses [`inference`] for backbone, pyramid, proposal head and region features: the same network
//! with prepacked weights.
//!
//! [`DetectorConfig`] describes a detector; [`visual_genome`] has those of bottom-up attention, [`grid_feats`]
//! that of grid features. [`Network`] holds the
//! weights of the trained stages and is used for training; [`Detector`] runs everything on one image.

pub mod anchors;
pub mod box_coder;
pub mod coco;
pub mod config;
pub mod detect;
mod expected;
pub mod fpn;
pub mod grid_feats;
pub mod inference;
pub mod layers;
mod names;
pub mod nms;
pub mod ops;
mod prepacked;
pub mod resnet;
pub mod roi_align;
pub mod roi_heads;
pub mod roi_pool;
pub mod rpn;
pub mod selection;
pub mod training;
pub mod transform;
pub mod visual_genome;

pub use config::DetectorConfig;
pub use detect::{Analysis, Detections, Detector};
pub use expected::expected_tensors;
pub use layers::NormMode;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use config::KeyNames;
use fpn::FeaturePyramid;
use resnet::ResNet;
use roi_heads::RoiHeads;
use rpn::RpnHead;

/// The trained stages, with torchvision's key names.
#[derive(Debug, Clone)]
pub struct Network {
    /// `backbone.body`
    pub body: ResNet,
    /// `backbone.fpn`, if there is one.
    pub fpn: Option<FeaturePyramid>,
    /// `rpn`
    pub rpn: RpnHead,
    /// `roi_heads`
    pub roi_heads: RoiHeads,
}

impl Network {
    /// Takes the weights from `vb` under the names that `config` specifies (or creates them on a variable map). Batch
    /// norms are folded for inference or kept for training. `config` must be valid.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &DetectorConfig, mode: NormMode, vb: VarBuilder) -> Result<Self> {
        let vb = match config.key_names {
            KeyNames::Torchvision => vb,
            KeyNames::Detectron2 => vb.rename_f(names::detectron2),
        };
        let fpn = |fpn| FeaturePyramid::new(fpn, &config.backbone, vb.pp("backbone.fpn"));
        Ok(Self {
            body: ResNet::new(&config.backbone, mode, vb.pp("backbone.body"))?,
            fpn: config.fpn.as_ref().map(fpn).transpose()?,
            rpn: RpnHead::new(&config.rpn, config.level_channels(), vb.pp("rpn"))?,
            roi_heads: RoiHeads::new(config, mode, vb.pp("roi_heads"))?,
        })
    }

    /// Runs backbone and pyramid. `images`: `[batch, 3, height, width]`, normalised and padded. Returns the levels,
    /// finest first and the pooled one last; without a pyramid, only the backbone's last map.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn levels(&self, images: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        let mut stages = self.body.forward_t(images, train)?;
        match &self.fpn {
            Some(fpn) => fpn.forward_t(&stages, train),
            None => Ok(stages.pop().into_iter().collect()),
        }
    }
}
