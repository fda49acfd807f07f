//! The detector behind grid features (Jiang et al. 2020): Faster R-CNN on a ResNet whose last stage is the only level, trained on
//! Visual Genome with regions pooled to one cell.
//!
//! It is for `--regions cells` alone. In training the last stage is dilated; for features it is not, so that its map has a cell every 32
//! pixels, at most 608 of 600 × 1000 (`extract_grid_feature.py` of facebookresearch/grid-feats-vqa sets `RES5_DILATION` to
//! 1). The heads were trained on the dilated map and are only checked. The original resizes by Pillow, which averages pixels when it
//! shrinks a photo; here, as for the other detectors, four pixels are interpolated.

use super::config::{
    AnchorStyle, BoxConvention, ChannelOrder, DetectorConfig, KeyNames, ResNetConfig, Resize, RoiHeadsConfig,
    RpnConfig, TransformConfig,
};

/// `configs/R-50-grid.yaml`, for `R-50.pth`: detectron2's ResNet-50 of MSRA's form.
pub fn r50() -> DetectorConfig {
    DetectorConfig {
        transform: TransformConfig {
            min_size: 600,
            max_size: 1000,
            resize: Resize::Detectron2,
            size_divisor: 1,
            format: ChannelOrder::Bgr,
            pixel_max: 255.0,
            image_mean: [103.53, 116.28, 123.675],
            image_std: [1.0; 3],
        },
        backbone: ResNetConfig { batch_norm_eps: 1e-5, stride_in_1x1: true, ..ResNetConfig::default() },
        fpn: None,
        rpn: RpnConfig {
            anchor_sizes: vec![vec![32.0, 64.0, 128.0, 256.0, 512.0]],
            anchor_style: AnchorStyle::Detectron2,
            anchor_stride: Some(16),
            ..RpnConfig::default()
        },
        roi_heads: RoiHeadsConfig { pool_size: 1, ..RoiHeadsConfig::default() },
        box_convention: BoxConvention::Continuous,
        key_names: KeyNames::Detectron2,
        label_names: std::iter::once("background".to_string())
            .chain((1..=1600).map(|i| format!("object {i}")))
            .collect(),
        attributes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::expected_tensors;

    #[test]
    fn the_network_expects_the_files_tensors() {
        let expected = expected_tensors(&r50()).unwrap();
        let shape = |name: &str| expected.iter().find(|(other, _)| other == name).map(|(_, shape)| shape.as_slice());
        // As detectron2 builds them by the configuration; background is the network's first class and has box deltas.
        for (name, dims) in [
            ("backbone.stem.conv1.weight", &[64, 3, 7, 7][..]),
            ("backbone.res2.0.shortcut.norm.running_mean", &[256]),
            ("backbone.res5.2.conv2.weight", &[512, 512, 3, 3]),
            ("backbone.res5.0.conv1.norm.bias", &[512]),
            ("proposal_generator.rpn_head.conv.weight", &[2048, 2048, 3, 3]),
            ("proposal_generator.rpn_head.objectness_logits.weight", &[15, 2048, 1, 1]),
            ("proposal_generator.rpn_head.anchor_deltas.bias", &[60]),
            ("roi_heads.box_head.fc1.weight", &[1024, 2048]),
            ("roi_heads.box_head.fc2.bias", &[1024]),
            ("roi_heads.box_predictor.cls_score.weight", &[1601, 1024]),
            ("roi_heads.box_predictor.bbox_pred.weight", &[4 * 1601, 1024]),
        ] {
            assert_eq!(shape(name), Some(dims), "{name}");
        }
        // 53 convolutions, each with four numbers a channel of its norm; the proposal head's three layers; four linear ones.
        assert_eq!(expected.len(), 53 * 5 + 6 + 8);
        let backbone: usize = expected
            .iter()
            .filter(|(name, _)| name.starts_with("backbone.") && !name.contains("running"))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        // python: sum(p.numel() for p in torchvision.models.resnet50().parameters()) - 2048 * 1000 - 1000
        assert_eq!(backbone, 25_557_032 - 2_049_000);
    }
}
