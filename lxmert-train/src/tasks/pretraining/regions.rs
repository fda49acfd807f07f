//! Masked objects: predict a region's object, attribute and feature from the other regions and the sentence (Tan &
//! Bansal 2019, §3.1.2).

use crate::Result;
use crate::data::batches::Batch;
use crate::recipe::RegionLosses;
use crate::tasks::losses::{self, cross_entropy, smooth_l1, weighted_sum};
use candle_core::{D, Tensor};
use lxmert_core::batch::keep_first;
use lxmert_core::features::FeatureStore;
use lxmert_core::model::{RegionHead, RegionLogits};
use rand::Rng;

/// Fraction of the regions that are chosen.
pub const CHOSEN: f64 = 0.15;
/// Of the chosen regions, the fraction whose feature becomes zeros, and the cumulative fraction up to which it becomes
/// another region's; the rest stays.
const ZEROED: f64 = 0.8;
const REPLACED: f64 = 0.9;

/// The classes of a batch's regions and the detector's confidences, `[rows, regions]`.
#[derive(Debug, Clone, Default)]
pub struct Classes {
    /// The class.
    pub labels: Vec<u32>,
    /// Confidence, 0..1.
    pub scores: Vec<f32>,
}

/// What to predict about a batch's regions.
#[derive(Debug, Clone, Default)]
pub struct MaskedRegions {
    /// `[rows, regions]`: whether the region was chosen.
    pub chosen: Vec<bool>,
    /// The original features of the chosen regions, one after another.
    pub features: Vec<f32>,
    /// The regions' objects.
    pub objects: Classes,
    /// The regions' attributes; all confidences are 0 if the store has none.
    pub attributes: Classes,
    /// Number of real regions in the batch.
    pub count: usize,
}

/// The losses of one batch, each a scalar tensor, and how many predictions over the counted regions were correct. A
/// loss over no regions is absent.
#[derive(Debug, Default)]
pub struct RegionTerms {
    /// Cross entropy of the objects, correct predictions over masked regions (a scalar), and predictions.
    pub objects: Option<(Tensor, Tensor, usize)>,
    /// The same for attributes.
    pub attributes: Option<(Tensor, Tensor, usize)>,
    /// Smooth L1 of the features.
    pub features: Option<Tensor>,
}

impl MaskedRegions {
    /// Reads the targets for `images` (numbers in the store); masks nothing yet.
    ///
    /// # Errors
    /// Returns an error if the store is damaged.
    pub fn read(store: &FeatureStore, images: &[usize], batch: &Batch) -> Result<Self> {
        let mut masked = Self { count: batch.region_mask.iter().filter(|m| **m > 0.0).count(), ..Self::default() };
        store.read_labels(images, &mut masked.objects.labels, &mut masked.objects.scores)?;
        store.read_attributes(images, &mut masked.attributes.labels, &mut masked.attributes.scores)?;
        let (stored, used) = (store.info().regions, batch.regions);
        for classes in [&mut masked.objects, &mut masked.attributes] {
            if used < stored {
                keep_first(&mut classes.labels, stored, used, 1);
                keep_first(&mut classes.scores, stored, used, 1);
            }
        }
        masked.chosen = vec![false; images.len() * used];
        Ok(masked)
    }

    /// Chooses 15 % of the regions and masks them in `batch`: their features become zeros, become another region's from
    /// the store, or stay. Boxes are never masked.
    ///
    /// # Errors
    /// Returns an error if the store is damaged.
    pub fn mask(&mut self, batch: &mut Batch, store: &FeatureStore, rng: &mut impl Rng) -> Result<()> {
        let width = store.info().feature_dim;
        for (region, feature) in batch.features.chunks_exact_mut(width).enumerate() {
            if batch.region_mask[region] == 0.0 || !rng.random_bool(CHOSEN) {
                continue;
            }
            self.chosen[region] = true;
            self.features.extend_from_slice(feature);
            let kind: f64 = rng.random();
            if kind < ZEROED {
                feature.fill(0.0);
            } else if kind < REPLACED {
                let image = rng.random_range(0..store.len());
                let regions = store.num_regions(image)?.min(batch.regions);
                if regions > 0 {
                    feature.copy_from_slice(&store.region_feature(image, rng.random_range(0..regions))?);
                }
            }
        }
        Ok(())
    }

    /// The losses over `vision`: `[rows, regions, hidden]`, times `normaliser` (1 / 0.15, so that their size is that of
    /// a mean over the masked regions) unless they are such means already. Only regions that count pass the head.
    ///
    /// # Errors
    /// Returns an error if the batch does not fit the model.
    pub fn losses(
        &self,
        head: &RegionHead,
        vision: &Tensor,
        kind: RegionLosses,
        normaliser: f64,
    ) -> Result<RegionTerms> {
        let device = vision.device();
        let counts = |region: &usize| {
            let known = self.objects.scores[*region] > 0.0 || self.attributes.scores[*region] > 0.0;
            self.chosen[*region] || kind == RegionLosses::Original && known
        };
        let rows: Vec<usize> = (0..self.chosen.len()).filter(counts).collect();
        if rows.is_empty() {
            return Ok(RegionTerms::default());
        }
        let index = Tensor::from_vec(rows.iter().map(|&row| row as u32).collect::<Vec<_>>(), rows.len(), device)?;
        let logits: RegionLogits = head.forward(&vision.flatten_to(1)?.index_select(&index, 0)?)?;
        let divisor = match kind {
            RegionLosses::PerMasked => self.chosen.iter().filter(|chosen| **chosen).count().max(1) as f64,
            RegionLosses::Masked | RegionLosses::Original => self.count.max(1) as f64 / normaliser,
        };
        let mut terms = RegionTerms::default();
        let classes = [
            (&self.objects, logits.objects, &mut terms.objects),
            (&self.attributes, logits.attributes, &mut terms.attributes),
        ];
        for (classes, logits, found) in classes {
            let Some(logits) = logits else { continue };
            let targets: Vec<u32> = rows.iter().map(|&row| classes.labels[row]).collect();
            let weight = |&row: &usize| match kind {
                RegionLosses::PerMasked => 1.0,
                RegionLosses::Masked | RegionLosses::Original => classes.scores[row],
            };
            let weights: Vec<f32> = rows.iter().map(weight).collect();
            let loss = (weighted_sum(&cross_entropy(&logits, &targets)?, &weights, device)? / divisor)?;
            let counted = rows.iter().map(|&row| self.chosen[row] && classes.scores[row] > 0.0);
            let counted: Vec<f32> = counted.map(|counted| if counted { 1.0 } else { 0.0 }).collect();
            let guesses = counted.iter().filter(|counted| **counted > 0.0).count();
            *found = Some((loss, losses::right(&logits, &targets, Some(&counted))?, guesses));
        }
        let chosen: Vec<u32> =
            rows.iter().enumerate().filter(|(_, row)| self.chosen[**row]).map(|(place, _)| place as u32).collect();
        if !chosen.is_empty() {
            let count = chosen.len();
            let guesses = logits.features.index_select(&Tensor::from_vec(chosen, count, device)?, 0)?;
            let targets = Tensor::from_slice(&self.features, guesses.shape(), device)?;
            terms.features = Some((smooth_l1(&guesses, &targets, 1.0)?.mean(D::Minus1)?.sum_all()? / divisor)?);
        }
        Ok(terms)
    }
}
