//! Boxes as `[x0, y0, x1, y1]`, in pixels or normalised to 0..1 by the image's size.

/// A box's corners: left, top, right, bottom.
pub type BoxXyxy = [f32; 4];

/// Area, 0 for a box that is empty or inverted.
pub fn area(b: &BoxXyxy) -> f32 {
    (b[2] - b[0]).max(0.0) * (b[3] - b[1]).max(0.0)
}

/// Intersection over union of two boxes in the same frame, without the legacy `+ 1`; 0 when both
/// are empty.
pub fn iou(a: &BoxXyxy, b: &BoxXyxy) -> f32 {
    let intersection = area(&[a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let union = area(a) + area(b) - intersection;
    if union > 0.0 { intersection / union } else { 0.0 }
}

/// Intersection over union of two boxes in pixels whose right and bottom edges are the last pixels inside. The original
/// Faster R-CNN code adds 1 to widths and heights; RefCOCO's scores keep that.
pub fn iou_inclusive(a: &BoxXyxy, b: &BoxXyxy) -> f32 {
    let grown = |b: &BoxXyxy| [b[0], b[1], b[2] + 1.0, b[3] + 1.0];
    iou(&grown(a), &grown(b))
}

/// Converts pixels to 0..1 of an image of `width` × `height`.
pub fn normalise(b: &BoxXyxy, width: f32, height: f32) -> BoxXyxy {
    [b[0] / width, b[1] / height, b[2] / width, b[3] / height]
}

/// Converts 0..1 to pixels of an image of `width` × `height`.
pub fn to_pixels(b: &BoxXyxy, width: f32, height: f32) -> BoxXyxy {
    [b[0] * width, b[1] * height, b[2] * width, b[3] * height]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iou_of_known_boxes() {
        assert_eq!(iou(&[0.0, 0.0, 2.0, 2.0], &[1.0, 0.0, 3.0, 2.0]), 1.0 / 3.0);
        assert_eq!(iou(&[0.0, 0.0, 1.0, 1.0], &[1.0, 0.0, 2.0, 1.0]), 0.0);
        assert_eq!(iou(&[1.0, 1.0, 1.0, 1.0], &[1.0, 1.0, 1.0, 1.0]), 0.0);
    }

    #[test]
    fn inclusive_iou_counts_the_last_pixel() {
        // 3 × 3 pixels each, 2 × 3 of them shared.
        assert_eq!(iou_inclusive(&[0.0, 0.0, 2.0, 2.0], &[1.0, 0.0, 3.0, 2.0]), 6.0 / 12.0);
        assert_eq!(iou_inclusive(&[1.0, 1.0, 1.0, 1.0], &[1.0, 1.0, 1.0, 1.0]), 1.0);
        assert_eq!(iou_inclusive(&[0.0, 0.0, 1.0, 1.0], &[2.0, 0.0, 3.0, 1.0]), 0.0);
    }
}
