//! `lxmert-extract inspect`: a readable description of a store.

use crate::{Error, Result};
use lxmert_core::boxes::to_pixels;
use lxmert_core::features::FeatureStore;
use std::fmt::Write as _;

/// Describes the whole store: counts, how it was made, size on disk.
///
/// # Errors
/// Returns an error if a shard is damaged.
pub fn describe_store(store: &FeatureStore) -> Result<String> {
    let info = store.info();
    let mut regions = 0;
    for image in 0..store.len() {
        regions += store.num_regions(image)?;
    }
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<18}{value}");
    };
    line("store", store.folder().display().to_string());
    line("images", store.len().to_string());
    line("regions", format!("{regions} in total, up to {} per image", info.regions));
    line("features", format!("{} × {}", info.feature_dim, info.dtype));
    line("labels", info.label_names.len().to_string());
    if info.has_attributes() {
        line("attributes", info.attribute_names.len().to_string());
    }
    line("size on disk", format!("{} in {} shards", indicatif::HumanBytes(store.size_on_disk()), store.num_shards()));
    line("detector", info.detector.clone());
    for (name, value) in &info.settings {
        line(&format!("  {name}"), value.clone());
    }
    if store.is_unfinished() {
        line("unfinished", "run the extraction again to finish it; images in its journal are not counted".into());
    }
    Ok(text)
}

/// Every name in the store, one per line after its kind (`image`, `object` or `attribute`) and a tab, for `cut` and `grep`.
/// Objects and attributes are in the order of their numbers, from 0.
pub fn list_names(store: &FeatureStore) -> String {
    let info = store.info();
    let images = store.names().map(|name| ("image", name));
    let objects = info.label_names.iter().map(|name| ("object", name.as_str()));
    let attributes = info.attribute_names.iter().map(|name| ("attribute", name.as_str()));
    images.chain(objects).chain(attributes).map(|(kind, name)| format!("{kind}\t{name}\n")).collect()
}

/// Describes one image: its regions, numbered from 1, with label, score and box in pixels (in 0..1 if the store does
/// not know the size).
///
/// # Errors
/// Returns an error if the store has no such image (the message suggests similar names) or a shard is damaged.
pub fn describe_image(store: &FeatureStore, name: &str) -> Result<String> {
    let Some(image) = store.index_of(name) else {
        let similar: Vec<&str> = store.names().filter(|other| other.contains(name)).take(3).collect();
        let hint = if similar.is_empty() {
            format!("its names look like '{}'", store.names().next().unwrap_or_default())
        } else {
            format!("did you mean '{}'?", similar.join("', '"))
        };
        return Err(Error::input(store.folder(), format!("no image '{name}'; {hint}")));
    };
    let regions = store.regions(image)?;
    let info = store.info();
    let label = |names: &[String], label: u32| names.get(label as usize).cloned().unwrap_or(format!("#{label}"));
    let (width, height) = (regions.image_width, regions.image_height);
    // Imports that do not know the size store 1 × 1.
    let (size, frame, digits) = match (width, height) {
        (1, 1) => ("size unknown".to_string(), "box in 0..1", 4),
        _ => (format!("{width} × {height} pixels"), "box in pixels", 1),
    };
    let count = regions.num_regions();
    let mut text =
        format!("{name}: {size}, {count} regions\n{:>3}  {:<24} {:>6}  {frame} (x0 y0 x1 y1)\n", "", "label", "score");
    for (i, normalised) in regions.boxes.iter().enumerate() {
        let mut what = label(&info.label_names, regions.labels[i]);
        if let Some(attributes) = &regions.attributes {
            what = format!("{} {what}", label(&info.attribute_names, attributes.labels[i]));
        }
        let [x0, y0, x1, y1] = to_pixels(normalised, width as f32, height as f32);
        let score = regions.scores[i];
        let _ = writeln!(
            text,
            "{:>3}  {what:<24} {score:>6.3}  {x0:>7.digits$} {y0:>7.digits$} {x1:>7.digits$} {y1:>7.digits$}",
            i + 1
        );
    }
    Ok(text)
}
