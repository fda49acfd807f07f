//! From an image to the network's input: normalise, then resize, then pad, in this order, as
//! torchvision's `models/detection/transform.py`.

use super::config::TransformConfig;
use crate::images::DecodedImage;
use candle_core::{Device, Tensor};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::{Error, Result};
use rayon::prelude::*;

/// The network's input, and the sizes (height, width) that lead back to the image.
#[derive(Debug, Clone)]
pub struct NetworkInput {
    /// `[1, 3, padded height, padded width]`, f32: a view of channels-last memory.
    pub tensor: Tensor,
    /// Size of the image itself.
    pub image_size: (usize, usize),
    /// Size after the resize: what boxes are clipped to.
    pub resized_size: (usize, usize),
    /// Size after the padding.
    pub padded_size: (usize, usize),
}

impl NetworkInput {
    /// A box in pixels of the resized image, in pixels of the image itself.
    pub fn to_image(&self, b: &BoxXyxy) -> BoxXyxy {
        let y = self.image_size.0 as f32 / self.resized_size.0 as f32;
        let x = self.image_size.1 as f32 / self.resized_size.1 as f32;
        [b[0] * x, b[1] * y, b[2] * x, b[3] * y]
    }
}

/// Size (height, width) that an image of `size` is resized to.
pub fn resized_size(config: &TransformConfig, size: (usize, usize)) -> (usize, usize) {
    let (short, long) = (size.0.min(size.1) as f64, size.0.max(size.1) as f64);
    let scale = (config.min_size as f64 / short).min(config.max_size as f64 / long);
    // torch would refuse a side of 0, which only an image thinner than 1:1333 reaches.
    let side = |n: usize| ((n as f64 * scale).floor() as usize).max(1);
    (side(size.0), side(size.1))
}

/// The network's input for `image`: each byte is scaled to 0..1 and normalised, then resampled straight into its place.
///
/// # Errors
/// When the image has no pixels, or not as many bytes as its size says.
pub fn transform(config: &TransformConfig, image: &DecodedImage, device: &Device) -> Result<NetworkInput> {
    let (width, height) = (image.width as usize, image.height as usize);
    if image.rgb.is_empty() || image.rgb.len() != width * height * 3 {
        return Err(Error::Argument(format!("{} bytes are not an RGB image of {width}×{height}", image.rgb.len())));
    }
    let (new_height, new_width) = resized_size(config, (height, width));
    let pad = |n: usize| n.div_ceil(config.size_divisor) * config.size_divisor;
    let (padded_height, padded_width) = (pad(new_height), pad(new_width));

    // What each byte is in the network, by channel.
    let normalised: [[f32; 256]; 3] = std::array::from_fn(|channel| {
        let (mean, std) = (config.image_mean[channel], config.image_std[channel]);
        std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std)
    });
    let rows = taps(height, new_height);
    let columns = taps(width, new_width);
    let mut padded = vec![0f32; padded_height * padded_width * 3];
    padded.par_chunks_mut(padded_width * 3).zip(&rows).for_each(|(out, &(top, bottom, weight_y))| {
        let source = |y: usize| &image.rgb[y * width * 3..][..width * 3];
        let (upper, lower) = (source(top), source(bottom));
        for (pixel, &(left, right, weight_x)) in out.chunks_exact_mut(3).zip(&columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let of = |line: &[u8], x: usize| normalised[channel][usize::from(line[3 * x + channel])];
                let at = |line: &[u8]| (1.0 - weight_x) * of(line, left) + weight_x * of(line, right);
                *value = (1.0 - weight_y) * at(upper) + weight_y * at(lower);
            }
        }
    });
    let channels_last = Tensor::from_vec(padded, (1, padded_height, padded_width, 3), &Device::Cpu)?;
    Ok(NetworkInput {
        tensor: channels_last.to_device(device)?.permute((0, 3, 1, 2))?,
        image_size: (height, width),
        resized_size: (new_height, new_width),
        padded_size: (padded_height, padded_width),
    })
}

