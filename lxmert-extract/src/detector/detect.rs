//! The whole detector on one image, and torchvision's choice of detections.

use super::box_coder::{BoxCoder, clip, is_at_least};
use super::config::{BoxConvention, DetectorConfig};
use super::inference::PrepackedNetwork;
use super::nms::{Suppression, batched_nms};
use super::rpn::{LevelPrediction, Proposals, propose, proposing};
use super::transform::{NetworkInput, transform};
use super::{Network, NormMode};
use crate::images::DecodedImage;
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use lxmert_core::Result;
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::features::Attributes;
use lxmert_core::ops::cuda::regions;
use lxmert_core::ops::{Precision, in_pool};
use std::sync::Arc;

/// A Faster R-CNN with its weights.
#[derive(Debug, Clone)]
pub struct Detector {
    config: DetectorConfig,
    network: Network,
    packed: Option<Arc<PrepackedNetwork>>,
    device: Device,
}

/// Everything the network computes for one image, before detections are chosen.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// The network's input, and the image's sizes.
    pub input: NetworkInput,
    /// The levels, finest first: on a CUDA device whose kernels pool from them, or on the CPU. If the configuration has a
    /// pooled level, it is last and serves only proposals.
    pub levels: Vec<Tensor>,
    /// Boxes of the proposal network, best first, or those given to [`Detector::analyse_boxes`].
    pub proposals: Proposals,
    /// The feature of each proposal, pooled at the proposal's box: `[proposals, representation_size]`, on the CPU.
    pub features: Tensor,
    /// Class logits: `[proposals, classes]`, on the CPU.
    pub class_logits: Tensor,
    probabilities: Vec<f32>,
    deltas: Vec<f32>,
    classes: usize,
    coder: BoxCoder,
    convention: BoxConvention,
}

/// What the network finds, on the CPU; the fields are those of [`Analysis`].
struct Found {
    proposals: Proposals,
    features: Tensor,
    class_logits: Tensor,
    deltas: Vec<f32>,
}

impl Analysis {
    /// Softmax of proposal `index` over the classes, background (0) included.
    pub fn probabilities(&self, index: usize) -> &[f32] {
        &self.probabilities[index * self.classes..][..self.classes]
    }

    /// Number of classes, background included.
    pub fn num_classes(&self) -> usize {
        self.classes
    }

    /// The most probable class of proposal `index` other than background, and its probability.
    pub fn best_class(&self, index: usize) -> (usize, f32) {
        let mut best = (1, f32::NEG_INFINITY);
        for (class, &probability) in self.probabilities(index).iter().enumerate().skip(1) {
            if probability > best.1 {
                best = (class, probability);
            }
        }
        best
    }

    /// The box of proposal `index` after the regression for `class`, clipped to the image; in pixels of the resized
    /// image.
    pub fn regressed_box(&self, index: usize, class: usize) -> BoxXyxy {
        let at = (index * self.classes + class) * 4;
        let deltas = std::array::from_fn(|i| self.deltas[at + i]);
        let (proposal, input) = (&self.proposals.boxes[index], &self.input);
        match self.convention {
            BoxConvention::Continuous => {
                clip(&self.coder.decode(deltas, proposal), input.resized_size, self.convention)
            }
            // In pixels of the original image, where "one pixel" is larger.
            BoxConvention::Inclusive => {
                let decoded = self.coder.decode(deltas, &input.to_image(proposal));
                input.to_resized(&clip(&decoded, input.image_size, self.convention))
            }
        }
    }
}

/// Labelled boxes of one image, best first.
#[derive(Debug, Clone)]
pub struct Detections {
    /// In pixels of the image.
    pub boxes_xyxy_px: Vec<BoxXyxy>,
    /// In pixels of the resized image.
    pub boxes_resized_px: Vec<BoxXyxy>,
    /// Label ids, 1 and up.
    pub labels: Vec<u32>,
    /// Probabilities.
    pub scores: Vec<f32>,
    /// The feature of each detection, pooled at its box: `[detections, representation_size]`, on the CPU.
    pub features: Tensor,
}

/// A labelled box, in pixels of the resized image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The box.
    pub box_xyxy: BoxXyxy,
    /// Label id, 1 and up.
    pub label: u32,
    /// Probability.
    pub score: f32,
}

