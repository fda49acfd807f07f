//! How a match score arises: one image's regions, two sentences, and a number for each.
//!
//! Run the bare pipeline first (`cargo run -p lxmert-extract`, `cargo run -p lxmert-train`), then
//! `cargo run -p lxmert-train --example 01_how_a_match_score_arises`.

use candle_core::{Device, IndexOp};
use lxmert_core::model::{Capture, Pass};
use lxmert_core::pretrained::Pretrained;
use lxmert_core::workspace::Workspace;
use lxmert_train::data::pairs::{Pair, PairKind};
use lxmert_train::data::paths::DataPaths;
use lxmert_train::data::splits::Split;
use lxmert_train::data::{Dataset, LoadOptions};
use lxmert_train::metrics::sigmoid;

fn main() -> anyhow::Result<()> {
    let workspace = Workspace::locate()?;
    let device = Device::Cpu;

    // %% A trained model and the data it was trained on
    let checkpoint = Pretrained::open(workspace.run("scenes"))?;
    let model = checkpoint.matching(&device)?;
    let options = LoadOptions {
        max_length: checkpoint.preprocessing.max_length,
        regions: Some(checkpoint.preprocessing.regions),
        seed: 0,
        allow_missing_images: false,
    };
    let dataset = Dataset::load(&DataPaths::scenes(&workspace)?, &checkpoint.text, &options)?;

    // %% One test image, its caption, and the caption with one word changed
    let hard = dataset.pairs(Split::Test).hard();
    let pairs: Vec<Pair> = hard.into_iter().take(2).collect();
    println!("image {}", dataset.image_name(&pairs[0]));
    for pair in &pairs {
        let truth = if pair.kind == PairKind::Matched { "true " } else { "false" };
        println!("  {truth}  {}", dataset.sentence(pair));
    }

    // %% The inputs: word pieces, and per region a feature vector with a box
    let inputs = dataset.read(&pairs)?.inputs(&device)?;
    println!(
        "input_ids {:?}, visual_feats {:?}, visual_boxes {:?}",
        inputs.input_ids.dims(),
        inputs.visual_feats.dims(),
        inputs.visual_boxes.dims()
    );

    // %% The outputs: [CLS], pooled by tanh, passes through the matching head
    let output = model.forward(&inputs, &Pass::capture(Capture::Maps))?;
    println!("pooled {:?}", output.trunk.pooled.dims());
    for (pair, logit) in pairs.iter().zip(output.logits.to_vec1::<f32>()?) {
        println!("  logit {logit:>7.3}, probability {:.3}  {}", sigmoid(logit), dataset.sentence(pair));
    }

    // %% Where the words look: the most attended region of each word in the last cross layer
    let Some(last) = output.trunk.attentions.as_ref().and_then(|maps| maps.cross.last()) else { return Ok(()) };
    let map = last.language_to_vision.probabilities.i(0)?.mean(0)?.to_vec2::<f32>()?;
    let regions = dataset.store.regions(dataset.store_index[pairs[0].image])?;
    let names = &dataset.store.info().label_names;
    for (id, row) in dataset.tokens(&pairs[0]).iter().zip(&map) {
        let Some((region, weight)) = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) else { continue };
        let label = regions.labels.get(region).and_then(|&label| names.get(label as usize)).map_or("?", String::as_str);
        println!(
            "  {:<10} → region {:>2} ({label}), {:.0} %",
            checkpoint.text.vocabulary()[*id as usize],
            region + 1,
            100.0 * weight
        );
    }
    Ok(())
}
