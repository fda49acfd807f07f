//! Fixed boxes: the image in n × n equal parts, pooled and classified like proposals (X-LXMERT, Cho et al. 2020, §4.1:
//! 8 × 8). Every part has a label, a score and, if the detector has them, an attribute, so a model can be pre-trained
//! to predict masked regions as with detections.

use super::{RegionSource, detector_info, regions_of};
use crate::Result;
use crate::choice::LoadedDetector;
use crate::detector::detect::Candidate;
use crate::detector::transform::NetworkInput;
use crate::images::DecodedImage;
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};

/// A detector's heads on fixed boxes.
#[derive(Debug)]
pub struct GridSource {
    /// The detector.
    pub loaded: LoadedDetector,
    /// Number of parts in each direction.
    pub side: usize,
}

impl RegionSource for GridSource {
    fn info(&self, dtype: StoreDtype) -> StoreInfo {
        detector_info(&self.loaded, format!("grid:{}", self.side), self.side * self.side, dtype)
    }

    fn input(&self, image: &DecodedImage) -> Result<NetworkInput> {
        Ok(self.loaded.detector.input(image)?)
    }

    fn regions(&self, input: NetworkInput) -> Result<Regions> {
        let detector = &self.loaded.detector;
        let boxes = boxes(self.side, input.resized_size);
        let analysis = detector.analyse_boxes(input, boxes)?;
        let chosen: Vec<Candidate> = (analysis.proposals.boxes.iter().enumerate())
            .map(|(index, &box_xyxy)| {
                let (class, score) = analysis.best_class(index);
                Candidate { box_xyxy, label: class as u32, score }
            })
            .collect();
        Ok(regions_of(detector, &analysis.input, &chosen, &analysis.features)?)
    }
}

/// `side` × `side` equal boxes of an image of this height and width, row by row.
fn boxes(side: usize, (height, width): (usize, usize)) -> Vec<BoxXyxy> {
    let edge = |i: usize, length: usize| (i * length) as f32 / side as f32;
    (0..side * side)
        .map(|i| {
            let (row, column) = (i / side, i % side);
            [edge(column, width), edge(row, height), edge(column + 1, width), edge(row + 1, height)]
        })
        .collect()
}
