//! `lxmert-viz`: see `lxmert-viz --help`.

mod commands;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use image::RgbImage;
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::cli::{CommonArgs, catch_interrupts};
use lxmert_core::features::Regions;
use lxmert_core::model::Capture;
use lxmert_core::workspace::Workspace;
use lxmert_extract::choice::DetectorChoice;
use lxmert_extract::finder::Finder;
use lxmert_extract::images::DecodedImage;
use lxmert_viz::canvas::Canvas;
use lxmert_viz::dataset::{DataSet, Places, slug};
use lxmert_viz::gallery::{self, GalleryOptions, method_slug, verdict_line};
use lxmert_viz::pictures::{Explained, Which};
use lxmert_viz::relevancy::Method;
use lxmert_viz::scorer::{PairInput, Scorer};
use lxmert_viz::{curves, grounding, pair, photo};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Pictures of what a trained LXMERT attends to.
///
/// Without a subcommand: the pictures of the run on the generated scenes, into runs/scenes/plots.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    places: PlacesArgs,
    /// How many test pairs to explain
    #[arg(long, default_value_t = 4, value_name = "N")]
    pairs: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// Where things lie.
#[derive(Args, Clone)]
struct PlacesArgs {
    /// Use the run on Flickr30k whose images and results.csv lie in DIR
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    flickr30k: Option<PathBuf>,
    /// The run: its best/ checkpoint, metrics.jsonl and plots/ [default: runs/scenes]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    run: Option<PathBuf>,
    /// The checkpoint: a folder, a run folder, a weights file beside its config.json, or hf:owner/repo[@revision]
    /// [default: RUN/best]
    #[arg(long, global = true, value_name = "CHECKPOINT", help_heading = "Where things lie")]
    checkpoint: Option<PathBuf>,
    /// The feature store [default: data/features/scenes]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    features: Option<PathBuf>,
    /// The folder of the photos [default: data/scenes/images]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where things lie")]
    images: Option<PathBuf>,
    /// The caption file [default: data/scenes/results.csv]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where things lie")]
    captions: Option<PathBuf>,
    /// The split file [default: the caption file's own, or splits.json beside it]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where things lie")]
    splits: Option<PathBuf>,
    /// Where pictures go: a folder, or for a single picture a .png file [default: RUN/plots]
    #[arg(long, short, global = true, value_name = "PATH", help_heading = "Where things lie")]
    output: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// From a raw photo and a sentence to pictures: detector, model, plots
    Pair(PairArgs),
    /// One attention map as a table of colours
    Heatmap {
        #[command(flatten)]
        subject: SubjectArgs,
        #[command(flatten)]
        map: MapArgs,
        /// Which head, from 1 [default: the mean over the heads]
        #[arg(long, value_name = "N")]
        head: Option<usize>,
        /// Every layer and head of every direction, and the means
        #[arg(long, conflicts_with_all = ["head", "layer"])]
        all: bool,
    },
    /// The photo with its regions tinted by weight
    Overlay {
        #[command(flatten)]
        subject: SubjectArgs,
        /// The word that looks; "red:2" is the second "red" [default: the whole sentence]
        #[arg(long)]
        word: Option<String>,
        /// How regions are weighed
        #[arg(long, value_enum, default_value_t = Method::Attention, value_name = "METHOD")]
        by: Method,
    },
    /// What a match or an answer rests on, by several methods side by side
    Relevancy(commands::relevancy::RelevancyArgs),
    /// Whether the methods know what matters: remove what they call relevant, and see the match go
    Perturbation(commands::perturbation::PerturbationArgs),
    /// How often the region that a phrase points to is the one it names, by type of phrase
    Grounding(commands::grounding::GroundingArgs),
    /// All heads beside each other
    Heads {
        #[command(flatten)]
        subject: SubjectArgs,
        #[command(flatten)]
        map: MapArgs,
    },
    /// Test pairs with probabilities, right or wrong
    Grid,
    /// The training curves of the run
    Curves,
}

#[derive(Args)]
struct PairArgs {
    /// The photo
    #[arg(long, value_name = "PHOTO")]
    image: PathBuf,
    /// The sentence
    #[arg(long)]
    text: String,
    /// The word of the overlay; "red:2" is the second "red" [default: the one with the strongest link]
    #[arg(long)]
    word: Option<String>,
    #[command(flatten)]
    detector: DetectorArgs,
}

