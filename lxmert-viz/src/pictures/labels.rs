//! Label placement: beside the boxes that they name, never over one another, never off the picture.

use super::shapes::Rect;

/// A label to place: its size, and the box that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Width in pixels, > 0.
    pub width: i32,
    /// Height in pixels, > 0.
    pub height: i32,
    /// The box that the label names.
    pub target: Rect,
}

/// Places labels in the given order (most important first) within `bounds`, each at least `gap` pixels from the labels
/// before it and clear of the `obstacles`. `None` if there is no free place near the box.
///
/// Candidates, best first: on top of the box's left, middle and right, inside its corners, below it, beside it, then
/// the same moved away step by step.
pub fn place(labels: &[Label], bounds: Rect, obstacles: &[Rect], gap: i32) -> Vec<Option<Rect>> {
    let mut taken: Vec<Rect> = obstacles.to_vec();
    labels
        .iter()
        .map(|label| {
            let place = candidates(label, bounds).find(|rect| {
                bounds.contains(rect) && !taken.iter().any(|other| other.overlaps(&rect.grown(gap.max(0))))
            })?;
            taken.push(place);
            Some(place)
        })
        .collect()
}

/// How far a label may be from its box, in label heights.
const FARTHEST: i32 = 6;

fn candidates(label: &Label, bounds: Rect) -> impl Iterator<Item = Rect> + use<> {
    let Label { width, height, target } = *label;
    let middle = |low: i32, high: i32, size: i32| low + (high - low - size) / 2;
    let xs = [target.x0, middle(target.x0, target.x1, width), target.x1 - width];
    let ys = [target.y0, middle(target.y0, target.y1, height), target.y1 - height];
    let above = xs.map(|x| Rect::sized(x, target.y0 - height, width, height));
    let below = xs.map(|x| Rect::sized(x, target.y1, width, height));
    let left = ys.map(|y| Rect::sized(target.x0 - width, y, width, height));
    let right = ys.map(|y| Rect::sized(target.x1, y, width, height));
    let within = [ys[0], ys[2], ys[1]].into_iter().flat_map(move |y| [xs[0], xs[2], xs[1]].map(|x| (x, y)));
    let within = within.map(move |(x, y)| Rect::sized(x, y, width, height));
    let near = above.into_iter().chain(within).chain(below).chain(left).chain(right);
    // A box at the picture's edge still gets its label: slide it in.
    let near: Vec<Rect> = near.map(|rect| slide(rect, bounds)).collect();
    let steps = (1..=FARTHEST * 2).flat_map(move |step| {
        let d = step * (height / 2 + 1);
        [(0, -d), (0, d), (-d, 0), (d, 0), (-d, -d), (d, -d), (-d, d), (d, d)]
    });
    let starts = near.clone();
    near.into_iter().chain(steps.flat_map(move |(dx, dy)| starts.clone().into_iter().map(move |r| r.moved(dx, dy))))
}

fn slide(rect: Rect, bounds: Rect) -> Rect {
    let dx = (bounds.x0 - rect.x0).max(0) + (bounds.x1 - rect.x1).min(0);
    let dy = (bounds.y0 - rect.y0).max(0) + (bounds.y1 - rect.y1).min(0);
    rect.moved(dx, dy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Rect = Rect { x0: 0, y0: 0, x1: 640, y1: 480 };

    proptest! {
        #[test]
        fn labels_never_overlap_and_never_leave_the_picture(
            boxes in prop::collection::vec((0i32..640, 0i32..480, 0i32..400, 0i32..300, 10i32..160), 1..40),
            gap in 0i32..4,
        ) {
            let labels: Vec<Label> = boxes
                .iter()
                .map(|(x, y, w, h, width)| Label {
                    width: *width,
                    height: 18,
                    target: Rect { x0: *x, y0: *y, x1: (x + w).min(640), y1: (y + h).min(480) },
                })
                .collect();
            let obstacle = Rect::sized(500, 0, 140, 60);
            let placed = place(&labels, BOUNDS, &[obstacle], gap);
            prop_assert_eq!(placed.len(), labels.len());
            let rects: Vec<(usize, Rect)> = placed.iter().enumerate().filter_map(|(i, r)| r.map(|r| (i, r))).collect();
            for (n, (i, rect)) in rects.iter().enumerate() {
                prop_assert!(BOUNDS.contains(rect));
                prop_assert!(!rect.overlaps(&obstacle));
                prop_assert_eq!((rect.width(), rect.height()), (labels[*i].width, labels[*i].height));
                for (_, other) in &rects[n + 1..] {
                    prop_assert!(!rect.grown(gap).overlaps(other), "{rect:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn a_single_label_is_placed_on_its_box() {
        let label = Label { width: 50, height: 16, target: Rect::sized(100, 100, 80, 60) };
        assert_eq!(place(&[label], BOUNDS, &[], 1), [Some(Rect::sized(100, 84, 50, 16))]);
    }

    #[test]
    fn many_labels_of_one_box_fit_into_an_empty_picture() {
        let label = Label { width: 90, height: 16, target: Rect::sized(200, 200, 60, 60) };
        let placed = place(&[label; 20], BOUNDS, &[], 1);
        assert!(placed.iter().all(Option::is_some), "{placed:?}");
    }

    #[test]
    fn a_label_wider_than_the_picture_is_left_out() {
        let label = Label { width: 700, height: 16, target: Rect::sized(200, 200, 60, 60) };
        assert_eq!(place(&[label], BOUNDS, &[], 1), [None]);
    }
}
