//! RoIAlign (He et al. 2017) with `aligned=False`, as torchvision's kernel.

use candle_core::{Device, Result, Tensor};
use lxmert_core::boxes::BoxXyxy;
use rayon::prelude::*;

/// `map`: `[1, channels, rows, columns]`; `rois` in pixels of the image, `scale` from there to the map.
/// Gives `[rois, channels, size, size]`.
///
/// # Errors
/// When `map` has another shape.
pub fn roi_align(map: &Tensor, rois: &[BoxXyxy], scale: f32, size: usize, sampling_ratio: usize) -> Result<Tensor> {
    let (_, channels, rows, columns) = map.dims4()?;
    let values = map.flatten_all()?.to_vec1::<f32>()?;
    let plane = rows * columns;
    let mut out = vec![0f32; rois.len() * channels * size * size];
    let axis = |start: f32, length: f32, limit: usize| {
        let bin = length / size as f32;
        (0..size * sampling_ratio)
            .map(|i| {
                let (cell, sample) = (i / sampling_ratio, i % sampling_ratio);
                let at = start + cell as f32 * bin + (sample as f32 + 0.5) * bin / sampling_ratio as f32;
                if !(-1.0..=limit as f32).contains(&at) {
                    return (0, 0, 0.0, 0.0);
                }
                let at = at.max(0.0);
                let low = at as usize;
                if low >= limit - 1 {
                    return (limit - 1, limit - 1, 1.0, 0.0);
                }
                let high_weight = at - low as f32;
                (low, low + 1, 1.0 - high_weight, high_weight)
            })
            .collect::<Vec<_>>()
    };
    let count = (sampling_ratio * sampling_ratio) as f32;
    out.par_chunks_mut((channels * size * size).max(1)).zip(rois).for_each(|(out, roi)| {
        let [x0, y0, x1, y1] = roi.map(|v| v * scale);
        let ys = axis(y0, (y1 - y0).max(1.0), rows);
        let xs = axis(x0, (x1 - x0).max(1.0), columns);
        for (channel, out) in out.chunks_exact_mut(size * size).enumerate() {
            let values = &values[channel * plane..][..plane];
            for (cell, out) in out.iter_mut().enumerate() {
                let mut sum = 0.0;
                for &(yl, yh, wyl, wyh) in &ys[cell / size * sampling_ratio..][..sampling_ratio] {
                    for &(xl, xh, wxl, wxh) in &xs[cell % size * sampling_ratio..][..sampling_ratio] {
                        sum += wyl * wxl * values[yl * columns + xl]
                            + wyl * wxh * values[yl * columns + xh]
                            + wyh * wxl * values[yh * columns + xl]
                            + wyh * wxh * values[yh * columns + xh];
                    }
                }
                *out = sum / count;
            }
        }
    });
    Tensor::from_vec(out, (rois.len(), channels, size, size), &Device::Cpu)?.to_device(map.device())
}
