//! The region proposal network (Ren et al. 2015): at every anchor, how likely there is an object and how its box
//! differs from the anchor.

use super::anchors::AnchorGrid;
use super::box_coder::{BoxCoder, clip, is_at_least};
use super::config::{BoxConvention, DetectorConfig, RpnConfig};
use super::layers::{ConvBlock, ConvShape};
use super::nms::{Suppression, batched_nms};
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::ops::cuda::launches::regions::{Proposing, ProposingLevel, REGION};
use lxmert_core::ops::{Precision, PrepackedConv2d};

/// A 3×3 convolution with ReLU, then 1×1 objectness logits and box deltas; shared by all levels.
#[derive(Debug, Clone)]
pub struct RpnHead {
    convolution: ConvBlock,
    logits: ConvBlock,
    deltas: ConvBlock,
}

/// The head's output for one level, with `A` anchors per cell.
#[derive(Debug, Clone)]
pub struct LevelPrediction {
    /// Objectness logits: `[batch, A, rows, columns]`.
    pub logits: Tensor,
    /// Box deltas: `[batch, 4·A, rows, columns]`, coordinate fastest.
    pub deltas: Tensor,
}

impl LevelPrediction {
    /// Logits `[batch, anchors]` and deltas `[batch, anchors, 4]` in the order of [`AnchorGrid`], with gradients.
    ///
    /// # Errors
    /// Returns an error if the tensors have other shapes.
    pub fn in_anchor_order(&self) -> Result<(Tensor, Tensor)> {
        let (n, a, h, w) = self.logits.dims4()?;
        let logits = self.logits.permute((0, 2, 3, 1))?.reshape((n, h * w * a))?;
        let deltas = self.deltas.reshape((n, a, 4, h, w))?.permute((0, 3, 4, 1, 2))?.reshape((n, h * w * a, 4))?;
        Ok((logits, deltas))
    }
}

impl RpnHead {
    /// Weights `head.conv.0.0`, `head.cls_logits`, `head.bbox_pred` under `vb`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or misshapen.
    pub fn new(config: &RpnConfig, channels: usize, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("head");
        // The paper's (and torchvision's) initialisation.
        let init = Init::Randn { mean: 0.0, stdev: 0.01 };
        let anchors = config.anchors_per_cell();
        let conv = |inputs, outputs, kernel, relu, vb| {
            ConvBlock::with_bias(ConvShape { inputs, outputs, kernel, stride: 1 }, init, relu, vb)
        };
        let hidden = config.hidden_channels.unwrap_or(channels);
        Ok(Self {
            convolution: conv(channels, hidden, 3, true, vb.pp("conv.0.0"))?,
            logits: conv(hidden, anchors, 1, false, vb.pp("cls_logits"))?,
            deltas: conv(hidden, anchors * 4, 1, false, vb.pp("bbox_pred"))?,
        })
    }

    /// The hidden convolution, logits and deltas as one convolution, and the anchors per cell, with prepacked weights.
    pub(super) fn prepack(&self, precision: Precision) -> Result<(PrepackedConv2d, PrepackedConv2d, usize)> {
        let predictor = self.logits.prepack_both(&self.deltas, precision)?;
        Ok((self.convolution.prepack(None, precision)?, predictor, self.logits.outputs()))
    }

    /// `levels`: the pyramid, each `[batch, channels, rows, columns]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward_t(&self, levels: &[Tensor], train: bool) -> Result<Vec<LevelPrediction>> {
        levels
            .iter()
            .map(|level| {
                let hidden = self.convolution.forward_t(level, train)?;
                Ok(LevelPrediction {
                    logits: self.logits.forward_t(&hidden, train)?,
                    deltas: self.deltas.forward_t(&hidden, train)?,
                })
            })
            .collect()
    }
}

/// Boxes that may contain objects, best first.
#[derive(Debug, Clone, Default)]
pub struct Proposals {
    /// In pixels of the resized image.
    pub boxes: Vec<BoxXyxy>,
    /// Objectness, 0..1.
    pub scores: Vec<f32>,
}

