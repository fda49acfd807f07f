//! A trained checkpoint that scores how well sentences and images match, with its attention maps.

use super::maps::{self, PairMaps};
use crate::{Error, Result};
use candle_core::{DType, Device};
use lxmert_core::batch::Batch;
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::{Attributes, Regions};
use lxmert_core::model::{Capture, LxmertInputs, MatchingModel, Pass};
use lxmert_core::ops::PrepackedWeights;
use lxmert_core::pretrained::Pretrained;
use lxmert_core::text::{Encoding, WordPiece};
use std::path::Path;

/// Longest sentence in word pieces; longer ones are truncated, with a warning.
pub const LONGEST_SENTENCE: usize = 50;

/// A matching model with its vocabulary.
pub struct Scorer {
    config: LxmertConfig,
    model: MatchingModel,
    vocabulary: WordPiece,
    device: Device,
    regions: usize,
    packed: PrepackedWeights,
}

/// A sentence and an image's regions.
#[derive(Debug, Clone, Copy)]
pub struct PairInput<'a> {
    /// The image's regions.
    pub regions: &'a Regions,
    /// The sentence.
    pub text: &'a str,
}

/// A model's result for a pair.
#[derive(Debug, Clone)]
pub struct Scored {
    /// The logit of the match or of an answer.
    pub logit: f32,
    /// The sentence as the model read it.
    pub encoding: Encoding,
    /// Every attention map, if requested.
    pub maps: Option<PairMaps>,
}

impl Scored {
    /// The logit's sigmoid: the probability that sentence and image belong together, or the expected score of the
    /// answer.
    pub fn probability(&self) -> f32 {
        1.0 / (1.0 + (-self.logit).exp())
    }

    /// The maps.
    ///
    /// # Errors
    /// [`Error::Shape`] if they were not requested.
    pub fn maps(&self) -> Result<&PairMaps> {
        self.maps.as_ref().ok_or_else(|| Error::Shape("this pair was scored without its attention maps".into()))
    }
}

impl Scorer {
    /// Opens a matching or pre-training checkpoint; `place` may have any form that
    /// [`Place::find`](lxmert_core::checkpoint::Place::find) accepts.
    ///
    /// # Errors
    /// [`Error::Core`] if there is none, a file is damaged, or keys are missing, unexpected or misshapen.
    pub fn open(place: &Path, device: &Device) -> Result<Self> {
        Self::new(&Pretrained::open(place)?, device)
    }

    /// The same for a checkpoint that is open already.
    ///
    /// # Errors
    /// [`Error::Core`] when it has no matching head, or keys are missing, unexpected or misshapen.
    pub fn new(pretrained: &Pretrained, device: &Device) -> Result<Self> {
        let model = pretrained.matching(device)?;
        Ok(Self {
            config: pretrained.config.clone(),
            model,
            vocabulary: pretrained.text.clone(),
            regions: pretrained.preprocessing.regions,
            device: device.clone(),
            packed: PrepackedWeights::new(),
        })
    }

    /// How many regions per image the model was trained on.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// The model's configuration.
    pub fn config(&self) -> &LxmertConfig {
        &self.config
    }

    /// The sizes that [`batch`] needs: the length of a feature, and the id of `[PAD]`.
    fn sizes(&self) -> (usize, u32) {
        (self.config.visual_feat_dim, self.vocabulary.special().pad)
    }