#[derive(Args)]
struct DetectorArgs {
    /// Which detector finds the regions [default: the one whose features the checkpoint was trained on]
    #[arg(long, value_name = "scenes|coco|visual-genome|DIR")]
    detector: Option<DetectorChoice>,
    /// The detector's weights: a file, or hf:owner/repo/file[@revision] [default: the detector's own]
    #[arg(long, value_name = "SOURCE")]
    weights: Option<WeightSource>,
    /// How many regions to find [default: as many as the checkpoint was trained on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=400))]
    regions: Option<u16>,
}

/// A photo, its regions and their names.
struct Found {
    name: String,
    photo: RgbImage,
    regions: Regions,
    label_names: Vec<String>,
    detector: String,
}

impl DetectorArgs {
    /// The regions of a photo for a model that takes `takes.0` numbers a region and was trained on `takes.1` regions.
    fn find(&self, cli: &Cli, path: &Path, takes: (usize, usize), device: &candle_core::Device) -> Result<Found> {
        let photo = photo::read(path)?;
        let count = self.regions.map_or(takes.1, usize::from);
        let (choice, weights, progress) = (self.detector.clone(), self.weights.as_ref(), cli.common.show_progress());
        let finder = Finder::open(&Workspace::locate()?, choice, weights, (takes.0, count), progress, device)?;
        let (width, height) = photo.dimensions();
        let regions = finder.regions(&DecodedImage { width, height, rgb: photo.as_raw().clone() })?;
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
        let (name, detector) = (name.into_owned(), finder.name().to_string());
        Ok(Found { name, photo, regions, label_names: finder.label_names().to_vec(), detector })
    }
}

#[derive(Args)]
struct SubjectArgs {
    /// The image's name in the feature store [default: the first test image]
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// The sentence [default: the image's first caption]
    #[arg(long)]
    text: Option<String>,
}

#[derive(Args)]
struct MapArgs {
    /// Which attention
    #[arg(long, value_enum, default_value_t = Which::LanguageToVision, value_name = "DIRECTION")]
    direction: Which,
    /// Which layer, from 1
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let interrupted = lxmert_core::cli::interrupted();
            // Our errors carry their cause in their own text; printing the chain would repeat it.
            eprintln!("error: {error}");
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let device = cli.common.start()?;
    catch_interrupts();
    let places = places(&cli.places)?;
    match &cli.command {
        None => bare(cli, places, &device),
        Some(Command::Relevancy(args)) => commands::relevancy::run(cli, args, places, &device),
        Some(Command::Perturbation(args)) => commands::perturbation::run(cli, args, places, &device),
        Some(Command::Grounding(args)) => commands::grounding::run(cli, args, places, &device),
        Some(Command::Pair(args)) => explain_photo(cli, args, &places, &device),
        Some(Command::Curves) => {
            let path = output_file(cli, &places, "curves.png");
            curves::draw(&places.run, &path)?;
            println!("{}", path.display());
            Ok(())
        }
        Some(Command::Grid) => {
            let scorer = Scorer::open(&places.checkpoint, &device)?;
            let output = output_folder(cli, &places);
            let data = DataSet::open(places, cli.common.seed())?;
            let options = GalleryOptions { output, pairs: 0, progress: cli.common.show_progress() };
            let found = gallery::prediction_grids(&data, &scorer, &options)?;
            print_accuracy(&found.accuracy);
            found.pictures.iter().for_each(|p| println!("{}  {}", p.path.display(), p.shows));
            Ok(())
        }
        Some(Command::Heatmap { subject, map, head, all }) => {
            with_subject(cli, subject, places, &device, |e, _, folder| {
                let name = slug(e.image);
                let wanted: Vec<MapChoice> = if *all { every_map(e)? } else { vec![(map.direction, map.layer, *head)] };
                let mut written = Vec::new();
                for (which, layer, head) in wanted {
                    let part = |what: &str, n: Option<usize>| n.map_or(String::new(), |n| format!("-{what}{n}"));
                    let file =
                        format!("heatmap-{name}-{}{}{}.png", which.slug(), part("layer", layer), part("head", head));
                    written.push((e.heatmap(which, layer, head)?.draw()?, folder.join(file)));
                }
                Ok(written)
            })
        }
        Some(Command::Heads { subject, map }) => with_subject(cli, subject, places, &device, |e, _, folder| {
            let file = format!("heads-{}-{}.png", slug(e.image), map.direction.slug());
            Ok(vec![(e.heads(map.direction, map.layer)?.draw()?, folder.join(file))])
        }),
        Some(Command::Overlay { subject, word, by }) => {
            with_subject(cli, subject, places, &device, |e, data, folder| {
                let photo = data.photo(e.image)?;
                let sheet = e.overlay(photo, *by, word.as_deref(), None)?.draw()?;
                let of = word.as_deref().map_or("sentence".into(), |word| slug(&word.replace(':', "-")));
                let file = format!("overlay-{}-{of}-{}.png", slug(e.image), method_slug(*by));
                Ok(vec![(sheet, folder.join(file))])
            })
        }
    }
}

