//! COCO's category names by its own numbering, which has gaps.

/// The name of a gap in COCO's numbering; no annotation has such an id.
pub const GAP: &str = "N/A";

/// The 91 label ids of COCO: 0 is background; 1 to 90 are COCO's category ids, of which 80 are used and the others are
/// [`GAP`]. From torchvision's `models/_meta.py`.
#[rustfmt::skip]
pub const LABEL_NAMES: [&str; 91] = [
    "__background__", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "N/A", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse",
    "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "N/A", "backpack", "umbrella", "N/A", "N/A", "handbag",
    "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
    "skateboard", "surfboard", "tennis racket", "bottle", "N/A", "wine glass", "cup", "fork", "knife", "spoon",
    "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    "chair", "couch", "potted plant", "bed", "N/A", "dining table", "N/A", "N/A", "toilet", "N/A", "tv", "laptop",
    "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "N/A",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighty_categories_have_cocos_ids() {
        assert_eq!(LABEL_NAMES.iter().skip(1).filter(|n| **n != GAP).count(), 80);
        assert_eq!(
            (LABEL_NAMES[1], LABEL_NAMES[17], LABEL_NAMES[62], LABEL_NAMES[90]),
            ("person", "cat", "chair", "toothbrush")
        );
    }
}