impl Proposals {
    /// From the rows of the device's kernels, `[proposals, REGION]`.
    ///
    /// # Errors
    /// Returns an error if the network's values were not finite.
    pub fn of_regions(rows: &[f32]) -> Result<Self> {
        let mut proposals = Self::default();
        for &[x0, y0, x1, y1, score, _] in rows.as_chunks::<REGION>().0.iter().filter(|row| row[5] > 0.0) {
            if score.is_infinite() {
                candle_core::bail!("{NOT_FINITE}");
            }
            proposals.boxes.push([x0, y0, x1, y1]);
            proposals.scores.push(score);
        }
        Ok(proposals)
    }
}

const NOT_FINITE: &str = "the region proposals are NaN or infinite; the detector's weights may be damaged";

/// [`propose`] as the device's kernels compute it, for one image.
///
/// # Errors
/// Returns an error if a prediction has another shape.
pub fn proposing(
    config: &DetectorConfig,
    predictions: &[LevelPrediction],
    (height, width): (usize, usize),
    padded_size: (usize, usize),
    scale: f32,
) -> Result<Proposing> {
    let (convention, config) = (config.box_convention, &config.rpn);
    let level = |(level, prediction): (usize, &LevelPrediction)| {
        let (_, _, rows, columns) = prediction.logits.dims4()?;
        let grid = AnchorGrid::new(config, level, (rows, columns), padded_size);
        let (cells, stride) = ([rows, columns].map(|side| side as u32), grid.strides().map(|stride| stride as u32));
        Ok(ProposingLevel { anchors: grid.of_cell().to_vec(), cells, stride })
    };
    let extra = convention.extra();
    Ok(Proposing {
        levels: predictions.iter().enumerate().map(level).collect::<Result<_>>()?,
        weights: config.box_weights,
        least_side: least_side(config, convention, scale),
        corner: [width as f32 - extra, height as f32 - extra],
        inclusive: convention == BoxConvention::Inclusive,
        score_threshold: config.score_threshold,
        nms_threshold: config.nms_threshold,
        pre_nms_top_n: config.pre_nms_top_n as u32,
        post_nms_top_n: config.post_nms_top_n as u32,
    })
}

/// The least side of a proposal, in pixels of the resized image.
fn least_side(config: &RpnConfig, convention: BoxConvention, scale: f32) -> f32 {
    match convention {
        BoxConvention::Continuous => config.min_box_size,
        BoxConvention::Inclusive => config.min_box_size * scale,
    }
}

/// The proposals of image `index` in the batch: the best of each level, clipped to the image and thinned by suppression
/// within each level, then the best of all (torchvision's `filter_proposals`). With [`BoxConvention::Inclusive`] small
/// boxes are dropped before the best are ranked, not after (Caffe's `proposal_layer.py`). Sizes are (height, width);
/// `scale` converts pixels of the image to pixels of the resized one. There is no gradient.
///
/// # Errors
/// Returns an error if the predictions' shapes do not match.
pub fn propose(
    config: &DetectorConfig,
    predictions: &[LevelPrediction],
    index: usize,
    resized_size: (usize, usize),
    padded_size: (usize, usize),
    scale: f32,
) -> Result<Proposals> {
    let (convention, config) = (config.box_convention, &config.rpn);
    let coder = BoxCoder::new(config.box_weights).with_convention(convention);
    let least_side = least_side(config, convention, scale);
    let (mut boxes, mut scores, mut levels) = (Vec::new(), Vec::new(), Vec::new());
    for (level, prediction) in predictions.iter().enumerate() {
        let (per_cell, rows, columns) = prediction.logits.get(index)?.dims3()?;
        let cells = rows * columns;
        let logits = prediction.logits.get(index)?.flatten_all()?.to_vec1::<f32>()?;
        let deltas = prediction.deltas.get(index)?.flatten_all()?.to_vec1::<f32>()?;
        let anchors = AnchorGrid::new(config, level, (rows, columns), padded_size);
        if anchors.len() != logits.len() || deltas.len() != 4 * logits.len() {
            candle_core::bail!(
                "{} anchors, {} logits and {} deltas at level {level}",
                anchors.len(),
                logits.len(),
                deltas.len()
            );
        }
        // Without this an image would only seem to have no regions.
        if logits.iter().chain(&deltas).any(|value| !value.is_finite()) {
            candle_core::bail!("{NOT_FINITE}");
        }
        // Logits are ordered by anchor shape, then by cell.
        let logit = |anchor: usize| logits[anchor % per_cell * cells + anchor / per_cell];
        let proposal = |anchor: usize| {
            let (shape, cell) = (anchor % per_cell, anchor / per_cell);
            let delta = std::array::from_fn(|i| deltas[(shape * 4 + i) * cells + cell]);
            clip(&coder.decode(delta, &anchors.get(anchor)), resized_size, convention)
        };
        let large = |proposal: &BoxXyxy| is_at_least(proposal, least_side, convention);
        let mut ranked: Vec<usize> = (0..logits.len()).collect();
        if convention == BoxConvention::Inclusive {
            ranked.retain(|&anchor| large(&proposal(anchor)));
        }
        keep_best(&mut ranked, config.pre_nms_top_n, logit);
        for anchor in ranked {
            let (proposal, score) = (proposal(anchor), sigmoid(logit(anchor)));
            if large(&proposal) && score >= config.score_threshold {
                boxes.push(proposal);
                scores.push(score);
                levels.push(level as u32);
            }
        }
    }
    let rule = Suppression { threshold: config.nms_threshold, convention };
    let kept = batched_nms(&boxes, &scores, &levels, rule, config.post_nms_top_n);
    Ok(Proposals { boxes: kept.iter().map(|&i| boxes[i]).collect(), scores: kept.iter().map(|&i| scores[i]).collect() })
}