fn places(args: &PlacesArgs) -> Result<Places> {
    let workspace = Workspace::locate()?;
    let mut places = match &args.flickr30k {
        Some(folder) => Places::flickr30k(&workspace, folder)?,
        None => Places::scenes(&workspace),
    };
    if let Some(run) = &args.run {
        places.run.clone_from(run);
        places.checkpoint = run.join("best");
        places.name = slug(&run.to_string_lossy());
    }
    if let Some(captions) = &args.captions {
        places.captions.clone_from(captions);
        // What belongs to the default captions does not belong to these.
        (places.splits, places.hard_negatives, places.scenes) = (None, None, None);
        if let Some(folder) = captions.parent() {
            places.splits = Some(folder.join("splits.json"));
            places.images = folder.to_path_buf();
        }
    }
    let choices = [
        (&args.checkpoint, &mut places.checkpoint),
        (&args.features, &mut places.features),
        (&args.images, &mut places.images),
    ];
    for (given, place) in choices {
        if let Some(given) = given {
            place.clone_from(given);
        }
    }
    if let Some(splits) = &args.splits {
        std::fs::metadata(splits).map_err(lxmert_core::Error::io(splits))?;
        places.splits = Some(splits.clone());
    }
    Ok(places)
}

fn output_folder(cli: &Cli, places: &Places) -> PathBuf {
    cli.places.output.clone().unwrap_or_else(|| places.run.join("plots"))
}

