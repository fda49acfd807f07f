//! Average precision: how well detections find the true objects.

use lxmert_core::boxes::{BoxXyxy, iou};

/// A detection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detected {
    /// Its box, in the frame of the true boxes.
    pub box_xyxy: BoxXyxy,
    /// Its label id.
    pub label: u32,
    /// Its score.
    pub score: f32,
}

/// One image: its true objects, and its detections.
#[derive(Debug, Clone, Default)]
pub struct ImageResult {
    /// Label id and box of each true object.
    pub objects: Vec<(u32, BoxXyxy)>,
    /// Detections in any order.
    pub detections: Vec<Detected>,
}

/// Average precision of one label at an IoU threshold, or `None` if no image contains such an object.
///
/// COCO's definition: detections of all images by descending score, each matched to the unmatched true box of its image
/// that it overlaps most; precision made monotone and averaged at the 101 recalls 0, 0.01 … 1.
pub fn average_precision(images: &[ImageResult], label: u32, threshold: f32) -> Option<f64> {
    let total = images.iter().flat_map(|image| &image.objects).filter(|object| object.0 == label).count();
    if total == 0 {
        return None;
    }
    let mut found: Vec<(usize, &Detected)> = images
        .iter()
        .enumerate()
        .flat_map(|(index, image)| image.detections.iter().map(move |detected| (index, detected)))
        .filter(|(_, detected)| detected.label == label)
        .collect();
    found.sort_by(|a, b| b.1.score.total_cmp(&a.1.score));
    let mut taken: Vec<Vec<bool>> = images.iter().map(|image| vec![false; image.objects.len()]).collect();
    let mut hits = 0usize;
    let mut curve: Vec<(f64, f64)> = Vec::with_capacity(found.len()); // recall, precision
    for (rank, (image, detected)) in found.iter().enumerate() {
        let best = images[*image]
            .objects
            .iter()
            .enumerate()
            .filter(|(object, (other, _))| *other == label && !taken[*image][*object])
            .map(|(object, (_, truth))| (object, iou(truth, &detected.box_xyxy)))
            .filter(|(_, overlap)| *overlap >= threshold)
            .max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((object, _)) = best {
            taken[*image][object] = true;
            hits += 1;
        }
        curve.push((hits as f64 / total as f64, hits as f64 / (rank + 1) as f64));
    }
    for index in (1..curve.len()).rev() {
        curve[index - 1].1 = curve[index - 1].1.max(curve[index].1);
    }
    let at = |recall: f64| curve.iter().find(|point| point.0 >= recall).map_or(0.0, |point| point.1);
    Some((0..=100).map(|step| at(f64::from(step) / 100.0)).sum::<f64>() / 101.0)
}

/// Mean of [`average_precision`] over the labels 1 to `labels` that occur.
pub fn mean_average_precision(images: &[ImageResult], labels: u32, threshold: f32) -> f64 {
    let each: Vec<f64> = (1..=labels).filter_map(|label| average_precision(images, label, threshold)).collect();
    each.iter().sum::<f64>() / each.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BoxXyxy = [0.0, 0.0, 10.0, 10.0];
    const B: BoxXyxy = [20.0, 0.0, 30.0, 10.0];
    const NOWHERE: BoxXyxy = [50.0, 50.0, 60.0, 60.0];

    fn image(objects: &[BoxXyxy], detections: &[(BoxXyxy, f32)]) -> ImageResult {
        ImageResult {
            objects: objects.iter().map(|b| (1, *b)).collect(),
            detections: detections.iter().map(|&(box_xyxy, score)| Detected { box_xyxy, label: 1, score }).collect(),
        }
    }

    fn ap(images: &[ImageResult]) -> f64 {
        average_precision(images, 1, 0.5).unwrap()
    }

    #[test]
    fn perfect_detections_have_precision_one() {
        assert_eq!(ap(&[image(&[A, B], &[(A, 0.3), (B, 0.9)]), image(&[B], &[(B, 0.2)])]), 1.0);
    }

    #[test]
    fn a_false_detection_counts_by_its_rank() {
        // right, wrong, right: precision 1 up to recall 0.5 (51 points), then 2/3 (50 points)
        let middle = ap(&[image(&[A, B], &[(A, 0.9), (NOWHERE, 0.8), (B, 0.7)])]);
        assert!((middle - (51.0 + 50.0 * 2.0 / 3.0) / 101.0).abs() < 1e-12);
        // ranked below all right ones it costs nothing
        assert_eq!(ap(&[image(&[A, B], &[(A, 0.9), (NOWHERE, 0.1), (B, 0.7)])]), 1.0);
    }

    #[test]
    fn a_duplicate_detection_is_false() {
        let twice = ap(&[image(&[A, B], &[(A, 0.9), (A, 0.8), (B, 0.7)])]);
        assert!((twice - (51.0 + 50.0 * 2.0 / 3.0) / 101.0).abs() < 1e-12);
    }

    #[test]
    fn missed_objects_lower_the_average() {
        assert!((ap(&[image(&[A, B], &[(A, 0.9)])]) - 51.0 / 101.0).abs() < 1e-12);
        assert_eq!(ap(&[image(&[A], &[])]), 0.0);
        assert_eq!(average_precision(&[image(&[A], &[])], 2, 0.5), None);
    }

    #[test]
    fn overlap_below_the_threshold_and_other_labels_do_not_count() {
        assert_eq!(ap(&[image(&[A], &[([0.0, 0.0, 10.0, 4.9], 0.9)])]), 0.0);
        assert_eq!(ap(&[image(&[A], &[([0.0, 0.0, 10.0, 5.1], 0.9)])]), 1.0);
        let mut other = image(&[A], &[(A, 0.9)]);
        other.detections[0].label = 2;
        assert_eq!(ap(&[other]), 0.0);
    }
}
