//! A checkpoint that judges statements about two images, and what its verdict is based on.

use super::maps;
use super::scorer::{Scored, batch, keep_regions};
use crate::{Error, Result};
use candle_core::{DType, Device};
use lxmert_core::config::LxmertConfig;
use lxmert_core::features::Regions;
use lxmert_core::model::{Capture, PairModel, Pass};
use lxmert_core::pretrained::{Preprocessing, Pretrained};
use lxmert_core::text::WordPiece;
use std::path::Path;

/// A model of statements about two images that can explain its verdicts.
pub struct Judge {
    config: LxmertConfig,
    preprocessing: Preprocessing,
    text: WordPiece,
    model: PairModel,
    device: Device,
}

/// One of the two images, with what the verdict is based on there.
#[derive(Debug, Clone)]
pub struct JudgedImage {
    /// The verdict's logit, the statement as the model reads it, and the maps of the statement with this image, with the
    /// logit's gradients.
    pub scored: Scored,
    /// The regions that the model saw, best first.
    pub regions: Regions,
}

impl Judge {
    /// Opens the checkpoint of a model trained on statements; `place` may have any form that
    /// [`Place::find`](lxmert_core::checkpoint::Place::find) accepts.
    ///
    /// # Errors
    /// [`Error::Core`] if a file is missing or damaged, or the checkpoint judges no statements.
    pub fn open(place: &Path, device: &Device) -> Result<Self> {
        let pretrained = Pretrained::open(place)?;
        let model = pretrained.judging(device)?;
        let Pretrained { config, preprocessing, text, .. } = pretrained;
        Ok(Self { config, preprocessing, text, model, device: device.clone() })
    }

    /// Length of a region's feature, and what regions the model was trained on.
    pub fn takes(&self) -> (usize, &Preprocessing) {
        (self.config.visual_feat_dim, &self.preprocessing)
    }

    /// Judges `statement` about the left and the right image. The logit is that of "true" less that of "false", so that its
    /// sigmoid is the probability that the statement is true.
    ///
    /// # Errors
    /// [`Error::Argument`] if the statement is empty or the regions do not fit; [`Error::Candle`] if a computation fails.
    pub fn explain(&self, images: [&Regions; 2], statement: &str) -> Result<[JudgedImage; 2]> {
        if statement.trim().is_empty() {
            return Err(Error::Argument("the statement is empty".into()));
        }
        let first = |regions: &Regions| {
            let count = regions.num_regions().min(self.preprocessing.regions);
            keep_regions(regions, &(0..count).collect::<Vec<_>>())
        };
        let [left, right] = images.map(first);
        let encoding = self.text.encode(statement, self.preprocessing.max_length)?;
        let (sizes, ids) = ((self.config.visual_feat_dim, self.text.special().pad), encoding.ids.as_slice());
        let inputs = batch(&[(&left, ids), (&right, ids)], sizes, &self.device)?;
        let output = self.model.forward(&inputs, &Pass::capture(Capture::Probes))?;
        let logits = output.logits.squeeze(0)?; // [false, true]
        let target = (logits.narrow(0, 1, 1)? - logits.narrow(0, 0, 1)?)?;
        let attentions = output.trunk.attentions.as_ref();
        let attentions = attentions.ok_or_else(|| Error::Shape("the model gave no attention maps".into()))?;
        let sizes = [&left, &right].map(|regions| (ids.len(), regions.num_regions()));
        // The verdict depends on both rows, and on nothing else.
        let maps = maps::read(attentions, Some(&target), &sizes)?;
        let logit = target.to_dtype(DType::F32)?.to_vec1::<f32>()?[0];
        let mut maps = maps.into_iter();
        let mut judged = |regions: Regions| JudgedImage {
            scored: Scored { logit, encoding: encoding.clone(), maps: maps.next() },
            regions,
        };
        Ok([judged(left), judged(right)])
    }
}
