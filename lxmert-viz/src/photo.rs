//! Photos from files, as a person sees them.

use crate::{Error, Result};
use image::RgbImage;
use std::path::Path;

/// Reads a photo as region extraction does, so that boxes and pixels agree.
///
/// # Errors
/// [`Error::Extract`] if the file cannot be read or is not a picture.
pub fn read(path: &Path) -> Result<RgbImage> {
    let decoded = lxmert_extract::images::decode_file(path)?;
    RgbImage::from_raw(decoded.width, decoded.height, decoded.rgb)
        .ok_or_else(|| Error::Shape(format!("{}: fewer pixels than its size implies", path.display())))
}