/// Bilinear resampling of `from` samples to `to`, as torch's `interpolate` with
/// `align_corners=False`, no antialias, and the scale computed anew from the sizes: for each
/// target the two sources and the weight of the second.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let position = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
            let first = (position as usize).min(from - 1);
            (first, (first + 1).min(from - 1), (position - first as f32).clamp(0.0, 1.0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_torchvision_s() {
        let config = TransformConfig::default();
        assert_eq!(resized_size(&config, (300, 451)), (800, 1202));
        assert_eq!(resized_size(&config, (400, 600)), (800, 1200));
        assert_eq!(resized_size(&config, (500, 1500)), (444, 1333));
        assert_eq!(resized_size(&config, (1, 5000)), (1, 1333));
    }

    #[test]
    fn bilinear_weights_are_torch_s() {
        // python: F.interpolate(torch.tensor([[[0., 10., 20.]]]), scale_factor=5/3, mode="linear",
        //   recompute_scale_factor=True) is 0, 4, 10, 16, 20
        let source = [0.0, 10.0, 20.0];
        let got: Vec<f32> = taps(3, 5).iter().map(|&(a, b, w)| (1.0 - w) * source[a] + w * source[b]).collect();
        for (g, e) in got.iter().zip([0.0, 4.0, 10.0, 16.0, 20.0]) {
            assert!((g - e).abs() < 1e-5, "{got:?}");
        }
    }

    #[test]
    fn padding_is_zero_on_the_right_and_below() -> Result<()> {
        let config = TransformConfig { min_size: 40, max_size: 60, ..TransformConfig::default() };
        let image = DecodedImage { width: 20, height: 10, rgb: vec![255; 20 * 10 * 3] };
        let input = transform(&config, &image, &Device::Cpu)?;
        assert_eq!((input.resized_size, input.padded_size), ((30, 60), (32, 64)));
        let rows = input.tensor.squeeze(0)?.to_vec3::<f32>()?;
        let white = (1.0 - 0.485) / 0.229;
        assert!((rows[0][29][59] - white).abs() < 1e-5);
        assert_eq!((rows[0][30][0], rows[0][0][60]), (0.0, 0.0));
        Ok(())
    }

    /// The definition (torchvision's `_resize_image_and_masks` after `normalize`), value by value.
    #[test]
    fn each_value_is_the_four_normalised_pixels_weighted() -> Result<()> {
        let config = TransformConfig { min_size: 9, max_size: 60, ..TransformConfig::default() };
        let bytes: Vec<u8> = (0..7 * 5 * 3u32).map(|i| (i * 37 % 256) as u8).collect();
        let input = transform(&config, &DecodedImage { width: 7, height: 5, rgb: bytes.clone() }, &Device::Cpu)?;
        let (new_height, new_width) = input.resized_size;
        assert_eq!((new_height, new_width), (9, 12));
        let planes = input.tensor.squeeze(0)?.to_vec3::<f32>()?;
        for channel in 0..3 {
            let pixel = |y: usize, x: usize| {
                let value = f32::from(bytes[(y * 7 + x) * 3 + channel]) / 255.0;
                (value - config.image_mean[channel]) / config.image_std[channel]
            };
            for (y, &(top, bottom, wy)) in taps(5, new_height).iter().enumerate() {
                for (x, &(left, right, wx)) in taps(7, new_width).iter().enumerate() {
                    let row = |y| (1.0 - wx) * pixel(y, left) + wx * pixel(y, right);
                    assert_eq!(planes[channel][y][x], (1.0 - wy) * row(top) + wy * row(bottom));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn rejects_images_without_pixels_or_of_another_size() {
        let config = TransformConfig::default();
        for (width, height, bytes) in [(2, 1, 5), (0, 4, 0), (4, 0, 0), (1, 1, 4)] {
            let image = DecodedImage { width, height, rgb: vec![0; bytes] };
            assert!(transform(&config, &image, &Device::Cpu).is_err());
        }
    }
}
