//! Bottom-up attention's detector (Anderson et al. 2018): Faster R-CNN on ResNet-101 C4 for the 1600 objects and 400
//! attributes of Visual Genome. LXMERT was trained on its features.
//!
//! Two families of its weights have different conventions, and each needs its own:
//!
//! | | [`hugging_face`] | [`caffe`] |
//! | --- | --- | --- |
//! | weights | `unc-nlp/frcnn-vg-finetuned`, `faster_rcnn_from_caffe_attr.pkl` | MILVLG's `bua-caffe-frcn-r101*.pth` |
//! | input | 800 / 1333, BGR | 600 / 1000, BGR |
//! | boxes | continuous; deltas weigh 10 10 5 5 | inclusive ("+1"); deltas weigh 1 |
//! | a region's box | its best class's | the proposal |
//! | suppression | whatever the class, 0.5, 0.6 or 0.7 | within each class, 0.3 |
//!
//! Sources: `modeling_frcnn.py` and `config.yaml` of huggingface/transformers-research-projects (`lxmert/`);
//! `models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt` and `tools/generate_tsv.py` of
//! peteanderson80/bottom-up-attention; `configs/caffe` of MILVLG/bottom-up-attention.pytorch.
//!
//! In the network, background is class 0 and "no attribute" the first attribute in both, and a proposal has one
//! objectness logit. [`to_network_layout`] converts the files' tensors to this form.

use super::config::{
    AnchorStyle, AttributeConfig, BoxConvention, BoxHead, ChannelOrder, DetectorConfig, KeyNames,
    ObjectEmbeddingConfig, PoolerType, RegionRule, Res5Config, ResNetConfig, Resize, RoiHeadsConfig, RpnConfig,
    TransformConfig,
};
use candle_core::{DType, Tensor};
use lxmert_core::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Names of the objects, from `assets`: peteanderson80/bottom-up-attention, MIT.
pub(crate) const OBJECTS: &str = include_str!("../../assets/vg_objects_vocab.txt");

/// Names of the attributes, likewise.
pub(crate) const ATTRIBUTES: &str = include_str!("../../assets/vg_attributes_vocab.txt");

/// The names in a vocabulary file, one per line; of comma-separated synonyms, the first.
pub fn names(vocabulary: &str) -> impl Iterator<Item = String> + '_ {
    vocabulary.lines().map(|line| line.split(',').next().unwrap_or(line).trim().to_string())
}

/// The detector of Hugging Face's LXMERT demo (`unc-nlp/frcnn-vg-finetuned`).
pub fn hugging_face() -> DetectorConfig {
    DetectorConfig {
        transform: TransformConfig {
            min_size: 800,
            max_size: 1333,
            resize: Resize::Detectron2,
            size_divisor: 1,
            format: ChannelOrder::Bgr,
            pixel_max: 255.0,
            image_mean: [102.9801, 115.9465, 122.7717],
            image_std: [1.0; 3],
        },
        backbone: ResNetConfig {
            blocks: vec![3, 4, 23],
            bottleneck_widths: vec![64, 128, 256],
            stage_widths: vec![256, 512, 1024],
            batch_norm_eps: 1e-5,
            stride_in_1x1: true,
            ceil_mode: true,
            ..ResNetConfig::default()
        },
        fpn: None,
        rpn: RpnConfig {
            anchor_sizes: vec![vec![64.0, 128.0, 256.0, 512.0]],
            anchor_style: AnchorStyle::Detectron2,
            anchor_stride: Some(16),
            hidden_channels: Some(512),
            pre_nms_top_n: 6000,
            post_nms_top_n: 300,
            // Sides must be positive.
            min_box_size: f32::MIN_POSITIVE,
            ..RpnConfig::default()
        },
        roi_heads: RoiHeadsConfig {
            pooler_type: PoolerType::RoiPool,
            pool_size: 14,
            box_head: BoxHead::Res5(Res5Config { blocks: 3, bottleneck_width: 512, dilation: 2 }),
            representation_size: 2048,
            region_rule: RegionRule::ClassAgnostic { nms_thresholds: vec![0.5, 0.6, 0.7] },
            ..RoiHeadsConfig::default()
        },
        box_convention: BoxConvention::Continuous,
        key_names: KeyNames::Detectron2,
        label_names: std::iter::once("background".to_string()).chain(names(OBJECTS)).collect(),
        attributes: vec![AttributeConfig {
            name: "attribute".into(),
            classes: names(ATTRIBUTES).collect(),
            object_embedding: Some(ObjectEmbeddingConfig {
                embedding_size: 256,
                hidden_size: 512,
                counts_no_attribute: false,
            }),
        }],
    }
}

/// The original in Caffe, by MILVLG's converted weights; LXMERT's own features came from it.
pub fn caffe() -> DetectorConfig {
    let mut config = hugging_face();
    config.transform.min_size = 600;
    config.transform.max_size = 1000;
    config.transform.resize = Resize::Caffe;
    config.rpn.anchor_style = AnchorStyle::Caffe;
    config.rpn.min_box_size = 16.0;
    config.roi_heads.box_weights = [1.0; 4];
    config.roi_heads.region_rule = RegionRule::ClassAware { nms_threshold: 0.3, score_threshold: 0.2 };
    config.box_convention = BoxConvention::Inclusive;
    for embedding in config.attributes.iter_mut().filter_map(|attribute| attribute.object_embedding.as_mut()) {
        embedding.counts_no_attribute = true;
    }
    config
}

const LOGITS: &str = "proposal_generator.rpn_head.objectness_logits";
const CELL_ANCHORS: &str = "proposal_generator.anchor_generator.cell_anchors.0";
const PREDICTOR: &str = "roi_heads.box_predictor";

