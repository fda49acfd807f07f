//! The student project's features (durakalon/LXMERT_Flickr): a folder with one `torch.save` file per image.
//!
//! Each file is a dict of `visual_feats` `[36, 1024]` and `visual_pos` `[36, 4]` (x0 y0 x1 y1 in 0..1), padded with
//! zero rows if the detector found fewer regions. The store gets:
//!
//! | in the store | from |
//! | --- | --- |
//! | name | the file's path below the folder without `.pt`, with `.jpg` added unless it ends like an image already: `1000092795.pt` is `1000092795.jpg`, as Flickr30k's captions name it |
//! | features, boxes | the rows whose box is not all zeros, in their order; `num_regions` counts them |
//! | labels, scores | the files have none: label 0, called `region`, and score 1 |
//! | image size | the files do not say: 1 × 1, so that a box in pixels reads as its normalised self |

use super::copy;
use crate::pipeline::ExtractSummary;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lxmert_core::boxes::BoxXyxy;
use lxmert_core::checkpoint::read_tensors;
use lxmert_core::features::{Regions, StoreDtype, StoreInfo};
use lxmert_core::image_names::is_image_name;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Copies every image of `folder` that the store does not have yet. The first readable file, by name, sets the number
/// of regions and the feature width. Files that do not follow the format are listed in `failures.csv`, skipped, and
/// tried again by the next run.
///
/// # Errors
/// [`Error::Input`] if the folder has no `.pt` file or none that can be read, or the store cannot be written. Images
/// copied before the error are kept.
pub fn import_pt(folder: &Path, output: &Path, dtype: StoreDtype, show_progress: bool) -> Result<ExtractSummary> {
    let files = find_files(folder)?;
    let mut first_fault = None;
    let Some(rows) = files.iter().find_map(|file| match read_file(&file.path) {
        Ok(rows) => Some(rows),
        Err(reason) => {
            first_fault.get_or_insert(reason);
            None
        }
    }) else {
        let (count, first) = (files.len(), first_fault.unwrap_or_default());
        return Err(Error::input(folder, format!("none of the {count} .pt files can be read; the first: {first}")));
    };
    let info = StoreInfo {
        detector: "student".into(),
        settings: [("imported from".to_string(), "the student project's .pt files".to_string())].into(),
        regions: rows.boxes.len(),
        feature_dim: rows.feature_dim,
        dtype,
        label_names: vec!["region".into()],
        attribute_names: Vec::new(),
    };
    let records = files.iter().map(|file| Ok((file.name.clone(), &file.path)));
    let read = |path: &PathBuf| read_file(path).and_then(Rows::into_regions);
    copy(output, info, (files.len(), HashSet::new(), records), read, show_progress)
}

struct PtFile {
    name: String,
    path: PathBuf,
}

/// The `.pt` files in the folder and its subfolders, sorted by image name.
fn find_files(folder: &Path) -> Result<Vec<PtFile>> {
    std::fs::read_dir(folder).map_err(lxmert_core::Error::io(folder))?;
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true) {
        let entry = entry.map_err(|error| Error::input(folder, error.to_string()))?;
        let path = entry.path();
        if !entry.file_type().is_file() || !path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("pt")) {
            continue;
        }
        let below = path.strip_prefix(folder).unwrap_or(path).with_extension("");
        let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        let mut name = parts.join("/");
        if !is_image_name(&name) {
            name.push_str(".jpg");
        }
        files.push(PtFile { name, path: path.to_path_buf() });
    }
    if files.is_empty() {
        return Err(Error::input(folder, "no .pt files here"));
    }
    files.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    Ok(files)
}

/// The rows of one file, padding included.
struct Rows {
    feature_dim: usize,
    features: Vec<f32>,
    boxes: Vec<BoxXyxy>,
}

impl Rows {
    /// Drops the padding.
    fn into_regions(self) -> std::result::Result<Regions, String> {
        let mut regions =
            Regions { image_width: 1, image_height: 1, feature_dim: self.feature_dim, ..Regions::default() };
        for (row, b) in self.boxes.into_iter().enumerate() {
            if b != [0.0; 4] {
                regions.boxes.push(b);
                regions.features.extend_from_slice(&self.features[row * self.feature_dim..][..self.feature_dim]);
            }
        }
        if regions.boxes.is_empty() {
            return Err("every row is padding: the file has no boxes".into());
        }
        regions.labels = vec![0; regions.boxes.len()];
        regions.scores = vec![1.0; regions.boxes.len()];
        Ok(regions)
    }
}

fn read_file(path: &Path) -> std::result::Result<Rows, String> {
    let mut tensors = read_tensors(path).map_err(|error| match error {
        lxmert_core::Error::Format { reason, .. } => reason,
        other => other.to_string(),
    })?;
    let names = tensors.keys().take(4).cloned().collect::<Vec<_>>().join(", ");
    let mut take =
        |name: &str| tensors.remove(name).ok_or_else(|| format!("no '{name}' in the file; it holds: {names}"));
    let (features, boxes) = (take("visual_feats")?, take("visual_pos")?);
    let (&[rows, feature_dim], &[box_rows, 4]) = (features.dims(), boxes.dims()) else {
        return Err(format!(
            "visual_feats {:?} and visual_pos {:?} are not [regions, width] and [regions, 4]",
            features.dims(),
            boxes.dims()
        ));
    };
    if rows != box_rows || rows == 0 || feature_dim == 0 {
        return Err(format!("visual_feats has {rows} rows of {feature_dim}, visual_pos has {box_rows} rows"));
    }
    let floats = |tensor: &Tensor| {
        let values = tensor.flatten_all().and_then(|flat| flat.to_dtype(DType::F32)?.to_vec1::<f32>());
        values.map_err(|error| error.to_string())
    };
    let boxes = floats(&boxes)?.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
    Ok(Rows { feature_dim, features: floats(&features)?, boxes })
}
