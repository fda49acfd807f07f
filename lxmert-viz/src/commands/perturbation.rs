//! `lxmert-viz perturbation`: curves and areas of the perturbation test.

use crate::{Cli, is_png, output_folder};
use anyhow::{Result, ensure};
use candle_core::Device;
use lxmert_train::data::pairs::PairKind;
use lxmert_viz::canvas::write_whole;
use lxmert_viz::dataset::{DataSet, Example, Places, spread};
use lxmert_viz::gallery::progress_bar;
use lxmert_viz::scorer::Scorer;
use lxmert_viz::{perturbation, perturbation_picture};

#[derive(clap::Args)]
pub struct PerturbationArgs {
    /// How many true captions of test images to explain and perturb
    #[arg(long, default_value_t = 400, value_name = "N")]
    examples: usize,
}

pub fn run(cli: &Cli, args: &PerturbationArgs, places: Places, device: &Device) -> Result<()> {
    let output = output_folder(cli, &places);
    ensure!(!is_png(&output), "--output {}: this command writes several files; name a folder", output.display());
    let scorer = Scorer::open(&places.checkpoint, device)?;
    let data = DataSet::open(places, cli.common.seed())?;
    let (pairs, _) = data.test_pairs();
    let matched: Vec<Example> = pairs.into_iter().filter(|example| example.kind == PairKind::Matched).collect();
    let examples: Vec<Example> = spread(&matched, args.examples).into_iter().cloned().collect();
    let bar = progress_bar(cli.common.show_progress(), examples.len(), "perturbing");
    let found =
        perturbation::measure(&data, &scorer, &examples, cli.common.seed(), |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    println!("perturbation of {} true captions; score: the share still called a match\n{found}", found.examples);
    let [picture, csv, json] = ["png", "csv", "json"].map(|end| output.join(format!("perturbation.{end}")));
    perturbation_picture::draw(&found, &data.places.name)?.save(&picture)?;
    write_whole(&csv, found.to_csv().as_bytes())?;
    write_whole(&json, format!("{:#}\n", found.to_json()).as_bytes())?;
    [picture, csv, json].iter().for_each(|path| println!("{}", path.display()));
    Ok(())
}