    /// Scores pairs in one batch. With [`Capture::Probes`] the maps carry the match logit's gradients.
    ///
    /// # Errors
    /// [`Error::Argument`] if the regions' features have another length than the model's; [`Error::Candle`].
    pub fn score(&self, pairs: &[PairInput], capture: Capture) -> Result<Vec<Scored>> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let encodings = pairs.iter().map(|pair| self.encode(pair.text)).collect::<Result<Vec<_>>>()?;
        let rows: Vec<(&Regions, &[u32])> =
            pairs.iter().zip(&encodings).map(|(pair, e)| (pair.regions, e.ids.as_slice())).collect();
        let inputs = batch(&rows, self.sizes(), &self.device)?;
        let output = self.model.forward(&inputs, &Pass::capture(capture))?;
        let logits: Vec<f32> = output.logits.to_dtype(DType::F32)?.to_vec1()?;
        let mut maps: Vec<Option<PairMaps>> = match &output.trunk.attentions {
            Some(attentions) => {
                let sizes: Vec<(usize, usize)> =
                    pairs.iter().zip(&encodings).map(|(p, e)| (e.ids.len(), p.regions.boxes.len())).collect();
                let target = (capture == Capture::Probes).then_some(&output.logits);
                maps::read(attentions, target, &sizes)?.into_iter().map(Some).collect()
            }
            None => vec![None; pairs.len()],
        };
        Ok(encodings
            .into_iter()
            .zip(logits)
            .zip(maps.drain(..))
            .map(|((encoding, logit), maps)| Scored { logit, encoding, maps })
            .collect())
    }

    /// A sentence as the model reads it; if it is too long it is truncated, with a warning.
    ///
    /// # Errors
    /// [`Error::Core`] if it cannot be encoded.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        let longest = LONGEST_SENTENCE.min(self.config.max_position_embeddings);
        let encoding = self.vocabulary.encode(text, longest)?;
        if encoding.truncated > 0 {
            log::warn!("“{text}”: the last {} word pieces do not fit and are ignored", encoding.truncated);
        }
        Ok(encoding)
    }

    /// The match logits of encoded pairs, in one batch, without maps. Images without regions must be in a separate
    /// batch: their words get zeros from an attention over nothing.
    ///
    /// # Errors
    /// As [`Scorer::score`]; also if only some images have regions.
    pub fn logits(&self, pairs: &[(&Regions, &[u32])]) -> Result<Vec<f32>> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let inputs = padded(pairs, self.sizes(), &self.device)?;
        Ok(self
            .model
            .forward(&inputs, &Pass::eval().pooled_only().with_prepacked(&self.packed))?
            .logits
            .to_dtype(DType::F32)?
            .to_vec1()?)
    }
}

/// Pairs of regions and word piece ids, padded to one batch. `sizes`: the length of a feature in the model, and the id
/// of `[PAD]`.
///
/// # Errors
/// [`Error::Argument`] if features have another length or an image has no region.
pub fn batch(pairs: &[(&Regions, &[u32])], sizes: (usize, u32), device: &Device) -> Result<LxmertInputs> {
    if pairs.iter().any(|(regions, _)| regions.boxes.is_empty()) {
        return Err(Error::Argument("an image without regions gives the words nothing to attend to".into()));
    }
    padded(pairs, sizes, device)
}

/// [`batch`] that also accepts only images without regions: an attention over nothing gives zeros.
pub(super) fn padded(
    pairs: &[(&Regions, &[u32])],
    (width, pad): (usize, u32),
    device: &Device,
) -> Result<LxmertInputs> {
    for (regions, _) in pairs {
        if regions.feature_dim != width {
            return Err(Error::Argument(format!(
                "the regions have {} numbers each, but the model was trained on {width}: \
                 use the detector and the feature store it was trained with",
                regions.feature_dim
            )));
        }
    }
    if pairs.iter().any(|(regions, _)| regions.boxes.is_empty() != pairs[0].0.boxes.is_empty()) {
        return Err(Error::Argument("an image without regions beside others that have some".into()));
    }
    Ok(Batch::of_regions(pairs, usize::MAX, pad).inputs(device)?)
}

/// The regions with the numbers in `kept` (if in range), in that order.
pub fn keep_regions(regions: &Regions, kept: &[usize]) -> Regions {
    let pick = |values: &[u32]| kept.iter().filter_map(|&i| values.get(i).copied()).collect();
    let width = regions.feature_dim;
    Regions {
        features: kept.iter().flat_map(|&i| regions.features[i * width..(i + 1) * width].to_vec()).collect(),
        boxes: kept.iter().map(|&i| regions.boxes[i]).collect(),
        labels: pick(&regions.labels),
        scores: kept.iter().filter_map(|&i| regions.scores.get(i).copied()).collect(),
        attributes: regions.attributes.as_ref().map(|attributes| Attributes {
            labels: pick(&attributes.labels),
            scores: kept.iter().filter_map(|&i| attributes.scores.get(i).copied()).collect(),
        }),
        ..*regions
    }
}
