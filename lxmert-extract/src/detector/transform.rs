//! Converts an image to the network's input: channels in the network's order, normalised, resized, padded.
//!
//! The three families differ in how the size is rounded, in the sampling step, and in whether the mean is subtracted
//! before or after the resize; see [`Resize`].

use super::config::{ChannelOrder, Resize, TransformConfig};
use crate::images::DecodedImage;
use candle_core::{Device, Tensor};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::{Error, Result};
use rayon::prelude::*;

/// The network's input, and the sizes (height, width) needed to map boxes back to the image.
#[derive(Debug, Clone)]
pub struct NetworkInput {
    /// `[1, 3, padded height, padded width]`, f32: a view of channels-last memory.
    pub tensor: Tensor,
    /// Size of the original image.
    pub image_size: (usize, usize),
    /// Size after the resize; boxes are clipped to it.
    pub resized_size: (usize, usize),
    /// Size after the padding.
    pub padded_size: (usize, usize),
    /// Size of the whole image in pixels of the resized one: the resized size, or with [`Resize::Caffe`] the image's
    /// size times the scale, which need not be a whole number.
    pub frame: (f32, f32),
    /// Pixels of the resized image per pixel of the original, before rounding.
    pub scale: f32,
}

impl NetworkInput {
    /// Converts a box from pixels of the resized image to pixels of the original.
    pub fn to_image(&self, b: &BoxXyxy) -> BoxXyxy {
        let y = self.image_size.0 as f32 / self.frame.0;
        let x = self.image_size.1 as f32 / self.frame.1;
        [b[0] * x, b[1] * y, b[2] * x, b[3] * y]
    }

    /// Converts a box from pixels of the original image to pixels of the resized one.
    pub fn to_resized(&self, b: &BoxXyxy) -> BoxXyxy {
        let y = self.frame.0 / self.image_size.0 as f32;
        let x = self.frame.1 / self.image_size.1 as f32;
        [b[0] * x, b[1] * y, b[2] * x, b[3] * y]
    }
}

/// The size (height, width) after resizing an image of `size`, and the scale behind it.
pub fn resized_size(config: &TransformConfig, size: (usize, usize)) -> ((usize, usize), f64) {
    let (short, long) = (size.0.min(size.1) as f64, size.0.max(size.1) as f64);
    let (min_size, max_size) = (config.min_size as f64, config.max_size as f64);
    let scale = match config.resize {
        Resize::Caffe if (min_size / short * long).round_ties_even() <= max_size => min_size / short,
        Resize::Caffe => max_size / long,
        Resize::Torchvision | Resize::Detectron2 => (min_size / short).min(max_size / long),
    };
    // torch would refuse a side of 0, which only a very thin image reaches.
    let side = |n: usize| {
        let side = match config.resize {
            Resize::Torchvision => (n as f64 * scale).floor(),
            // Two steps, as in the original: the short side becomes `min_size`; if the long side then exceeds
            // `max_size`, both shrink.
            Resize::Detectron2 => {
                let enlarged = if n == size.0.min(size.1) { min_size } else { min_size / short * n as f64 };
                let longest = min_size / short * long;
                let shrink = if longest > max_size { max_size / longest } else { 1.0 };
                (enlarged * shrink + 0.5).floor()
            }
            Resize::Caffe => (n as f64 * scale).round_ties_even(),
        };
        (side as usize).max(1)
    };
    ((side(size.0), side(size.1)), scale)
}

/// The network's input for `image`: scales each byte to 0..1, normalises it, and resamples directly into the result.
///
/// # Errors
/// Returns an error if the image has no pixels, or a number of bytes other than its size implies.
pub fn transform(config: &TransformConfig, image: &DecodedImage, device: &Device) -> Result<NetworkInput> {
    let (width, height) = (image.width as usize, image.height as usize);
    if image.rgb.is_empty() || image.rgb.len() != width * height * 3 {
        return Err(Error::Argument(format!("{} bytes are not an RGB image of {width}×{height}", image.rgb.len())));
    }
    let ((new_height, new_width), scale) = resized_size(config, (height, width));
    let pad = |n: usize| n.div_ceil(config.size_divisor) * config.size_divisor;
    let (padded_height, padded_width) = (pad(new_height), pad(new_width));

    // The mean is subtracted before or after the resize; the other step is the identity.
    let normalisation: [_; 3] = std::array::from_fn(|channel| (config.image_mean[channel], config.image_std[channel]));
    let (before, after) = match config.resize {
        Resize::Detectron2 => ([(0.0, 1.0); 3], normalisation),
        Resize::Torchvision | Resize::Caffe => (normalisation, [(0.0, 1.0); 3]),
    };
    // The network's value for each byte, by channel.
    let values: [[f32; 256]; 3] = std::array::from_fn(|channel| {
        let (mean, std) = before[channel];
        std::array::from_fn(|byte| (byte as f32 / (255.0 / config.pixel_max) - mean) / std)
    });
    let source_of = match config.format {
        ChannelOrder::Rgb => [0, 1, 2],
        ChannelOrder::Bgr => [2, 1, 0],
    };
    let step = |from: usize, to: usize| match config.resize {
        Resize::Caffe => 1.0 / scale,
        Resize::Torchvision | Resize::Detectron2 => f64::from(from as f32 / to as f32),
    };
    let rows = taps(height, new_height, step(height, new_height));
    let columns = taps(width, new_width, step(width, new_width));
    let mut padded = vec![0f32; padded_height * padded_width * 3];
    padded.par_chunks_mut(padded_width * 3).zip(&rows).for_each(|(out, &(top, bottom, weight_y))| {
        let source = |y: usize| &image.rgb[y * width * 3..][..width * 3];
        let (upper, lower) = (source(top), source(bottom));
        for (pixel, &(left, right, weight_x)) in out.chunks_exact_mut(3).zip(&columns) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let of = |line: &[u8], x: usize| values[channel][usize::from(line[3 * x + source_of[channel]])];
                let at = |line: &[u8]| (1.0 - weight_x) * of(line, left) + weight_x * of(line, right);
                let (mean, std) = after[channel];
                *value = ((1.0 - weight_y) * at(upper) + weight_y * at(lower) - mean) / std;
            }
        }
    });
    let channels_last = Tensor::from_vec(padded, (1, padded_height, padded_width, 3), &Device::Cpu)?;
    let frame = match config.resize {
        Resize::Caffe => ((height as f64 * scale) as f32, (width as f64 * scale) as f32),
        Resize::Torchvision | Resize::Detectron2 => (new_height as f32, new_width as f32),
    };
    Ok(NetworkInput {
        tensor: channels_last.to_device(device)?.permute((0, 3, 1, 2))?,
        image_size: (height, width),
        resized_size: (new_height, new_width),
        padded_size: (padded_height, padded_width),
        frame,
        scale: scale as f32,
    })
}

