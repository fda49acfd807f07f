//! What a store contains: reads the one that `lxmert-extract` without arguments writes, or one given as argument.
//!
//! `cargo run -p lxmert-extract --example 02_reading_a_store [STORE]`

use lxmert_core::boxes::to_pixels;
use lxmert_core::features::FeatureStore;
use lxmert_core::workspace::Workspace;

fn main() -> anyhow::Result<()> {
    // %% Open the store: nothing is read but its index
    let folder = match std::env::args().nth(1) {
        Some(folder) => folder.into(),
        None => Workspace::locate().features("scenes"),
    };
    let store = FeatureStore::open(folder)?;
    println!("{} images by the detector '{}'", store.len(), store.info().detector);

    // %% One image: each region has a label, a score, a box, and a feature vector
    let Some(name) = store.names().next() else { return Ok(()) };
    let regions = store.regions(0)?;
    println!("\n{name}, {} × {} pixels", regions.image_width, regions.image_height);
    for (i, normalised) in regions.boxes.iter().enumerate().take(5) {
        let label = store.info().label_names.get(regions.labels[i] as usize).map_or("?", String::as_str);
        let px = to_pixels(normalised, regions.image_width as f32, regions.image_height as f32).map(f32::round);
        let feature = &regions.features[i * regions.feature_dim..][..4.min(regions.feature_dim)];
        println!("  {label} {:.2} at {px:?}: {feature:.2?} … ({} numbers)", regions.scores[i], regions.feature_dim);
    }

    // %% A batch as the transformer takes it: the mask marks the real regions
    let (mut features, mut boxes, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    let images: Vec<usize> = (0..store.len().min(4)).collect();
    store.read_batch(&images, &mut features, &mut boxes, &mut mask)?;
    let real = mask.iter().sum::<f32>();
    println!("\n{} images: {} feature values, {real} real regions of {}", images.len(), features.len(), mask.len());
    Ok(())
}
