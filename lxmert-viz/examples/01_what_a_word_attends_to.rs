//! What a word attends to: one caption, one scene, the words' attention over the regions.
//!
//! Run the pipeline first (`cargo run -p lxmert-extract`, then `cargo run -p lxmert-train`), then
//! `cargo run -p lxmert-viz --example 01_what_a_word_attends_to`.

use candle_core::Device;
use lxmert_core::model::Capture;
use lxmert_viz::dataset::DataSet;
use lxmert_viz::explain::maps::Direction;
use lxmert_viz::explain::methods::Method;
use lxmert_viz::explain::scorer::{PairInput, Scorer};
use lxmert_viz::figures::FigureArgs;
use lxmert_viz::pictures::explained::Explained;
use lxmert_viz::places::Places;

fn main() -> anyhow::Result<()> {
    // %% Open the trained model and the data set
    // A checkpoint is a folder in the hub's layout; a feature store holds each image's regions. The run names both.
    let places = Places::of_run(None)?;
    let output = places.plots().join("example-01");
    let scorer = Scorer::open(&places.checkpoint, &Device::Cpu)?;
    let data = DataSet::open(places, scorer.regions())?;

    // %% Take a held-out image and one of its captions
    let image = data.first_image()?;
    let text = data.captions_of(&image)[0].to_string();
    let regions = data.regions(&image)?;
    println!("{image}: “{text}”, {} regions", regions.boxes.len());

    // %% Score the pair and keep the attention maps
    let scored = scorer.score(&[PairInput { regions: &regions, text: &text }], Capture::Maps)?.remove(0);
    println!("P(match) = {:.3}; the model reads {:?}", scored.probability(), scored.encoding.tokens);

    // %% One map, as numbers
    // Rows are word pieces, columns are regions, and every row sums to 1. Look at the nouns and the colours: their
    // largest weight should be on the region that they name.
    let explained = Explained::new(&image, &text, &scored, &regions, &data.store.info().label_names);
    let map = Method::Attention.words_to_regions(scored.maps()?)?;
    for (piece, token) in scored.encoding.tokens.iter().enumerate() {
        let row = map.row(piece);
        let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
        println!("  {token:<12} looks most at {:<20} weight {:.2}", explained.region_names[best], row[best]);
    }

    // %% The same map as a picture, and every head separately
    // Heads differ: some follow the noun, some spread out, some always look at the same place.
    for (sheet, name) in [
        (explained.heatmap(Direction::LanguageToVision, None, None)?.draw()?, "heatmap"),
        (explained.heads(Direction::LanguageToVision, None)?.draw()?, "heads"),
        (explained.overlay(data.photo(&image)?, Method::Attention, None, None)?.draw()?, "overlay"),
    ] {
        for file in FigureArgs::default().write(&sheet, &output.join(name))? {
            println!("{}", file.display());
        }
    }
    Ok(())
}