/// Converts a file's tensors to the network's form: MILVLG's names become Hugging Face's, `gamma` and `beta` become
/// `weight` and `bias`; a last row for background moves to the front and gets box deltas; a pair of logits per proposal
/// becomes their difference. Anchors in the file go into `config` in place of the computed ones. `path` is for
/// messages.
///
/// # Errors
/// Returns an error if the file belongs to the other family, or a tensor has another element type.
pub fn to_network_layout(
    config: &mut DetectorConfig,
    path: &Path,
    tensors: BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors: BTreeMap<String, Tensor> =
        tensors.into_iter().map(|(key, tensor)| (hugging_face_name(&key), tensor)).collect();
    let anchors = config.rpn.anchors_per_cell();
    let is_caffe = config.box_convention == BoxConvention::Inclusive;
    let logits = tensors.get(&format!("{LOGITS}.weight")).and_then(|weight| weight.dims().first());
    let (file, other) = match is_caffe {
        true => ("Hugging Face's or detectron2's", "visual-genome"),
        false => ("Caffe's", "visual-genome-caffe"),
    };
    if logits == Some(&if is_caffe { anchors } else { 2 * anchors }) {
        return Err(Error::format(path, format!("these are weights of {file} family; use --detector {other}")));
    }
    if let Some(stored) = tensors.remove(CELL_ANCHORS) {
        let stored = stored.to_dtype(DType::F32)?.to_vec2::<f32>().unwrap_or_default();
        let boxes = stored.iter().map(|row| <[f32; 4]>::try_from(row.as_slice()).ok()).collect::<Option<Vec<_>>>();
        config.rpn.cell_anchors = match boxes {
            Some(boxes) if boxes.len() == anchors => Some(boxes),
            _ => return Err(Error::format(path, format!("'{CELL_ANCHORS}' does not hold {anchors} boxes"))),
        };
    }
    let mut change = |name: &str, change: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>| -> Result<()> {
        for parameter in ["weight", "bias"] {
            let tensor = tensors.get_mut(&format!("{name}.{parameter}"));
            if let Some(tensor) = tensor.filter(|tensor| tensor.dims().first().is_some_and(|rows| *rows > 0)) {
                *tensor = change(tensor)?;
            }
        }
        Ok(())
    };
    if is_caffe {
        // The softmax over background and object is the sigmoid of the difference, and the difference ranks without its
        // rounding.
        change(LOGITS, &|t| t.narrow(0, anchors, anchors)? - t.narrow(0, 0, anchors)?)?;
        return Ok(tensors);
    }
    let last_first = |t: &Tensor| {
        let rest = t.dim(0)? - 1;
        Tensor::cat(&[t.narrow(0, rest, 1)?, t.narrow(0, 0, rest)?], 0)
    };
    for layer in ["cls_score", "cls_embedding", "attr_score"] {
        change(&format!("{PREDICTOR}.{layer}"), &last_first)?;
    }
    change(&format!("{PREDICTOR}.bbox_pred"), &|t| {
        let mut shape = t.dims().to_vec();
        shape[0] = 4;
        Tensor::cat(&[&Tensor::zeros(shape, t.dtype(), t.device())?, t], 0)
    })?;
    Ok(tensors)
}

/// Hugging Face's name for a key of any port.
fn hugging_face_name(key: &str) -> String {
    let (module, parameter) = key.rsplit_once('.').unwrap_or(("", key));
    let parameter = match parameter {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    };
    let module = match module.strip_prefix(PREDICTOR) {
        Some(".cls_embed") => format!("{PREDICTOR}.cls_embedding"),
        Some(".attr_linear1") => format!("{PREDICTOR}.fc_attr"),
        Some(".attr_linear2") => format!("{PREDICTOR}.attr_score"),
        _ => module.to_string(),
    };
    if module.is_empty() { parameter.to_string() } else { format!("{module}.{parameter}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::expected_tensors;

    #[test]
    fn the_network_expects_hugging_faces_tensors() -> Result<()> {
        for config in [hugging_face(), caffe()] {
            let expected = expected_tensors(&config)?;
            // python: len([k for k in GeneralizedRCNN(cfg).state_dict() if "tracked" not in k and "anchors" not in k])
            assert_eq!(expected.len(), 640 - 104 - 1);
            let count: usize = expected.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            // The file's own 65,545,214 minus the 48 of the anchors, plus box deltas for background.
            assert_eq!(count, 65_545_214 - 48 + 4 * 2049);
            assert!(expected.contains(&("backbone.res4.22.conv3.norm.running_var".into(), vec![1024])));
            assert!(expected.contains(&("roi_heads.box_predictor.attr_score.weight".into(), vec![401, 512])));
        }
        assert_eq!((hugging_face().label_names.len(), hugging_face().attributes[0].classes.len()), (1601, 400));
        Ok(())
    }

    #[test]
    fn the_configurations_survive_json() -> anyhow::Result<()> {
        for config in [hugging_face(), caffe()] {
            let text = serde_json::to_string(&config)?;
            assert_eq!(serde_json::from_str::<DetectorConfig>(&text)?, config);
        }
        Ok(())
    }

    #[test]
    fn keys_of_every_port_become_hugging_faces() {
        assert_eq!(
            hugging_face_name("roi_heads.box_predictor.attr_linear1.bias"),
            "roi_heads.box_predictor.fc_attr.bias"
        );
        assert_eq!(hugging_face_name("backbone.stem.conv1.norm.gamma"), "backbone.stem.conv1.norm.weight");
        assert_eq!(hugging_face_name("backbone.stem.conv1.norm.beta"), "backbone.stem.conv1.norm.bias");
        assert_eq!(hugging_face_name("a"), "a");
    }
}