/// Keeps the `most` indices with the largest values, largest first; ties go by index.
fn keep_best(indices: &mut Vec<usize>, most: usize, value: impl Fn(usize) -> f32) {
    let order = |a: &usize, b: &usize| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    if most < indices.len() {
        indices.select_nth_unstable_by(most, order);
        indices.truncate(most);
    }
    indices.sort_unstable_by(order);
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_best_come_first_and_ties_by_index() {
        let values = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY];
        let best = |most| {
            let mut indices = (0..5).collect();
            keep_best(&mut indices, most, |i| values[i]);
            indices
        };
        assert_eq!(best(3), [1, 3, 2]);
        assert_eq!(best(9), [1, 3, 2, 0, 4]);
    }

    #[test]
    fn a_peak_at_a_cell_becomes_that_cells_anchor() -> Result<()> {
        let rpn = RpnConfig {
            anchor_sizes: vec![vec![8.0]],
            aspect_ratios: vec![1.0, 2.0],
            post_nms_top_n: 1,
            ..RpnConfig::default()
        };
        let config = DetectorConfig { rpn, ..DetectorConfig::coco() };
        let mut logits = vec![-5f32; 2 * 4 * 4];
        logits[16 + 2 * 4 + 1] = 5.0; // second shape, row 2, column 1
        let prediction = LevelPrediction {
            logits: Tensor::from_vec(logits, (1, 2, 4, 4), &Device::Cpu)?,
            deltas: Tensor::zeros((1, 8, 4, 4), DType::F32, &Device::Cpu)?,
        };
        let (flat, _) = prediction.in_anchor_order()?;
        assert_eq!(flat.argmax(1)?.to_vec1::<u32>()?, [(2 * 4 + 1) * 2 + 1]);
        let proposed = |prediction| propose(&config, std::slice::from_ref(prediction), 0, (32, 32), (32, 32), 1.0);
        let nan = LevelPrediction { logits: (&prediction.logits * f64::NAN)?, ..prediction.clone() };
        assert!(proposed(&nan).unwrap_err().to_string().contains("are NaN"));
        let proposals = proposed(&prediction)?;
        // 8-pixel anchor of ratio 2 (6×12 after rounding) around (8, 16)
        assert_eq!(proposals.boxes, [[5.0, 10.0, 11.0, 22.0]]);
        assert!((proposals.scores[0] - 0.993_307).abs() < 1e-5);

        // At least 4.5 pixels of an image that is enlarged twice: the best box, 8 pixels wide, is too narrow and the
        // next takes its place; those at the border are clipped too small.
        let mut inclusive = DetectorConfig { box_convention: BoxConvention::Inclusive, ..config };
        inclusive.rpn.min_box_size = 4.5;
        inclusive.rpn.pre_nms_top_n = 1;
        let proposals = propose(&inclusive, &[prediction], 0, (32, 32), (32, 32), 2.0)?;
        assert_eq!(proposals.boxes, [[4.0, 4.0, 13.0, 13.0]]);
        Ok(())
    }
}
