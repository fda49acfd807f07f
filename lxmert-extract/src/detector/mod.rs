//! Faster R-CNN on a ResNet with a feature pyramid, split by the field's own stages:
//!
//! | stage | file | from → to |
//! | --- | --- | --- |
//! | transform | [`transform`] | image → normalised, resized, padded input |
//! | body | [`resnet`] | input → a map per stage |
//! | pyramid | [`fpn`] | stages → levels of equal width |
//! | anchors | [`anchors`] | level sizes → boxes to start from |
//! | proposals | [`rpn`] | levels + anchors → up to 1000 boxes |
//! | RoI heads | [`roi_heads`] | levels + boxes → features, class logits, box deltas |
//! | postprocess | [`detect`] | all of it → labelled boxes |
//!
//! On the CPU, inference takes body, pyramid and proposal head through [`inference`], the same network over packed weights.
//!
//! [`Network`] holds the weights of the learnt stages and is what training uses; [`Detector`] runs
//! everything on one image.

pub mod anchors;
pub mod box_coder;
pub mod coco;
pub mod config;
pub mod detect;
mod expected;
pub mod fpn;
pub mod inference;
pub mod layers;
pub mod nms;
pub mod resnet;
pub mod roi_heads;
pub mod rpn;
pub mod training;
pub mod transform;

pub use config::DetectorConfig;
pub use detect::{Analysis, Detections, Detector};
pub use expected::expected_tensors;
pub use layers::NormMode;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use fpn::FeaturePyramid;
use resnet::ResNet;
use roi_heads::RoiHeads;
use rpn::RpnHead;

/// The learnt stages, with torchvision's key names.
#[derive(Debug, Clone)]
pub struct Network {
    /// `backbone.body`
    pub body: ResNet,
    /// `backbone.fpn`
    pub fpn: FeaturePyramid,
    /// `rpn`
    pub rpn: RpnHead,
    /// `roi_heads`
    pub roi_heads: RoiHeads,
}

impl Network {
    /// Takes the weights from `vb` (or, on a variable map, makes them): batch norms folded for
    /// inference, or kept for training. `config` must be valid.
    ///
    /// # Errors
    /// When a weight is missing or misshapen.
    pub fn new(config: &DetectorConfig, mode: NormMode, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            body: ResNet::new(&config.backbone, mode, vb.pp("backbone.body"))?,
            fpn: FeaturePyramid::new(&config.fpn, &config.backbone, vb.pp("backbone.fpn"))?,
            rpn: RpnHead::new(&config.rpn, config.fpn.channels, vb.pp("rpn"))?,
            roi_heads: RoiHeads::new(config, vb.pp("roi_heads"))?,
        })
    }

    /// Body and pyramid. `images`: `[batch, 3, height, width]`, normalised and padded. Gives the levels,
    /// finest first, the pooled one last.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn levels(&self, images: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        self.fpn.forward_t(&self.body.forward_t(images, train)?, train)
    }
}
