//! One step of training: network, targets, losses, gradient, update.

use super::initial::SeededVariables;
use super::targets::{Match, Matcher, sample};
use crate::detector::anchors::AnchorGrid;
use crate::detector::box_coder::BoxCoder;
use crate::detector::rpn::{LevelPrediction, propose};
use crate::detector::transform::transform;
use crate::detector::{DetectorConfig, Network, NormMode};
use crate::images::DecodedImage;
use candle_core::{Device, Tensor};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::losses::{binary_cross_entropy, cross_entropy, smooth_l1};
use lxmert_core::ops;
use lxmert_core::optim::{AdamW, AdamWConfig};
use lxmert_core::{Error, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Where the box loss changes from quadratic to linear, as in torchvision.
const SMOOTH_L1_BETA: f64 = 1.0 / 9.0;

/// Training settings. The papers fix the others; see [`Matcher`] and the losses.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingConfig {
    /// Number of updates.
    pub steps: usize,
    /// Images per update.
    pub batch_size: usize,
    /// Peak learning rate of AdamW.
    pub learning_rate: f64,
    /// Updates during which the rate rises; then it falls to 0 along a cosine.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Anchors per image in the proposal losses, at most half of them objects.
    pub anchors_per_image: usize,
    /// Proposals per image in the losses of the heads, at most a quarter of them objects.
    pub proposals_per_image: usize,
    /// Seed of the weights and of all random draws.
    pub seed: u64,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 8,
            learning_rate: 2e-3,
            warmup_steps: 60,
            weight_decay: 1e-4,
            anchors_per_image: 64,
            proposals_per_image: 48,
            seed: 0,
        }
    }
}

impl TrainingConfig {
    /// The rate of update `step`, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let length = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / length).min(1.0);
        self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

/// An image with its true objects.
#[derive(Debug, Clone)]
pub struct Example {
    /// The picture. All examples of a batch have the same size.
    pub image: DecodedImage,
    /// Boxes in pixels of the image.
    pub boxes_xyxy_px: Vec<BoxXyxy>,
    /// Label id of each object, 1 and up.
    pub labels: Vec<u32>,
    /// For each attribute head, the value of each object.
    pub attributes: Vec<Vec<u32>>,
}

/// The losses of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepLosses {
    /// Loss of the anchors' objectness.
    pub objectness: f32,
    /// Loss of the proposals' boxes.
    pub proposal_boxes: f32,
    /// Loss of the regions' classes.
    pub classes: f32,
    /// Loss of the regions' boxes.
    pub boxes: f32,
    /// Loss of the regions' attributes, summed over the heads.
    pub attributes: f32,
}

impl StepLosses {
    /// The sum, which training minimises.
    pub fn total(&self) -> f32 {
        self.objectness + self.proposal_boxes + self.classes + self.boxes + self.attributes
    }

    /// Moves each loss by `share` of the way to another's: a moving average.
    pub(super) fn towards(&self, other: &Self, share: f32) -> Self {
        let mix = |a: f32, b: f32| a + share * (b - a);
        Self {
            objectness: mix(self.objectness, other.objectness),
            proposal_boxes: mix(self.proposal_boxes, other.proposal_boxes),
            classes: mix(self.classes, other.classes),
            boxes: mix(self.boxes, other.boxes),
            attributes: mix(self.attributes, other.attributes),
        }
    }
}

impl std::fmt::Display for StepLosses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { objectness, proposal_boxes, classes, boxes, attributes } = self;
        write!(
            f,
            "loss {:.2}: objectness {objectness:.2}, proposals {proposal_boxes:.3}, classes {classes:.2}, \
             boxes {boxes:.2}, attributes {attributes:.2}",
            self.total()
        )
    }
}

/// A network in training.
pub struct Trainer {
    config: TrainingConfig,
    detector: DetectorConfig,
    network: Network,
    variables: SeededVariables,
    optimizer: AdamW,
    rng: ChaCha8Rng,
    step: usize,
    device: Device,
}

impl Trainer {
    /// A network with fresh weights on `device`.
    ///
    /// # Errors
    /// Returns an error if a configuration cannot be used.
    pub fn new(config: &TrainingConfig, detector: &DetectorConfig, device: &Device) -> Result<Self> {
        detector.validate()?;
        if config.steps == 0 || config.batch_size == 0 || config.anchors_per_image < 2 || config.proposals_per_image < 4
        {
            return Err(Error::Argument(format!("training needs steps, images and samples, not {config:?}")));
        }
        let variables = SeededVariables::new(config.seed);
        let network = Network::new(detector, NormMode::Batch, variables.builder(device))?;
        let mut learnt = variables.all();
        learnt.retain(|name, _| !name.ends_with("running_mean") && !name.ends_with("running_var"));
        let constants = AdamWConfig { weight_decay: config.weight_decay, decay_all: true, ..AdamWConfig::default() };
        Ok(Self {
            optimizer: AdamW::new(constants, learnt)?,
            rng: ChaCha8Rng::seed_from_u64(config.seed),
            config: config.clone(),
            detector: detector.clone(),
            network,
            variables,
            step: 0,
            device: device.clone(),
        })
    }

