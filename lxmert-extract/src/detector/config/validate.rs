//! Checks that a detector's settings fit each other.

use super::{Block, BoxHead, DetectorConfig};
use lxmert_core::{Error, Result};

impl DetectorConfig {
    /// Checks that the fields are consistent and no size is absurd.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the field and its valid values.
    pub fn validate(&self) -> Result<()> {
        const LARGEST: usize = 1 << 16;
        // A ResNet-152 has 36. Every block has some twenty weights, whose names are made before a file is looked at.
        const MOST_BLOCKS: usize = 256;
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
        if let Some(fpn) = &self.fpn {
            let rising = fpn.stages.windows(2).all(|pair| pair[0] < pair[1]);
            if fpn.stages.is_empty() || !rising || fpn.stages.iter().any(|s| !(1..=stages).contains(s)) {
                return refuse(format!("fpn.stages {:?} must be ascending within 1..={stages}", fpn.stages));
            }
        }
        if self.rpn.anchor_sizes.len() != self.num_levels() {
            return refuse(format!(
                "rpn.anchor_sizes has {} entries for {} levels",
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
        if let Some(anchors) = &self.rpn.cell_anchors
            && (self.num_levels() != 1 || anchors.len() != self.rpn.anchors_per_cell())
        {
            return refuse(format!(
                "rpn.cell_anchors has {} boxes; {} of one level are needed",
                anchors.len(),
                self.rpn.anchors_per_cell()
            ));
        }
        let floats = [
            ("transform.pixel_max", std::slice::from_ref(&self.transform.pixel_max)),
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
            ("fpn.channels", self.level_channels()),
            ("rpn.anchor_stride", self.rpn.anchor_stride.unwrap_or(1)),
            ("rpn.hidden_channels", self.rpn.hidden_channels.unwrap_or(1)),
            ("rpn.pre_nms_top_n", self.rpn.pre_nms_top_n),
            ("rpn.post_nms_top_n", self.rpn.post_nms_top_n),
            ("roi_heads.pool_size", heads.pool_size),
            ("roi_heads.sampling_ratio", heads.sampling_ratio),
            ("roi_heads.representation_size", heads.representation_size),
            ("roi_heads.max_detections", heads.max_detections),
        ];
        if let BoxHead::Res5(res5) = &heads.box_head {
            sizes.push(("roi_heads.box_head.blocks", res5.blocks));
            sizes.push(("roi_heads.box_head.bottleneck_width", res5.bottleneck_width));
        }
        for embedding in self.attributes.iter().filter_map(|attribute| attribute.object_embedding.as_ref()) {
            sizes.push(("attributes.object_embedding.embedding_size", embedding.embedding_size));
            sizes.push(("attributes.object_embedding.hidden_size", embedding.hidden_size));
        }
        sizes.extend(body.blocks.iter().map(|n| ("backbone.blocks", *n)));
        sizes.extend(body.stage_widths.iter().map(|n| ("backbone.stage_widths", *n)));
        if body.block == Block::Bottleneck {
            sizes.extend(body.bottleneck_widths.iter().map(|n| ("backbone.bottleneck_widths", *n)));
        }
        if let Some((name, value)) = sizes.iter().find(|(_, n)| !(1..=LARGEST).contains(n)) {
            return refuse(format!("{name} is {value}, not within 1..={LARGEST}"));
        }
        if let Some((name, value)) = sizes.iter().find(|(name, n)| name.ends_with(".blocks") && *n > MOST_BLOCKS) {
            return refuse(format!("{name} is {value}, not within 1..={MOST_BLOCKS}"));
        }
        if let Some(coarsest) = self.fpn.as_ref().and_then(|fpn| fpn.stages.last()).map(|stage| 4usize << (stage - 1))
            && !self.transform.size_divisor.is_multiple_of(coarsest)
        {
            return refuse(format!(
                "transform.size_divisor {} is not a multiple of the coarsest stride {coarsest}",
                self.transform.size_divisor
            ));
        }
        if let BoxHead::Res5(res5) = &heads.box_head
            && (res5.dilation == 0 || !heads.pool_size.is_multiple_of(res5.dilation))
        {
            return refuse(format!(
                "roi_heads.box_head: a dilation of {} does not divide pool_size {}",
                res5.dilation, heads.pool_size
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
    use super::super::FpnConfig;
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
    fn rejects_contradictions_and_names_the_field() {
        let refusal = |change: fn(&mut DetectorConfig)| {
            let mut config = DetectorConfig::coco();
            change(&mut config);
            config.validate().map_or_else(|e| e.to_string(), |()| "accepted".into())
        };
        assert!(refusal(|c| c.rpn.anchor_sizes.truncate(4)).contains("rpn.anchor_sizes has 4"));
        assert!(refusal(|c| c.rpn.anchor_sizes[2].clear()).contains("as many sizes"));
        assert!(
            refusal(|c| c.fpn = Some(FpnConfig { stages: vec![2, 2, 3, 4], ..FpnConfig::default() }))
                .contains("fpn.stages")
        );
        assert!(refusal(|c| c.backbone.stage_widths[1] = 0).contains("backbone.stage_widths is 0"));
        assert!(refusal(|c| c.transform.size_divisor = 16).contains("coarsest stride 32"));
        assert!(refusal(|c| c.transform.image_std[0] = 0.0).contains("image_std"));
        assert!(refusal(|c| c.label_names.truncate(1)).contains("label_names"));
        assert!(refusal(|c| c.roi_heads.pool_size = usize::MAX).contains("pool_size"));
    }
}
