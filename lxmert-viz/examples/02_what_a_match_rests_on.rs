//! The evidence for and against a match: a true sentence and a false one, attention and relevancy side by side.
//!
//! Attention says where a layer reads; relevancy (Chefer et al. 2021) says what the score depends on.
//! Run the pipeline first, then `cargo run -p lxmert-viz --example 02_what_a_match_rests_on`.

use candle_core::Device;
use lxmert_core::model::Capture;
use lxmert_train::data::pairs::PairKind;
use lxmert_viz::dataset::DataSet;
use lxmert_viz::explain::maps::Stance;
use lxmert_viz::explain::methods::Method;
use lxmert_viz::explain::relevancy::relevancy;
use lxmert_viz::explain::scorer::{PairInput, Scorer};
use lxmert_viz::figures::FigureArgs;
use lxmert_viz::pictures::explained::Explained;
use lxmert_viz::places::Places;

fn main() -> anyhow::Result<()> {
    let places = Places::of_run(None)?;
    let output = places.plots().join("example-02");
    let scorer = Scorer::open(&places.checkpoint, &Device::Cpu)?;
    let data = DataSet::open(places, scorer.regions())?;

    // %% A true caption and its minimally changed false variant
    // The hard test set consists of pairs: a caption, then the same with one word or relation changed.
    let (_, hard) = data.test_pairs()?;
    let [truth, lie] =
        [PairKind::Matched, PairKind::Hard].map(|kind| hard.iter().find(|pair| pair.kind == kind).cloned());
    let (Some(truth), Some(lie)) = (truth, lie) else { anyhow::bail!("this data set has no hard test pairs") };
    let regions = data.regions(&truth.image)?;

    for (name, example) in [("true", &truth), ("false", &lie)] {
        // %% Score it, with the gradient of the match logit at every attention map
        let pair = PairInput { regions: &regions, text: &example.text };
        let scored = scorer.score(&[pair], Capture::Probes)?.remove(0);
        println!("{name}: “{}”: P(match) = {:.3}", example.text, scored.probability());

        // %% Which words are evidence for it or, if the model says no, against it?
        // The row of [CLS] in the words × words relevancy, without [CLS] itself.
        let stance = Stance::of(scored.probability());
        let found = relevancy(&scored.maps()?.taking(stance))?;
        println!("  {} the match:", stance.word());
        let row = found.words_to_words.row(0);
        let most = row[1..].iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        for (token, value) in scored.encoding.tokens.iter().zip(row).skip(1) {
            println!("  {token:<12} {}", "▇".repeat((value / most * 30.0).round().max(0.0) as usize));
        }

        // %% And which regions?
        let explained =
            Explained::new(&example.image, &example.text, &scored, &regions, &data.store.info().label_names);
        for method in [Method::Attention, Method::Relevancy] {
            let weights = explained.region_weights(method, stance, None)?;
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
            let top: Vec<&str> = order.iter().take(3).map(|i| explained.region_names[*i].as_str()).collect();
            println!("  most by {:<20} {}", format!("{}:", method.name()), top.join(", "));
            let sheet = explained.overlay(data.photo(&example.image)?, method, None, None)?.draw()?;
            for file in FigureArgs::default().write(&sheet, &output.join(format!("{name}-{}", method.slug())))? {
                println!("  {}", file.display());
            }
        }
    }
    Ok(())
}
