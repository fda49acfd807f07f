//! Decoding: orientation, colour spaces, transparency, and rejected files.

use image::{DynamicImage, ImageFormat};
use lxmert_extract::images::{decode, decode_file};
use std::io::Cursor;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images").join(name)
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn rotated_cmyk_and_ycck_jpegs_equal_pillows() {
    for (name, size) in [("rotated", (48, 32)), ("cmyk", (32, 48)), ("ycck", (32, 48))] {
        let image = decode_file(fixture(&format!("{name}.jpg"))).unwrap();
        assert_eq!((image.width, image.height), size, "{name}");
        let expected = std::fs::read(fixture(&format!("{name}.rgb"))).unwrap();
        assert_eq!(image.rgb.len(), expected.len());
        // The two decoders round the colour conversion and the upsampling differently.
        let worst = image.rgb.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(4), "{name}: {worst:?}");
    }
}

#[test]
fn lossless_formats_keep_every_value() {
    let rgb = image::RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 50, y as u8 * 80, 7]));
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let image = decode(&encoded(&rgb.clone().into(), format)).unwrap();
        assert_eq!((image.width, image.height, &image.rgb), (5, 3, rgb.as_raw()), "{format:?}");
    }
}

#[test]
fn grey_sixteen_bit_and_transparent_images_become_rgb() {
    let grey = image::GrayImage::from_pixel(2, 2, image::Luma([77]));
    assert_eq!(decode(&encoded(&grey.into(), ImageFormat::Png)).unwrap().rgb, [77; 12]);
    let deep = image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(1, 1, image::Luma([0x8000]));
    assert_eq!(decode(&encoded(&DynamicImage::ImageLuma16(deep), ImageFormat::Png)).unwrap().rgb, [128; 3]);
    let mut clear = image::RgbaImage::from_pixel(3, 1, image::Rgba([200, 0, 0, 255]));
    clear.put_pixel(1, 0, image::Rgba([200, 0, 0, 0]));
    clear.put_pixel(2, 0, image::Rgba([0, 0, 0, 51]));
    let expected = [200, 0, 0, 255, 255, 255, 204, 204, 204];
    assert_eq!(decode(&encoded(&clear.clone().into(), ImageFormat::Png)).unwrap().rgb, expected);
    let gif = decode(&encoded(&clear.into(), ImageFormat::Gif)).unwrap().rgb;
    assert_eq!(gif[3..6], [255, 255, 255]);
}

#[test]
fn rejects_damaged_files_with_the_reason() {
    let jpeg = std::fs::read(fixture("cmyk.jpg")).unwrap();
    assert!(decode(&jpeg[..jpeg.len() - 40]).unwrap_err().contains("truncated"));
    let png = encoded(&image::RgbImage::new(40, 40).into(), ImageFormat::Png);
    assert!(decode(&png[..png.len() / 2]).is_err());
    assert!(decode(b"").unwrap_err().contains("empty"));
    assert!(decode(b"hello, I am text").unwrap_err().contains("not a JPEG"));
    assert!(decode_file(fixture("")).unwrap_err().to_string().contains("a folder"));
    assert!(decode_file(fixture("none.jpg")).unwrap_err().to_string().contains("none.jpg"));
}

#[test]
fn rejects_decompression_bombs_before_decoding() {
    let mut bmp = encoded(&image::RgbImage::new(1, 1).into(), ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&60_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000u32.to_le_bytes());
    assert!(decode(&bmp).unwrap_err().contains("60000 × 60000"));
}

/// A PNG that claims another size, with a correct header checksum.
fn png_of_size(image: &DynamicImage, width: u32, height: u32) -> Vec<u8> {
    let mut png = encoded(image, ImageFormat::Png);
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = png[12..29].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    });
    png[29..33].copy_from_slice(&(!crc).to_be_bytes());
    png
}

#[test]
fn rejects_images_that_need_too_much_memory_before_decoding() {
    let deep: DynamicImage = image::ImageBuffer::<image::Rgba<u16>, _>::new(1, 1).into();
    let reason = decode(&png_of_size(&deep, 10_000, 10_000)).unwrap_err();
    assert!(reason.contains("10000 × 10000 pixels of 8 bytes take more than 400 MB"), "{reason}");
    // Half as many pixels are within the limit; here their data is missing.
    assert!(decode(&png_of_size(&deep, 5_000, 10_000)).unwrap_err().contains("cannot be decoded"));
    let shallow = image::GrayImage::new(1, 1).into();
    assert!(decode(&png_of_size(&shallow, 10_000, 10_001)).unwrap_err().contains("1 to 100000000"));
}
