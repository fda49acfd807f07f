//! Boxes as offsets from a reference box, and back (Girshick et al. 2014, appendix C).

use lxmert_core::boxes::BoxXyxy;

/// Weights of dx, dy, dw, dh.
#[derive(Debug, Clone, Copy)]
pub struct BoxCoder {
    weights: [f32; 4],
}

impl BoxCoder {
    /// The largest dw and dh: ln(1000 / 16).
    pub const LARGEST_LOG_SCALE: f32 = 4.135_166_6;

    /// A coder with these weights.
    pub fn new(weights: [f32; 4]) -> Self {
        Self { weights }
    }

    /// The box at `deltas` from `reference`.
    pub fn decode(&self, deltas: [f32; 4], reference: &BoxXyxy) -> BoxXyxy {
        let [x0, y0, x1, y1] = *reference;
        let (width, height) = (x1 - x0, y1 - y0);
        let (centre_x, centre_y) = (x0 + 0.5 * width, y0 + 0.5 * height);
        let [wx, wy, ww, wh] = self.weights;
        let dw = (deltas[2] / ww).min(Self::LARGEST_LOG_SCALE);
        let dh = (deltas[3] / wh).min(Self::LARGEST_LOG_SCALE);
        let x = deltas[0] / wx * width + centre_x;
        let y = deltas[1] / wy * height + centre_y;
        let half_width = 0.5 * (dw.exp() * width);
        let half_height = 0.5 * (dh.exp() * height);
        [x - half_width, y - half_height, x + half_width, y + half_height]
    }

    /// The deltas that lead from `reference` to `target`: the targets of training. Both must have
    /// positive sides.
    pub fn encode(&self, target: &BoxXyxy, reference: &BoxXyxy) -> [f32; 4] {
        let centre_and_size = |b: &BoxXyxy| {
            let (w, h) = (b[2] - b[0], b[3] - b[1]);
            (b[0] + 0.5 * w, b[1] + 0.5 * h, w, h)
        };
        let (tx, ty, tw, th) = centre_and_size(target);
        let (rx, ry, rw, rh) = centre_and_size(reference);
        let [wx, wy, ww, wh] = self.weights;
        [wx * (tx - rx) / rw, wy * (ty - ry) / rh, ww * (tw / rw).ln(), wh * (th / rh).ln()]
    }
}

/// Moves a box's corners into an image of `size` (height, width).
pub fn clip(b: &BoxXyxy, size: (usize, usize)) -> BoxXyxy {
    let (height, width) = (size.0 as f32, size.1 as f32);
    [b[0].clamp(0.0, width), b[1].clamp(0.0, height), b[2].clamp(0.0, width), b[3].clamp(0.0, height)]
}

/// Whether both sides are at least `least`; false for boxes with a NaN.
pub fn is_at_least(b: &BoxXyxy, least: f32) -> bool {
    b[2] - b[0] >= least && b[3] - b[1] >= least
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_undoes_encoding(x in 0f32..500.0, y in 0f32..500.0, w in 4f32..300.0, h in 4f32..300.0,
                                    rx in 0f32..500.0, ry in 0f32..500.0, rw in 20f32..300.0, rh in 20f32..300.0) {
            let coder = BoxCoder::new([10.0, 10.0, 5.0, 5.0]);
            let target = [x, y, x + w, y + h];
            let reference = [rx, ry, rx + rw, ry + rh];
            let back = coder.decode(coder.encode(&target, &reference), &reference);
            for (a, b) in back.iter().zip(target) {
                prop_assert!((a - b).abs() < 0.01, "{back:?} is not {target:?}");
            }
        }
    }

    #[test]
    fn enlargement_is_bounded() {
        let coder = BoxCoder::new([1.0; 4]);
        let b = coder.decode([0.0, 0.0, 100.0, f32::INFINITY], &[0.0, 0.0, 16.0, 16.0]);
        assert!((b[2] - b[0] - 1000.0).abs() < 1e-2 && (b[3] - b[1] - 1000.0).abs() < 1e-2, "{b:?}");
        assert!(!is_at_least(&[f32::NAN, 0.0, 1.0, 1.0], 0.0));
    }
}