impl Detector {
    /// Takes the weights from `vb` and folds the batch norms. Weights and inputs of products are rounded to
    /// `precision`: with bf16, levels and features are within 2 % of f32 (norm of the difference over norm).
    ///
    /// # Errors
    /// Returns an error if `config` is invalid, a weight is missing or misshapen, or bf16 is requested where prepacked
    /// weights cannot be used.
    pub fn new(config: &DetectorConfig, precision: Precision, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let device = vb.device().clone();
        let network = Network::new(config, NormMode::Folded, vb)?;
        let packed = PrepackedNetwork::new(&network, precision)?.map(Arc::new);
        if packed.is_none() && precision == Precision::Bf16 {
            return Err(lxmert_core::Error::Argument(format!(
                "--precision {precision} needs the detector's CPU kernels: use --device cpu and unset LXMERT_KERNELS"
            )));
        }
        Ok(Self { config: config.clone(), network, packed, device })
    }

    /// Its configuration.
    pub fn config(&self) -> &DetectorConfig {
        &self.config
    }

    /// Its trained stages.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Prepares an image for the network.
    ///
    /// # Errors
    /// See [`transform`].
    pub fn input(&self, image: &DecodedImage) -> Result<NetworkInput> {
        transform(&self.config.transform, image, &self.device)
    }

    /// Runs the network on an image.
    ///
    /// # Errors
    /// Returns an error if a computation fails.
    pub fn analyse(&self, input: NetworkInput) -> Result<Analysis> {
        in_pool(&self.device, || self.analysis(input, None))
    }

    /// As [`analyse`](Self::analyse), with `boxes` (in pixels of the resized image) instead of proposals.
    ///
    /// # Errors
    /// Returns an error if a computation fails.
    pub fn analyse_boxes(&self, input: NetworkInput, boxes: Vec<BoxXyxy>) -> Result<Analysis> {
        in_pool(&self.device, || self.analysis(input, Some(boxes)))
    }

    /// The output of the backbone's last stage, `[1, channels, rows, columns]` over the padded input, on the CPU.
    ///
    /// # Errors
    /// Returns an error if a computation fails.
    pub fn last_map(&self, input: &NetworkInput) -> Result<Tensor> {
        in_pool(&self.device, || match &self.packed {
            Some(packed) => Ok(packed.last_map(&input.tensor)?),
            None => {
                let stages = self.network.body.forward_t(&input.tensor, false)?;
                // A valid configuration has at least one stage.
                Ok(stages[stages.len() - 1].to_device(&Device::Cpu)?)
            }
        })
    }

    fn analysis(&self, input: NetworkInput, boxes: Option<Vec<BoxXyxy>>) -> Result<Analysis> {
        let (levels, predictions) = match &self.packed {
            Some(packed) => packed.forward(&input.tensor, boxes.is_none())?,
            None => {
                let levels = self.network.levels(&input.tensor, false)?;
                let wanted = if boxes.is_none() { levels.as_slice() } else { &[] };
                let predictions = self.network.rpn.forward_t(wanted, false)?;
                (levels, predictions)
            }
        };
        let (levels, found) = match self.found_on_device(&levels, &predictions, boxes.as_deref(), &input)? {
            Some(found) => (levels, found),
            None => {
                let levels = levels.iter().map(|level| level.to_device(&Device::Cpu));
                let levels = levels.collect::<candle_core::Result<Vec<_>>>()?;
                let found = self.found(&levels, &predictions, boxes, &input)?;
                (levels, found)
            }
        };
        let Found { proposals, features, class_logits, deltas } = found;
        let classes = self.config.num_classes();
        Ok(Analysis {
            probabilities: softmax_rows(class_logits.flatten_all()?.to_vec1::<f32>()?, classes),
            input,
            levels,
            proposals,
            features,
            class_logits,
            deltas,
            classes,
            coder: BoxCoder::new(self.config.roi_heads.box_weights).with_convention(self.config.box_convention),
            convention: self.config.box_convention,
        })
    }

    /// What the network finds in an image's levels, which are on the CPU.
    fn found(
        &self,
        levels: &[Tensor],
        predictions: &[LevelPrediction],
        boxes: Option<Vec<BoxXyxy>>,
        input: &NetworkInput,
    ) -> Result<Found> {
        let proposals = match boxes {
            Some(boxes) => Proposals { scores: vec![1.0; boxes.len()], boxes },
            None => propose(&self.config, predictions, 0, input.resized_size, input.padded_size, input.scale)?,
        };
        let features = self.features_on_device(levels, &proposals.boxes, input)?;
        let (class_logits, deltas) = if proposals.boxes.is_empty() {
            (Tensor::zeros((0, self.config.num_classes()), features.dtype(), &Device::Cpu)?, Vec::new())
        } else {
            let prediction = self.network.roi_heads.predict(&features)?;
            (prediction.class_logits.to_device(&Device::Cpu)?, prediction.box_deltas.flatten_all()?.to_vec1::<f32>()?)
        };
        Ok(Found { proposals, features: features.to_device(&Device::Cpu)?, class_logits, deltas })
    }