fn output_file(cli: &Cli, places: &Places, name: &str) -> PathBuf {
    let output = output_folder(cli, places);
    if is_png(&output) { output } else { output.join(name) }
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

fn bare(cli: &Cli, places: Places, device: &candle_core::Device) -> Result<()> {
    let started = std::time::Instant::now();
    let scorer = Scorer::open(&places.checkpoint, device)?;
    let output = output_folder(cli, &places);
    anyhow::ensure!(
        !is_png(&output),
        "--output {}: this command writes many pictures; name a folder",
        output.display()
    );
    let data = DataSet::open(places, cli.common.seed())?;
    let options = GalleryOptions { output: output.clone(), pairs: cli.pairs, progress: cli.common.show_progress() };
    let found = gallery::make(&data, &scorer, &options)?;
    for picture in &found.pictures {
        println!("{}\n    {}", picture.path.display(), picture.shows);
    }
    println!();
    print_accuracy(&found.accuracy);
    if let Some(measured) = &found.grounding {
        println!(
            "grounding: of {} held-out captions that name one object, the share whose strongest region is that object \
             (IoU ≥ {}):\n{measured}",
            measured.all.phrases,
            grounding::HIT_IOU
        );
    }
    let index = output.join("index.md");
    println!("{} pictures in {:.0} s; see {}", found.pictures.len(), started.elapsed().as_secs_f64(), index.display());
    Ok(())
}

fn print_accuracy(accuracy: &[(&str, usize, usize)]) {
    for (set, right, all) in accuracy {
        println!("{set} test pairs: accuracy {:.3} ({right} of {all})", *right as f64 / (*all).max(1) as f64);
    }
}

fn explain_photo(cli: &Cli, args: &PairArgs, places: &Places, device: &candle_core::Device) -> Result<()> {
    anyhow::ensure!(!args.text.trim().is_empty(), "--text is empty: nothing to match the photo with");
    let scorer = Scorer::open(&places.checkpoint, device)?;
    let takes = (scorer.config().visual_feat_dim, scorer.regions());
    let found = args.detector.find(cli, &args.image, takes, device)?;
    let Found { name, photo, regions, label_names, detector } = &found;
    let output =
        cli.places.output.clone().unwrap_or_else(|| places.run.join("plots").join(format!("photo-{}", slug(name))));
    anyhow::ensure!(
        !is_png(&output),
        "--output {}: this command writes several pictures; name a folder",
        output.display()
    );
    let report =
        pair::explain(&scorer, (name, photo, regions), label_names, &args.text, args.word.as_deref(), &output)?;
    println!("{name}, “{}”: {}", args.text, verdict_line(report.scored.probability()));
    println!("{} regions by the {detector} detector; the strongest word–region links:", regions.boxes.len());
    for link in &report.links {
        let [x0, y0, x1, y1] = link.box_xyxy_px.map(|v| v.round() as i64);
        println!("  {:.3}  {:<18} → {:<24} at ({x0}, {y0})–({x1}, {y1}) px", link.weight, link.word, link.region);
    }
    report.pictures.iter().for_each(|p| println!("{}  {}", p.path.display(), p.shows));
    Ok(())
}

/// The image that the arguments mean, and its regions.
fn subject_image(chosen: &SubjectArgs, data: &DataSet) -> Result<(String, Regions)> {
    let image = match &chosen.image {
        Some(image) => image.clone(),
        None => {
            data.test_images().first().context("no test image in the feature store; name one with --image")?.to_string()
        }
    };
    let regions = data.regions(&image)?;
    Ok((image, regions))
}

/// The image, its regions and the sentence that the arguments mean.
fn subject(chosen: &SubjectArgs, data: &DataSet) -> Result<(String, Regions, String)> {
    let (image, regions) = subject_image(chosen, data)?;
    let text = match &chosen.text {
        Some(text) => text.clone(),
        None => {
            let captions = data.captions_of(&image);
            captions
                .first()
                .with_context(|| format!("{image} has no caption; give a sentence with --text"))?
                .to_string()
        }
    };
    Ok((image, regions, text))
}

/// Scores the chosen image and sentence with its gradients, draws, and writes.
fn with_subject(
    cli: &Cli,
    chosen: &SubjectArgs,
    places: Places,
    device: &candle_core::Device,
    draw: impl FnOnce(&Explained, &DataSet, &Path) -> lxmert_viz::Result<Vec<(Canvas, PathBuf)>>,
) -> Result<()> {
    let scorer = Scorer::open(&places.checkpoint, device)?;
    let output = output_folder(cli, &places);
    let data = DataSet::open(places, cli.common.seed())?;
    let (image, regions, text) = subject(chosen, &data)?;
    let scored = scorer.score(&[PairInput { regions: &regions, text: &text }], Capture::Probes)?.remove(0);
    let explained = Explained::new(&image, &text, &scored, &regions, &data.store.info().label_names);
    println!("{image}, “{text}”: {}", verdict_line(scored.probability()));
    let mut pictures = draw(&explained, &data, if is_png(&output) { Path::new("") } else { &output })?;
    if is_png(&output) {
        anyhow::ensure!(pictures.len() == 1, "--output {}: several pictures; name a folder", output.display());
        pictures[0].1 = output;
    }
    for (sheet, path) in pictures {
        sheet.save(&path)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// An attention, its layer and its head, both from 1; `None` as in [`Explained::heatmap`].
type MapChoice = (Which, Option<usize>, Option<usize>);

fn every_map(e: &Explained) -> lxmert_viz::Result<Vec<MapChoice>> {
    let mut all = Vec::new();
    for which in Which::ALL {
        for layer in 1..=e.num_layers(which)? {
            all.push((which, Some(layer), None));
            all.extend((1..=e.num_heads(which, layer)?).map(|head| (which, Some(layer), Some(head))));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// clap would read a subcommand's argument as the global one of the same name, and panic where their types differ.
    #[test]
    fn no_subcommand_takes_the_name_of_a_global_argument() {
        let command = Cli::command();
        let global: Vec<_> =
            command.get_arguments().filter(|arg| arg.is_global_set()).map(|arg| arg.get_id()).collect();
        assert!(global.iter().any(|id| id.as_str() == "captions"));
        for sub in command.get_subcommands() {
            let clash = sub.get_arguments().find(|arg| global.contains(&arg.get_id()));
            assert!(clash.is_none(), "{}: {:?}", sub.get_name(), clash.map(clap::Arg::get_id));
        }
        command.debug_assert();
    }
}
