//! What a pair is (matched, mismatched, hard), and why splits are by image.
//!
//! Run `cargo run -p lxmert-extract` first, then `cargo run -p lxmert-train --example 02_what_a_pair_is`.

use lxmert_core::text::WordPiece;
use lxmert_core::workspace::Workspace;
use lxmert_train::data::paths::DataPaths;
use lxmert_train::data::splits::Split;
use lxmert_train::data::{Dataset, LoadOptions};
use std::collections::HashSet;

fn main() -> anyhow::Result<()> {
    let workspace = Workspace::locate();

    // %% Captions, splits and features of the scenes
    let options = LoadOptions {
        max_length: 50,
        regions: None,
        seed: 0,
        allow_missing_images: false,
        needed: Split::ALL.to_vec(),
    };
    let dataset = Dataset::load(&DataPaths::scenes(&workspace)?, &WordPiece::bundled()?, &options)?;
    let train = dataset.pairs(Split::Train);
    println!("{} training captions, at most {} regions per image", train.len(), dataset.regions());

    // %% An epoch: half of its pairs are mismatched, half of those by only one word
    let first = train.epoch(0, 0, 0.5);
    for pair in first.iter().take(6) {
        println!("  {:?}: {} with “{}”", pair.kind, dataset.image_name(pair), dataset.sentence(pair));
    }
    let matched = first.iter().filter(|pair| pair.matched()).count();
    println!("{} pairs, {:.1} % matched", first.len(), 100.0 * matched as f64 / first.len() as f64);

    // %% The next epoch draws new mismatches; validation pairs never change
    let second = train.epoch(0, 1, 0.5);
    let seen: HashSet<_> = first.iter().filter(|p| !p.matched()).map(|p| (p.image, p.caption)).collect();
    let again = second.iter().filter(|p| !p.matched() && seen.contains(&(p.image, p.caption))).count();
    println!("of the second epoch's mismatches, {again} were in the first");
    let validation = dataset.pairs(Split::Val);
    println!("validation pairs drawn twice are equal: {}", validation.fixed() == validation.fixed());

    // %% No image is in two splits. (The student project's validation images were nearly all in its training set.)
    let images = |split| dataset.pairs(split).fixed().iter().map(|p| p.image).collect::<HashSet<_>>();
    println!("images in both train and test: {}", images(Split::Train).intersection(&images(Split::Test)).count());
    Ok(())
}