    /// The same by the kernels of the device that the levels are on, read back in one copy; none where they do not apply.
    fn found_on_device(
        &self,
        levels: &[Tensor],
        predictions: &[LevelPrediction],
        boxes: Option<&[BoxXyxy]>,
        input: &NetworkInput,
    ) -> Result<Option<Found>> {
        if !self.device.is_cuda() {
            return Ok(None);
        }
        let rows = match boxes {
            Some(boxes) => Some(self.upload(boxes)?),
            None => {
                let (resized, padded) = (input.resized_size, input.padded_size);
                let proposing = proposing(&self.config, predictions, resized, padded, input.scale)?;
                regions::propose(&proposing, &predictions.iter().map(|p| [&p.logits, &p.deltas]).collect::<Vec<_>>())?
            }
        };
        let Some(rows) = rows else { return Ok(None) };
        let Some(features) = self.features_of(levels, &rows, input)? else { return Ok(None) };
        let prediction = self.network.roi_heads.predict(&features)?;
        let all = [&rows, &features, &prediction.class_logits, &prediction.box_deltas];
        let flat = all.iter().map(|part| part.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?;
        let values = Tensor::cat(&flat, 0)?.to_vec1::<f32>()?;
        let [rows, features, logits, deltas] = all.map(|part| part.dims2());
        let mut values = values.as_slice();
        // There may be fewer proposals than rows.
        let mut take = |(height, width): (usize, usize), real: usize| {
            let (part, rest) = values.split_at(height * width);
            values = rest;
            (part[..real.min(height) * width].to_vec(), width)
        };
        let proposals = Proposals::of_regions(&take(rows?, usize::MAX).0)?;
        let count = proposals.boxes.len();
        let mut tensor = |dims: candle_core::Result<(usize, usize)>| -> Result<Tensor> {
            let (part, width) = take(dims?, count);
            Ok(Tensor::from_vec(part, (count, width), &Device::Cpu)?)
        };
        let (features, class_logits) = (tensor(features)?, tensor(logits)?);
        Ok(Some(Found { proposals, features, class_logits, deltas: take(deltas?, count).0 }))
    }

    /// Boxes as the rows of the device's kernels.
    fn upload(&self, boxes: &[BoxXyxy]) -> Result<Tensor> {
        let rows: Vec<f32> = boxes.iter().flat_map(|b| [b[0], b[1], b[2], b[3], 1.0, 1.0]).collect();
        Ok(Tensor::from_vec(rows, (boxes.len(), regions::REGION), &self.device)?)
    }

    /// The features of such rows, `[rows, representation_size]`, by the kernels of the device that they are on; none where they do not
    /// apply.
    fn features_of(&self, levels: &[Tensor], rows: &Tensor, input: &NetworkInput) -> Result<Option<Tensor>> {
        let (heads, levels) = (&self.network.roi_heads, &levels[..self.config.num_pooled_levels()]);
        let pooled = regions::pool(&heads.pooler.pooling(levels, input.padded_size)?, levels, rows)?;
        Ok(pooled.map(|pooled| heads.features(&pooled)).transpose()?)
    }

    /// Region features pooled at `boxes` (pixels of the resized image): `[boxes, representation_size]`, on
    /// the CPU.
    ///
    /// # Errors
    /// Returns an error if a computation fails.
    pub fn features_at(&self, analysis: &Analysis, boxes: &[BoxXyxy]) -> Result<Tensor> {
        Ok(self.features_on_device(&analysis.levels, boxes, &analysis.input)?.to_device(&Device::Cpu)?)
    }

    fn features_on_device(&self, levels: &[Tensor], boxes: &[BoxXyxy], input: &NetworkInput) -> Result<Tensor> {
        if boxes.is_empty() {
            let size = self.config.roi_heads.representation_size;
            return Ok(Tensor::zeros((0, size), candle_core::DType::F32, &self.device)?);
        }
        if self.device.is_cuda()
            && let Some(features) = self.features_of(levels, &self.upload(boxes)?, input)?
        {
            return Ok(features);
        }
        let (levels, boxes) = (&levels[..self.config.num_pooled_levels()], [boxes.to_vec()]);
        if let Some(packed) = &self.packed {
            return Ok(packed.features(levels, &boxes, input.padded_size)?);
        }
        let heads = &self.network.roi_heads;
        let pooled = heads.pooler.forward(levels, &boxes, input.padded_size)?;
        Ok(heads.features(&pooled.to_device(&self.device)?)?)
    }

    /// The most probable value of the configuration's first attribute head for each of the region features `[regions,
    /// representation_size]`: an index into the attribute's classes, and its probability. A region of a feature store
    /// has one attribute (bottom-up attention's detector predicts only one; for the detector of scenes it is the
    /// colour). `None` if there is no such head.
    ///
    /// # Errors
    /// Returns an error if the features have another length.
    pub fn first_attribute(&self, features: &Tensor) -> Result<Option<Attributes>> {
        let Some(attribute) = self.config.attributes.first() else { return Ok(None) };
        if features.dim(0)? == 0 {
            return Ok(Some(Attributes::default()));
        }
        let prediction = self.network.roi_heads.predict(&features.to_device(&self.device)?)?;
        // There is one head per attribute of the configuration.
        let logits = prediction.attribute_logits[0].flatten_all()?.to_vec1::<f32>()?;
        let values = attribute.classes.len();
        // A head that depends on the object class has a logit for "no attribute" first.
        let (logits, width) = match &attribute.object_embedding {
            Some(head) if head.counts_no_attribute => (logits, values + 1),
            Some(_) => (logits.chunks_exact(values + 1).flat_map(|row| &row[1..]).copied().collect(), values),
            None => (logits, values),
        };
        let mut found = Attributes::default();
        for row in softmax_rows(logits, width).chunks_exact(width) {
            let row = &row[width - values..];
            let (mut label, mut score) = (0, row[0]);
            for (i, &probability) in row.iter().enumerate().skip(1) {
                if probability > score {
                    (label, score) = (i as u32, probability);
                }
            }
            found.labels.push(label);
            found.scores.push(score);
        }
        Ok(Some(found))
    }

    /// torchvision's detections: every class of every proposal is a candidate; keeps scores above the threshold, drops
    /// tiny boxes, suppresses within each class, and keeps the best 100.
    pub fn candidates(&self, analysis: &Analysis) -> Vec<Candidate> {
        let heads = &self.config.roi_heads;
        let mut all = Vec::new();
        for index in 0..analysis.proposals.boxes.len() {
            for (class, &score) in analysis.probabilities(index).iter().enumerate().skip(1) {
                if score > heads.score_threshold {
                    let box_xyxy = analysis.regressed_box(index, class);
                    if is_at_least(&box_xyxy, heads.min_box_size, self.config.box_convention) {
                        all.push(Candidate { box_xyxy, label: class as u32, score });
                    }
                }
            }
        }
        let boxes: Vec<BoxXyxy> = all.iter().map(|c| c.box_xyxy).collect();
        let scores: Vec<f32> = all.iter().map(|c| c.score).collect();
        let labels: Vec<u32> = all.iter().map(|c| c.label).collect();
        let rule = Suppression { threshold: heads.nms_threshold, convention: self.config.box_convention };
        let kept = batched_nms(&boxes, &scores, &labels, rule, heads.max_detections);
        kept.into_iter().map(|i| all[i]).collect()
    }

    /// The detections of an image, with the feature at each box.
    ///
    /// # Errors
    /// Returns an error if a computation fails.
    pub fn detections(&self, analysis: &Analysis) -> Result<Detections> {
        let candidates = self.candidates(analysis);
        let boxes_resized_px: Vec<BoxXyxy> = candidates.iter().map(|c| c.box_xyxy).collect();
        Ok(Detections {
            boxes_xyxy_px: boxes_resized_px.iter().map(|b| analysis.input.to_image(b)).collect(),
            labels: candidates.iter().map(|c| c.label).collect(),
            scores: candidates.iter().map(|c| c.score).collect(),
            features: self.features_at(analysis, &boxes_resized_px)?,
            boxes_resized_px,
        })
    }

    /// Detects objects in an image.
    ///
    /// # Errors
    /// Returns an error if the image has no pixels or a computation fails.
    pub fn detect(&self, image: &DecodedImage) -> Result<Detections> {
        self.detections(&self.analyse(self.input(image)?)?)
    }
}

/// Softmax of each row of `width` values.
fn softmax_rows(mut values: Vec<f32>, width: usize) -> Vec<f32> {
    for row in values.chunks_exact_mut(width.max(1)) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in row.iter_mut() {
            *value = (*value - largest).exp();
            sum += *value;
        }
        for value in row.iter_mut() {
            *value /= sum;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_distributions() {
        let p = softmax_rows(vec![1000.0, 1000.0, 0.0, 0.0, 0.0, 0.0], 3);
        assert_eq!(p[..3], [0.5, 0.5, 0.0]);
        assert!((p[3..].iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
