//! `lxmert-viz grounding`: the pointing game by type of phrase.

use crate::{Cli, is_png, output_folder};
use anyhow::{Result, bail, ensure};
use candle_core::Device;
use lxmert_extract::scenes::read_annotations;
use lxmert_viz::canvas::write_whole;
use lxmert_viz::dataset::{DataSet, Places, spread};
use lxmert_viz::gallery::progress_bar;
use lxmert_viz::scorer::Scorer;
use lxmert_viz::{entities, grounding};
use std::collections::HashSet;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct GroundingArgs {
    /// Flickr30k Entities: the folder that holds Sentences and Annotations [default: the true boxes of the scenes]
    #[arg(long, value_name = "DIR")]
    entities: Option<PathBuf>,
    /// At most this many captions, evenly spread [default: those of all test images]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    examples: Option<u32>,
}

pub fn run(cli: &Cli, args: &GroundingArgs, places: Places, device: &Device) -> Result<()> {
    let output = output_folder(cli, &places);
    ensure!(!is_png(&output), "--output {}: this command writes a table; name a folder", output.display());
    let scorer = Scorer::open(&places.checkpoint, device)?;
    let data = DataSet::open(places, cli.common.seed())?;
    let images = data.test_images();
    let cases = match (&args.entities, &data.places.scenes) {
        (Some(folder), _) => {
            let found = entities::read(folder, &images)?;
            println!(
                "{} of {} test images are annotated; phrases left out: {} without a box, {} that mean nothing visible",
                images.len() - found.missing,
                images.len(),
                found.without_box,
                found.not_visual
            );
            found.cases
        }
        (None, Some(folder)) => {
            grounding::scene_cases(&read_annotations(folder)?, &images.iter().copied().collect::<HashSet<_>>())
        }
        (None, None) => bail!("no true boxes: name the folder of Flickr30k Entities with --entities"),
    };
    let most = args.examples.map_or(cases.len(), |count| count as usize);
    let cases: Vec<grounding::Case> = spread(&cases, most).into_iter().cloned().collect();
    let bar = progress_bar(cli.common.show_progress(), cases.len(), "grounding");
    let found = grounding::measure(&scorer, &data.store, &cases, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    println!(
        "the region that a phrase's words point to, in {} captions; the share of phrases that it hits",
        cases.len()
    );
    print!("{}", found.by_kind());
    let path = output.join("grounding.csv");
    write_whole(&path, found.to_csv().as_bytes())?;
    println!("{}", path.display());
    Ok(())
}