/// Bilinear resampling from `from` samples to `to`, `step` apart, as computed by torch's `interpolate` with
/// `align_corners=False` and no antialias, and by OpenCV's `resize`. Gives for each target the two sources and the
/// weight of the second. The border is repeated outwards. Positions are rounded to f32 once (torch's product and
/// difference are one fused operation).
fn taps(from: usize, to: usize, step: f64) -> Vec<(usize, usize, f32)> {
    (0..to)
        .map(|i| {
            let position = ((step * (i as f64 + 0.5) - 0.5) as f32).max(0.0);
            let first = (position as usize).min(from - 1);
            (first, (first + 1).min(from - 1), (position - first as f32).clamp(0.0, 1.0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_equal_torchvisions() {
        let config = TransformConfig::default();
        assert_eq!(resized_size(&config, (300, 451)).0, (800, 1202));
        assert_eq!(resized_size(&config, (400, 600)).0, (800, 1200));
        assert_eq!(resized_size(&config, (500, 1500)).0, (444, 1333));
        assert_eq!(resized_size(&config, (1, 5000)).0, (1, 1333));
    }

    #[test]
    fn sizes_of_the_other_families_follow_their_rounding() {
        let hugging_face = TransformConfig { resize: Resize::Detectron2, ..TransformConfig::default() };
        assert_eq!(resized_size(&hugging_face, (300, 451)).0, (800, 1203)); // 1202.67
        assert_eq!(resized_size(&hugging_face, (500, 1500)).0, (444, 1333));
        assert_eq!(resized_size(&hugging_face, (427, 640)).0, (800, 1199)); // 1199.06
        let caffe =
            TransformConfig { resize: Resize::Caffe, min_size: 600, max_size: 1000, ..TransformConfig::default() };
        assert_eq!(resized_size(&caffe, (300, 451)), ((600, 902), 2.0));
        assert_eq!(resized_size(&caffe, (375, 500)), ((600, 800), 1.6));
        assert_eq!(resized_size(&caffe, (300, 600)).0, (500, 1000));
    }

    #[test]
    fn channels_are_in_the_networks_order() -> Result<()> {
        let config = TransformConfig {
            min_size: 1,
            max_size: 2,
            resize: Resize::Detectron2,
            size_divisor: 1,
            format: ChannelOrder::Bgr,
            pixel_max: 255.0,
            image_mean: [1.0, 2.0, 3.0],
            image_std: [1.0; 3],
        };
        let image = DecodedImage { width: 1, height: 1, rgb: vec![10, 20, 30] };
        let values = |config: &TransformConfig| -> Result<Vec<f32>> {
            Ok(transform(config, &image, &Device::Cpu)?.tensor.flatten_all()?.to_vec1()?)
        };
        assert_eq!(values(&config)?, [29.0, 18.0, 7.0]);
        assert_eq!(values(&TransformConfig { format: ChannelOrder::Rgb, ..config })?, [9.0, 18.0, 27.0]);
        Ok(())
    }

    #[test]
    fn bilinear_weights_equal_torchs() {
        // python: F.interpolate(torch.tensor([[[0., 10., 20.]]]), scale_factor=5/3, mode="linear",
        //   recompute_scale_factor=True) is 0, 4, 10, 16, 20
        let source = [0.0, 10.0, 20.0];
        let got: Vec<f32> = taps(3, 5, 0.6).iter().map(|&(a, b, w)| (1.0 - w) * source[a] + w * source[b]).collect();
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
    fn each_value_interpolates_four_normalised_pixels() -> Result<()> {
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
            let taps = |from: usize, to: usize| taps(from, to, f64::from(from as f32 / to as f32));
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
