//! Translates torchvision's key names, which the network uses, to detectron2's.

/// detectron2's name for what torchvision calls `name`.
pub(super) fn detectron2(name: &str) -> String {
    let Some((module, parameter)) = name.rsplit_once('.') else { return name.to_string() };
    if let Some(body) = module.strip_prefix("backbone.body.") {
        return match (body, body.strip_prefix("layer").and_then(|rest| rest.split_once('.'))) {
            ("conv1", _) => format!("backbone.stem.conv1.{parameter}"),
            ("bn1", _) => format!("backbone.stem.conv1.norm.{parameter}"),
            // torchvision counts stages from 1, detectron2 includes the stem.
            (_, Some((stage, block))) => match stage.parse::<usize>() {
                Ok(stage) => format!("backbone.res{}.{}.{parameter}", stage + 1, in_block(block)),
                Err(_) => name.to_string(),
            },
            _ => name.to_string(),
        };
    }
    if let Some(block) = module.strip_prefix("roi_heads.res5.") {
        return format!("roi_heads.res5.{}.{parameter}", in_block(block));
    }
    let head = match module {
        "rpn.head.conv.0.0" => "conv",
        "rpn.head.cls_logits" => "objectness_logits",
        "rpn.head.bbox_pred" => "anchor_deltas",
        "roi_heads.box_head.fc6" => return format!("roi_heads.box_head.fc1.{parameter}"),
        "roi_heads.box_head.fc7" => return format!("roi_heads.box_head.fc2.{parameter}"),
        _ => return name.to_string(),
    };
    format!("proposal_generator.rpn_head.{head}.{parameter}")
}

/// A convolution or norm of a residual block, after the block's number.
fn in_block(path: &str) -> String {
    let Some((block, layer)) = path.split_once('.') else { return path.to_string() };
    let layer = match layer {
        "downsample.0" => "shortcut".to_string(),
        "downsample.1" => "shortcut.norm".to_string(),
        _ => match layer.strip_prefix("bn") {
            Some(number) => format!("conv{number}.norm"),
            None => layer.to_string(),
        },
    };
    format!("{block}.{layer}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_layer_gets_detectron2s_name() {
        for (torchvision, expected) in [
            ("backbone.body.conv1.weight", "backbone.stem.conv1.weight"),
            ("backbone.body.bn1.running_var", "backbone.stem.conv1.norm.running_var"),
            ("backbone.body.layer3.22.conv2.weight", "backbone.res4.22.conv2.weight"),
            ("backbone.body.layer1.0.bn3.bias", "backbone.res2.0.conv3.norm.bias"),
            ("backbone.body.layer2.0.downsample.0.weight", "backbone.res3.0.shortcut.weight"),
            ("roi_heads.res5.0.downsample.1.running_mean", "roi_heads.res5.0.shortcut.norm.running_mean"),
            ("roi_heads.res5.2.conv1.weight", "roi_heads.res5.2.conv1.weight"),
            ("rpn.head.conv.0.0.bias", "proposal_generator.rpn_head.conv.bias"),
            ("rpn.head.cls_logits.weight", "proposal_generator.rpn_head.objectness_logits.weight"),
            ("rpn.head.bbox_pred.bias", "proposal_generator.rpn_head.anchor_deltas.bias"),
            ("roi_heads.box_head.fc7.weight", "roi_heads.box_head.fc2.weight"),
            ("roi_heads.box_predictor.fc_attr.weight", "roi_heads.box_predictor.fc_attr.weight"),
        ] {
            assert_eq!(detectron2(torchvision), expected);
        }
    }
}
