//! Converts boxes to offsets from a reference box, and back (Girshick et al. 2014, appendix C).

use super::config::BoxConvention;
use lxmert_core::boxes::BoxXyxy;

/// The weights of dx, dy, dw, dh, and the boxes' convention.
#[derive(Debug, Clone, Copy)]
pub struct BoxCoder {
    weights: [f32; 4],
    convention: BoxConvention,
}

impl BoxCoder {
    /// The largest dw and dh: ln(1000 / 16).
    pub const LARGEST_LOG_SCALE: f32 = 4.135_166_6;

    /// A coder for [`BoxConvention::Continuous`] boxes with these weights.
    pub fn new(weights: [f32; 4]) -> Self {
        Self { weights, convention: BoxConvention::Continuous }
    }

    /// The same coder for boxes of `convention`.
    pub fn with_convention(self, convention: BoxConvention) -> Self {
        Self { convention, ..self }
    }

    /// The box at `deltas` from `reference`. With [`BoxConvention::Inclusive`] the log scales are unbounded, and the
    /// far corner is at the near one plus the width, not the width - 1; Caffe computes both this way.
    pub fn decode(&self, deltas: [f32; 4], reference: &BoxXyxy) -> BoxXyxy {
        let [x0, y0, x1, y1] = *reference;
        let extra = self.convention.extra();
        let (width, height) = (x1 - x0 + extra, y1 - y0 + extra);
        let (centre_x, centre_y) = (x0 + 0.5 * width, y0 + 0.5 * height);
        let [wx, wy, ww, wh] = self.weights;
        let limit = match self.convention {
            BoxConvention::Continuous => Self::LARGEST_LOG_SCALE,
            BoxConvention::Inclusive => f32::INFINITY,
        };
        let (dw, dh) = ((deltas[2] / ww).min(limit), (deltas[3] / wh).min(limit));
        let x = deltas[0] / wx * width + centre_x;
        let y = deltas[1] / wy * height + centre_y;
        let half_width = 0.5 * (dw.exp() * width);
        let half_height = 0.5 * (dh.exp() * height);
        [x - half_width, y - half_height, x + half_width, y + half_height]
    }

    /// The deltas from `reference` to `target`: the training targets. Both boxes must have positive sides.
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

/// Clips a box to an image of `size` (height, width).
pub fn clip(b: &BoxXyxy, size: (usize, usize), convention: BoxConvention) -> BoxXyxy {
    let extra = convention.extra();
    let (height, width) = (size.0 as f32 - extra, size.1 as f32 - extra);
    [b[0].clamp(0.0, width), b[1].clamp(0.0, height), b[2].clamp(0.0, width), b[3].clamp(0.0, height)]
}

/// Whether both sides are at least `least`; false for boxes with a NaN.
pub fn is_at_least(b: &BoxXyxy, least: f32, convention: BoxConvention) -> bool {
    let extra = convention.extra();
    b[2] - b[0] + extra >= least && b[3] - b[1] + extra >= least
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
    fn scaling_is_bounded() {
        let coder = BoxCoder::new([1.0; 4]);
        let b = coder.decode([0.0, 0.0, 100.0, f32::INFINITY], &[0.0, 0.0, 16.0, 16.0]);
        assert!((b[2] - b[0] - 1000.0).abs() < 1e-2 && (b[3] - b[1] - 1000.0).abs() < 1e-2, "{b:?}");
        assert!(!is_at_least(&[f32::NAN, 0.0, 1.0, 1.0], 0.0, BoxConvention::Continuous));
    }

    #[test]
    fn inclusive_boxes_are_one_pixel_wider_and_end_at_the_last_pixel() {
        let inclusive = BoxConvention::Inclusive;
        let coder = BoxCoder::new([1.0; 4]).with_convention(inclusive);
        // A box of 16 pixels around 8: the far corner is not moved back by one.
        assert_eq!(coder.decode([0.0; 4], &[0.0, 0.0, 15.0, 15.0]), [0.0, 0.0, 16.0, 16.0]);
        let b = coder.decode([0.0, 0.0, 6.0, 0.0], &[0.0, 0.0, 15.0, 15.0]);
        assert!((b[2] - b[0] - 16.0 * 6f32.exp()).abs() < 1e-2, "not bounded: {b:?}");
        assert_eq!(clip(&[-1.0, 2.0, 50.0, 50.0], (10, 20), inclusive), [0.0, 2.0, 19.0, 9.0]);
        assert!(is_at_least(&[0.0, 0.0, 15.0, 15.0], 16.0, inclusive));
        assert!(!is_at_least(&[0.0, 0.0, 15.0, 15.0], 16.0, BoxConvention::Continuous));
    }
}
