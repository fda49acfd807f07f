//! Photos from files, as a person sees them.

use crate::{Error, Result};
use image::{DynamicImage, ImageDecoder as _, ImageReader, RgbImage};
use std::path::Path;

/// Reads a photo and turns it as its EXIF orientation says, as the extraction of regions does: boxes
/// and pixels then agree.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Photo`] when it is no picture.
pub fn read(path: &Path) -> Result<RgbImage> {
    let photo_error = |source| Error::Photo { path: path.to_path_buf(), source };
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(Error::io(path))?;
    let mut decoder = reader.into_decoder().map_err(photo_error)?;
    let orientation = decoder.orientation().map_err(photo_error)?;
    let mut photo = DynamicImage::from_decoder(decoder).map_err(photo_error)?;
    photo.apply_orientation(orientation);
    Ok(photo.to_rgb8())
}
