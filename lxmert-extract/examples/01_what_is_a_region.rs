//! What a region is: one picture goes through the scenes detector, from boxes that might contain something to the
//! regions that stand out, at most a dozen, with a label, a score, attributes, a box, and the feature that the transformer reads.
//!
//! `cargo run -p lxmert-extract --example 01_what_is_a_region [IMAGE]`; without an image it uses the first of
//! data/scenes, or draws it in memory if data/scenes does not exist yet.

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage, imageops};
use lxmert_core::boxes::{BoxXyxy, to_pixels};
use lxmert_core::ops::Precision;
use lxmert_core::workspace::Workspace;
use lxmert_extract::choice::{self, DetectorChoice};
use lxmert_extract::detector::selection::RegionCount;
use lxmert_extract::images::{DecodedImage, decode_file};
use lxmert_extract::regions::Selection;
use lxmert_extract::regions::detections::select;
use lxmert_extract::scenes::{Scene, ScenesConfig, draw};
use std::path::PathBuf;

const REGIONS: RegionCount = RegionCount { min: 1, max: 12 };

/// Colours that colour-blind people can distinguish too (Okabe & Ito 2008); region i's box has colour i.
const COLOURS: [(&str, [u8; 3]); 6] = [
    ("orange", [230, 159, 0]),
    ("sky", [86, 180, 233]),
    ("green", [0, 158, 115]),
    ("yellow", [240, 228, 66]),
    ("blue", [0, 114, 178]),
    ("purple", [204, 121, 167]),
];

fn main() -> anyhow::Result<()> {
    // %% A detector and a picture
    // The detector is a Faster R-CNN with 1.3 million parameters that ships with the project.
    let device = Device::Cpu;
    let detector = choice::load(&DetectorChoice::Scenes, None, Precision::F32, false, &device, false)?.detector;
    let config = detector.config();
    let first_scene = Workspace::locate().data("scenes/images/00000.png");
    let path = std::env::args().nth(1).map(PathBuf::from).or_else(|| first_scene.is_file().then_some(first_scene));
    let picture = match &path {
        Some(path) => decode_file(path)?,
        None => DecodedImage::from(draw::draw(&Scene::generate(&ScenesConfig::default(), 0))),
    };
    let shown = path.map_or_else(|| "a scene drawn in memory".into(), |path| path.display().to_string());
    println!("{shown}: {} × {} pixels", picture.width, picture.height);

    // %% First the network proposes boxes
    // A proposal is only a box that might contain something. Look at how many there are: most show the same object
    // again, or background.
    let analysis = detector.analyse(detector.input(&picture)?)?;
    let proposals = analysis.proposals.boxes.len();
    let background = (0..proposals).filter(|&i| analysis.probabilities(i)[0] > 0.5).count();
    println!("\n{proposals} proposals, {background} of them more likely background than anything else");

    // %% Then the best become regions
    // A proposal becomes a region if its most probable class scores above the detector's threshold and no better one
    // covers its place. If more were asked for, weaker ones and then repeats would follow. The attributes are predicted
    // from the feature alone, so the feature encodes how the object looks.
    let regions = select(&detector, &analysis, REGIONS, Selection::Detections)?;
    let count = regions.boxes.len();
    let features = Tensor::from_slice(&regions.features, (count, regions.feature_dim), &device)?;
    let logits = detector.network().roi_heads.predict(&features)?.attribute_logits;
    let mut attributes = vec![String::new(); count];
    for (attribute, logits) in config.attributes.iter().zip(&logits) {
        // [regions, classes] → the likeliest class of each region
        for (words, class) in attributes.iter_mut().zip(logits.argmax(1)?.to_vec1::<u32>()?) {
            *words += &format!("{} ", attribute.classes[class as usize]);
        }
    }
    println!("\n {:<7} {:<9} {:>5}  {:<22} pixels x0 y0 x1 y1", "drawn", "label", "score", "attributes");
    let (width, height) = (picture.width as f32, picture.height as f32);
    let boxes_px: Vec<BoxXyxy> = regions.boxes.iter().map(|b| to_pixels(b, width, height)).collect();
    for (i, [x0, y0, x1, y1]) in boxes_px.iter().enumerate() {
        let (label, score) = (&config.label_names[regions.labels[i] as usize], regions.scores[i]);
        let drawn = COLOURS.get(i).map_or("", |colour| colour.0);
        print!(" {drawn:<7} {label:<9} {score:>5.2}  {:<22} ", attributes[i]);
        println!("{x0:>5.0} {y0:>5.0} {x1:>5.0} {y1:>5.0}");
    }

    // %% A region is a vector
    // The cosine between features. Look for pairs near 1: boxes on the same object, or similar objects.
    let lengths = features.sqr()?.sum_keepdim(1)?.sqrt()?; // [regions, 1]
    let unit = features.broadcast_div(&lengths)?;
    let cosines = unit.matmul(&unit.t()?)?.to_vec2::<f32>()?; // [regions, regions]
    println!("\n{} numbers per region; cosines between the first six:", regions.feature_dim);
    for (i, row) in cosines.iter().enumerate().take(6) {
        print!(" {:<9}", config.label_names[regions.labels[i] as usize]);
        row.iter().take(6).for_each(|cosine| print!(" {cosine:>5.2}"));
        println!();
    }

    // %% The picture with its six best regions
    // Enlarged, because a scene is tiny.
    let scale = (640 / picture.width.max(1)).max(1);
    let Some(plain) = RgbImage::from_raw(picture.width, picture.height, picture.rgb) else { return Ok(()) };
    let (w, h) = (plain.width() * scale, plain.height() * scale);
    let mut canvas = imageops::resize(&plain, w, h, imageops::FilterType::Nearest);
    for (b, (_, colour)) in boxes_px.iter().zip(COLOURS) {
        frame(&mut canvas, b.map(|v| v * scale as f32), Rgb(colour));
    }
    let output = std::env::temp_dir().join("what-is-a-region.png");
    canvas.save(&output)?;
    println!("\n{}", output.display());
    Ok(())
}

/// Draws the outline of a box, three pixels thick, inwards.
fn frame(canvas: &mut RgbImage, [x0, y0, x1, y1]: BoxXyxy, colour: Rgb<u8>) {
    const THICKNESS: u32 = 3;
    // A cast from float saturates at u32's range, so no pixel outside the canvas is accessed.
    let (x0, y0) = (x0 as u32, y0 as u32);
    let (x1, y1) = ((x1 as u32).min(canvas.width()), (y1 as u32).min(canvas.height()));
    for y in y0..y1 {
        for x in x0..x1 {
            if x < x0 + THICKNESS || y < y0 + THICKNESS || x + THICKNESS >= x1 || y + THICKNESS >= y1 {
                canvas.put_pixel(x, y, colour);
            }
        }
    }
}
