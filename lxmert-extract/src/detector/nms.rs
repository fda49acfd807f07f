//! Non-maximum suppression: of boxes that overlap much, keeps the best scored.

use super::config::BoxConvention;
use lxmert_core::boxes::BoxXyxy;

/// torchvision's CPU rule: up to this many coordinates it compares shifted boxes.
const SHIFTED_COORDINATES: usize = 4000;

/// When a better box suppresses another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suppression {
    /// Threshold of the intersection over union.
    pub threshold: f64,
    /// How areas are measured, and whether an IoU equal to the threshold suppresses.
    pub convention: BoxConvention,
}

impl From<f64> for Suppression {
    /// Suppress above `threshold`, as in torchvision.
    fn from(threshold: f64) -> Self {
        Self { threshold, convention: BoxConvention::Continuous }
    }
}

impl Suppression {
    /// Whether `a` and `b` overlap too much to keep both. The IoU is in f32 with the rounding of torchvision's and
    /// Caffe's kernels, compared in f64.
    pub fn applies(&self, a: &BoxXyxy, b: &BoxXyxy) -> bool {
        self.applies_with_areas((a, self.area(a)), (b, self.area(b)))
    }

    fn applies_with_areas(&self, (a, area_a): (&BoxXyxy, f32), (b, area_b): (&BoxXyxy, f32)) -> bool {
        let intersection = self.area(&[a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
        let iou = f64::from(intersection / (area_a + area_b - intersection));
        match self.convention {
            BoxConvention::Continuous => iou > self.threshold,
            BoxConvention::Inclusive => iou >= self.threshold,
        }
    }

    fn area(&self, b: &BoxXyxy) -> f32 {
        let extra = self.convention.extra();
        (b[2] - b[0] + extra).max(0.0) * (b[3] - b[1] + extra).max(0.0)
    }
}

/// Suppression within each group (class or level), as torchvision's `batched_nms` on the CPU. Returns the indices of at
/// most `limit` kept boxes, best score first; equal scores keep their order. A box is dropped if a better kept box of
/// its group suppresses it by `rule` (a plain number is the IoU above which to suppress).
///
/// Up to 1000 boxes are compared after shifting each group by a multiple of the largest coordinate. That is how
/// torchvision handles all groups at once; here it only reproduces the rounding of the coordinates, so that near ties
/// end the same way.
pub fn batched_nms(
    boxes: &[BoxXyxy],
    scores: &[f32],
    groups: &[u32],
    rule: impl Into<Suppression>,
    limit: usize,
) -> Vec<usize> {
    let rule = rule.into();
    let shift = if boxes.len() * 4 <= SHIFTED_COORDINATES {
        boxes.iter().flatten().copied().fold(f32::NEG_INFINITY, f32::max) + 1.0
    } else {
        0.0
    };
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let group_count = groups.iter().max().map_or(0, |g| *g as usize + 1);
    let mut kept_of_group: Vec<Vec<(BoxXyxy, f32)>> = vec![Vec::new(); group_count];
    let mut kept = Vec::new();
    for index in order {
        if kept.len() == limit {
            break;
        }
        let offset = groups[index] as f32 * shift;
        let candidate = boxes[index].map(|v| v + offset);
        let candidate_area = rule.area(&candidate);
        let rivals = &mut kept_of_group[groups[index] as usize];
        if rivals.iter().any(|(rival, area)| rule.applies_with_areas((rival, *area), (&candidate, candidate_area))) {
            continue;
        }
        rivals.push((candidate, candidate_area));
        kept.push(index);
    }
    kept
}

/// Suppression among all boxes, as torchvision's `nms`; see [`batched_nms`].
pub fn nms(boxes: &[BoxXyxy], scores: &[f32], rule: impl Into<Suppression>, limit: usize) -> Vec<usize> {
    batched_nms(boxes, scores, &vec![0; boxes.len()], rule, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn groups_do_not_compete_and_order_is_by_score() {
        let boxes = [[0., 0., 10., 10.], [0., 0., 10., 9.], [0., 0., 10., 10.], [20., 0., 30., 10.]];
        let scores = [0.5, 0.9, 0.8, 0.1];
        assert_eq!(batched_nms(&boxes, &scores, &[0, 0, 1, 0], 0.5, 10), [1, 2, 3]);
        assert_eq!(nms(&boxes, &scores, 0.5, 10), [1, 3]);
        assert_eq!(nms(&boxes, &scores, 0.5, 1), [1]);
        assert!(nms(&[], &[], 0.5, 10).is_empty());
    }

    #[test]
    fn an_iou_equal_to_the_threshold_stays() {
        let boxes = [[0., 0., 2., 1.], [0., 0., 1., 1.]];
        assert_eq!(nms(&boxes, &[1.0, 0.5], 0.5, 10), [0, 1]);
        assert_eq!(nms(&boxes, &[1.0, 0.5], 0.499, 10), [0]);
    }

    proptest! {
        /// Kept boxes overlap little; every dropped box overlaps much with a better kept one.
        #[test]
        fn kept_and_dropped_boxes_follow_the_definition(
            raw in prop::collection::vec((0f32..80.0, 0f32..80.0, 1f32..40.0, 1f32..40.0, 0f32..1.0, 0u32..3), 0..60)
        ) {
            let boxes: Vec<BoxXyxy> = raw.iter().map(|r| [r.0, r.1, r.0 + r.2, r.1 + r.3]).collect();
            let scores: Vec<f32> = raw.iter().map(|r| r.4).collect();
            let groups: Vec<u32> = raw.iter().map(|r| r.5).collect();
            let kept = batched_nms(&boxes, &scores, &groups, 0.5, usize::MAX);
            let iou = |i: usize, j: usize| lxmert_core::boxes::iou(&boxes[i], &boxes[j]);
            for i in 0..boxes.len() {
                let beaten = kept.iter().any(|&k| k != i && groups[k] == groups[i] && scores[k] >= scores[i] && iou(k, i) > 0.499);
                let conflict = kept.iter().any(|&k| k != i && groups[k] == groups[i] && iou(k, i) > 0.501);
                if kept.contains(&i) { prop_assert!(!conflict); } else { prop_assert!(beaten); }
            }
            prop_assert!(kept.windows(2).all(|w| scores[w[0]] >= scores[w[1]]));
        }
    }
}