    /// Number of updates so far.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// The weights under torchvision's key names, with the running moments of the batch norms.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        self.variables.all().into_iter().map(|(name, variable)| (name, variable.as_detached_tensor())).collect()
    }

    /// Trains on one batch.
    ///
    /// # Errors
    /// Returns an error if the images differ in size, an object has an unknown label, or the losses are not finite.
    pub fn train_on(&mut self, batch: &[Example]) -> Result<StepLosses> {
        let (loss, losses) = self.losses(batch)?;
        if !losses.total().is_finite() {
            return Err(Error::Argument(format!(
                "training diverged at step {}: {losses:?}; lower the learning rate",
                self.step
            )));
        }
        let gradients = self.optimizer.gradients(&ops::backward(&loss)?);
        self.optimizer.step(&gradients, self.config.learning_rate_at(self.step), 1.0)?;
        self.step += 1;
        Ok(losses)
    }

    fn losses(&mut self, batch: &[Example]) -> Result<(Tensor, StepLosses)> {
        let inputs = batch
            .par_iter()
            .map(|example| transform(&self.detector.transform, &example.image, &self.device))
            .collect::<Result<Vec<_>>>()?;
        let Some(first) = inputs.first() else {
            return Err(Error::Argument("a batch without an image".into()));
        };
        let (resized, padded, scale) = (first.resized_size, first.padded_size, first.scale);
        let images = Tensor::cat(&inputs.iter().map(|input| &input.tensor).collect::<Vec<_>>(), 0)?;
        let truth: Vec<Vec<BoxXyxy>> = batch
            .iter()
            .zip(&inputs)
            .map(|(example, input)| {
                let (y, x) = (
                    input.resized_size.0 as f32 / input.image_size.0 as f32,
                    input.resized_size.1 as f32 / input.image_size.1 as f32,
                );
                example.boxes_xyxy_px.iter().map(|b| [b[0] * x, b[1] * y, b[2] * x, b[3] * y]).collect()
            })
            .collect();

        let levels = self.network.levels(&images, true)?;
        let predictions = self.network.rpn.forward_t(&levels, true)?;
        let (objectness, proposal_boxes) = self.proposal_losses(&predictions, &truth, padded)?;

        let proposals = (0..batch.len())
            .into_par_iter()
            .map(|index| Ok(propose(&self.detector, &predictions, index, resized, padded, scale)?.boxes))
            .collect::<Result<Vec<_>>>()?;
        let levels = &levels[..self.detector.num_pooled_levels()];
        let (classes, boxes, attributes) = self.region_losses(levels, proposals, batch, &truth, padded)?;

        let value = |loss: &Tensor| Ok::<f32, Error>(loss.to_scalar::<f32>()?);
        let losses = StepLosses {
            objectness: value(&objectness)?,
            proposal_boxes: value(&proposal_boxes)?,
            classes: value(&classes)?,
            boxes: value(&boxes)?,
            attributes: value(&attributes)?,
        };
        let total = ((((objectness + proposal_boxes)? + classes)? + boxes)? + attributes)?;
        Ok((total, losses))
    }

    /// Objectness and box losses of sampled anchors.
    fn proposal_losses(
        &mut self,
        predictions: &[LevelPrediction],
        truth: &[Vec<BoxXyxy>],
        padded: (usize, usize),
    ) -> Result<(Tensor, Tensor)> {
        let mut anchors: Vec<BoxXyxy> = Vec::new();
        let (mut logits, mut deltas) = (Vec::new(), Vec::new());
        for (level, prediction) in predictions.iter().enumerate() {
            let map_size = (prediction.logits.dim(2)?, prediction.logits.dim(3)?);
            anchors.extend(AnchorGrid::new(&self.detector.rpn, level, map_size, padded).iter());
            let (of_level, deltas_of_level) = prediction.in_anchor_order()?;
            logits.push(of_level);
            deltas.push(deltas_of_level);
        }
        let logits = Tensor::cat(&logits, 1)?.flatten_all()?;
        let deltas = Tensor::cat(&deltas, 1)?.flatten(0, 1)?;

        let matches: Vec<Vec<Match>> =
            truth.par_iter().map(|boxes| Matcher::ANCHORS.match_boxes(&anchors, boxes)).collect();
        let coder = BoxCoder::new(self.detector.rpn.box_weights);
        let (mut positives, mut negatives, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for (image, matches) in matches.iter().enumerate() {
            let drawn = sample(matches, self.config.anchors_per_image, 0.5, &mut self.rng);
            let first = image * anchors.len();
            for (anchor, object) in drawn.positives {
                positives.push((first + anchor) as u32);
                wanted.extend(coder.encode(&truth[image][object], &anchors[anchor]));
            }
            negatives.extend(drawn.negatives.iter().map(|anchor| (first + anchor) as u32));
        }
        let count = positives.len() + negatives.len();
        let mut targets = vec![1f32; positives.len()];
        targets.resize(count, 0.0);
        let all = [positives.as_slice(), &negatives].concat();
        let chosen = logits.index_select(&Tensor::from_vec(all, count, &self.device)?, 0)?;
        let objectness = binary_cross_entropy(&chosen, &Tensor::from_vec(targets, count, &self.device)?)?.mean_all()?;
        let boxes = self.box_loss(&deltas, positives, wanted, count)?;
        Ok((objectness, boxes))
    }

    /// Class, box and attribute losses of sampled proposals.
    fn region_losses(
        &mut self,
        levels: &[Tensor],
        mut proposals: Vec<Vec<BoxXyxy>>,
        batch: &[Example],
        truth: &[Vec<BoxXyxy>],
        padded: (usize, usize),
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let coder = BoxCoder::new(self.detector.roi_heads.box_weights);
        let classes = self.detector.num_classes();
        let mut regions: Vec<Vec<BoxXyxy>> = Vec::with_capacity(batch.len());
        let (mut labels, mut positives, mut wanted, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut values: Vec<Vec<u32>> = vec![Vec::new(); self.detector.attributes.len()];
        for (image, example) in batch.iter().enumerate() {
            // The true boxes are proposals too, so that the heads see objects from the first step.
            let candidates = &mut proposals[image];
            candidates.extend(&truth[image]);
            let matches = Matcher::PROPOSALS.match_boxes(candidates, &truth[image]);
            let drawn = sample(&matches, self.config.proposals_per_image, 0.25, &mut self.rng);
            let mut chosen = Vec::with_capacity(self.config.proposals_per_image);
            for (candidate, object) in drawn.positives {
                let label = example.labels[object];
                if label == 0 || label as usize >= classes {
                    return Err(Error::Argument(format!("label {label} of {classes}")));
                }
                positives.push((labels.len() * classes + label as usize) as u32);
                rows.push(labels.len() as u32);
                wanted.extend(coder.encode(&truth[image][object], &candidates[candidate]));
                for (values, attribute) in values.iter_mut().zip(&example.attributes) {
                    values.push(attribute[object]);
                }
                labels.push(label);
                chosen.push(candidates[candidate]);
            }
            for candidate in drawn.negatives {
                labels.push(0);
                chosen.push(candidates[candidate]);
            }
            regions.push(chosen);
        }
        let heads = &self.network.roi_heads;
        let features = heads.features(&heads.pooler.forward(levels, &regions, padded)?)?;
        let prediction = heads.predict(&features)?;
        let count = labels.len();
        let class_loss = cross_entropy(&prediction.class_logits, &labels)?.mean_all()?;
        let deltas = prediction.box_deltas.reshape((count * classes, 4))?;
        let box_loss = self.box_loss(&deltas, positives, wanted, count)?;
        let mut attribute_loss = Tensor::new(0f32, &self.device)?;
        if !rows.is_empty() {
            let rows = Tensor::new(rows, &self.device)?;
            for (logits, values) in prediction.attribute_logits.iter().zip(values) {
                let loss = cross_entropy(&logits.index_select(&rows, 0)?, &values)?.mean_all()?;
                attribute_loss = (attribute_loss + loss)?;
            }
        }
        Ok((class_loss, box_loss, attribute_loss))
    }

    /// Smooth L1 over the positive rows of `deltas`, divided by the number of all samples, so that every sample has the
    /// same weight whatever the share of objects.
    fn box_loss(&self, deltas: &Tensor, rows: Vec<u32>, wanted: Vec<f32>, samples: usize) -> Result<Tensor> {
        if rows.is_empty() {
            return Ok(Tensor::new(0f32, &self.device)?);
        }
        let count = rows.len();
        let chosen = deltas.index_select(&Tensor::from_vec(rows, count, &self.device)?, 0)?;
        let wanted = Tensor::from_vec(wanted, (count, 4), &self.device)?;
        Ok((smooth_l1(&chosen, &wanted, SMOOTH_L1_BETA)?.sum_all()? / samples as f64)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_then_falls_to_zero() {
        let config = TrainingConfig { steps: 110, warmup_steps: 10, learning_rate: 1.0, ..TrainingConfig::default() };
        assert!((config.learning_rate_at(0) - 0.1).abs() < 1e-12);
        assert!((config.learning_rate_at(9) - 1.0).abs() < 1e-12);
        assert!((config.learning_rate_at(60) - 0.5).abs() < 1e-12);
        assert!(config.learning_rate_at(109) < 1e-3);
    }

    #[test]
    fn steps_on_the_same_scenes_lower_the_loss() -> Result<()> {
        use crate::detector::training::scenes::{detector_config, example};
        use crate::scenes::{Scene, ScenesConfig};
        let config = TrainingConfig { warmup_steps: 1, ..TrainingConfig::default() };
        let batch: Vec<Example> =
            (0..2).map(|index| example(&Scene::generate(&ScenesConfig::default(), index))).collect();
        let mut trainer = Trainer::new(&config, &detector_config(), &Device::Cpu)?;
        let losses = (0..10).map(|_| Ok(trainer.train_on(&batch)?.total())).collect::<Result<Vec<f32>>>()?;
        assert!(losses[9] < 0.7 * losses[0], "{losses:?}");
        Ok(())
    }
}
