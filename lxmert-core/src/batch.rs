//! Images and sentences of different sizes, padded into one batch for the model.

use crate::Result;
use crate::features::{FeatureStore, Regions};
use crate::model::LxmertInputs;
use candle_core::{Device, Tensor};

/// A padded batch of images and sentences in main memory.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Padded sentence length.
    pub length: usize,
    /// Regions per image, padding included.
    pub regions: usize,
    /// Width of a region's feature.
    pub feature_dim: usize,
    /// `[rows, length]`, padded with `[PAD]`.
    pub input_ids: Vec<u32>,
    /// `[rows, length]`, 1 for words.
    pub attention_mask: Vec<f32>,
    /// `[rows, regions, feature_dim]`.
    pub features: Vec<f32>,
    /// `[rows, regions, 4]`, normalised x0 y0 x1 y1.
    pub boxes: Vec<f32>,
    /// `[rows, regions]`, 1 for real regions.
    pub region_mask: Vec<f32>,
}

impl Batch {
    /// Reads the regions of `images` (numbers in the store, the first `regions` of each) and pads their sentences'
    /// WordPiece ids with `pad`.
    ///
    /// # Errors
    /// Returns an error if the store is damaged or lacks an image.
    pub fn read(store: &FeatureStore, regions: usize, rows: &[(usize, &[u32])], pad: u32) -> Result<Self> {
        let images: Vec<usize> = rows.iter().map(|(image, _)| *image).collect();
        let info = store.info();
        let sentences = Self::of_sentences(rows.iter().map(|(_, tokens)| *tokens), pad);
        let mut batch = Self { regions, feature_dim: info.feature_dim, ..sentences };
        store.read_batch(&images, &mut batch.features, &mut batch.boxes, &mut batch.region_mask)?;
        if regions < info.regions {
            keep_first(&mut batch.features, info.regions, regions, info.feature_dim);
            keep_first(&mut batch.boxes, info.regions, regions, 4);
            keep_first(&mut batch.region_mask, info.regions, regions, 1);
        }
        Ok(batch)
    }

    /// Pads the regions of images, at most the first `most` of each, and their sentences' WordPiece ids with `pad`. All
    /// features must have the same length.
    pub fn of_regions(rows: &[(&Regions, &[u32])], most: usize, pad: u32) -> Self {
        let count = |image: &Regions| image.num_regions().min(most);
        let regions = rows.iter().map(|(image, _)| count(image)).max().unwrap_or(0);
        let width = rows.first().map_or(0, |(image, _)| image.feature_dim);
        let sentences = Self::of_sentences(rows.iter().map(|(_, tokens)| *tokens), pad);
        let mut batch = Self { regions, feature_dim: width, ..sentences };
        for (row, (image, _)) in rows.iter().enumerate() {
            let (real, end) = (count(image), (row + 1) * regions);
            batch.features.extend_from_slice(&image.features[..real * width]);
            batch.features.resize(end * width, 0.0);
            batch.boxes.extend_from_slice(image.boxes[..real].as_flattened());
            batch.boxes.resize(end * 4, 0.0);
            batch.region_mask.resize(end - regions + real, 1.0);
            batch.region_mask.resize(end, 0.0);
        }
        batch
    }

    fn of_sentences<'a>(sentences: impl Iterator<Item = &'a [u32]> + Clone, pad: u32) -> Self {
        let length = sentences.clone().map(<[u32]>::len).max().unwrap_or(0);
        let mut batch = Self { length, ..Self::default() };
        for tokens in sentences {
            batch.rows += 1;
            let end = batch.rows * length;
            batch.input_ids.extend_from_slice(tokens);
            batch.input_ids.resize(end, pad);
            batch.attention_mask.resize(end - length + tokens.len(), 1.0);
            batch.attention_mask.resize(end, 0.0);
        }
        batch
    }

    /// The model's inputs, on `device`; the masks stay where the model reads which rows are real.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be allocated there.
    pub fn inputs(&self, device: &Device) -> Result<LxmertInputs> {
        let (b, t, n, width) = (self.rows, self.length, self.regions, self.feature_dim);
        Ok(LxmertInputs {
            input_ids: Tensor::from_slice(&self.input_ids, (b, t), device)?,
            attention_mask: Some(Tensor::from_slice(&self.attention_mask, (b, t), &Device::Cpu)?),
            visual_feats: Tensor::from_slice(&self.features, (b, n, width), device)?,
            visual_boxes: Tensor::from_slice(&self.boxes, (b, n, 4), device)?,
            visual_attention_mask: Some(Tensor::from_slice(&self.region_mask, (b, n), &Device::Cpu)?),
        })
    }
}

/// Keeps the first `used` of each group of `stored` rows of `width` values.
pub fn keep_first<T: Copy>(values: &mut Vec<T>, stored: usize, used: usize, width: usize) {
    let groups = values.len() / (stored * width).max(1);
    for group in 0..groups {
        values.copy_within(group * stored * width..(group * stored + used) * width, group * used * width);
    }
    values.truncate(groups * used * width);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_first_regions_of_each_image() {
        let mut values: Vec<f32> = (0..24).map(|i| i as f32).collect(); // 2 images, 3 regions, 4 wide
        keep_first(&mut values, 3, 2, 4);
        let expected: Vec<f32> = (0..8).chain(12..20).map(|i| i as f32).collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn pads_regions_and_sentences_to_the_longest() {
        let image = |count: usize, value: f32| Regions {
            feature_dim: 2,
            features: vec![value; count * 2],
            boxes: vec![[value; 4]; count],
            ..Regions::default()
        };
        let (first, second) = (image(1, 0.5), image(3, 0.25));
        let batch = Batch::of_regions(&[(&first, &[1, 2, 3]), (&second, &[4])], 2, 9);
        assert_eq!((batch.rows, batch.length, batch.regions), (2, 3, 2));
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 9, 9]);
        assert_eq!(batch.attention_mask, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(batch.features, [0.5, 0.5, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25]);
        assert_eq!(batch.region_mask, [1.0, 0.0, 1.0, 1.0]);
        assert_eq!((batch.boxes.len(), batch.boxes[4], batch.boxes[15]), (16, 0.0, 0.25));
        let inputs = batch.inputs(&Device::Cpu).unwrap();
        assert_eq!((inputs.visual_feats.dims(), inputs.visual_boxes.dims()), (&[2, 2, 2][..], &[2, 2, 4][..]));
    }
}
