//! `lxmert-extract`: arguments, and what to print.

use clap::{Args, Parser, Subcommand};
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::cli::{self, CommonArgs};
use lxmert_core::features::{FeatureStore, StoreDtype, StoreInfo, StoreWriter};
use lxmert_core::ops::Precision;
use lxmert_core::workspace::Workspace;
use lxmert_extract::choice::{self, DetectorChoice};
use lxmert_extract::detector::training::cli::{self as training_cli, TrainDetectorArgs};
use lxmert_extract::import::pt::import_pt;
use lxmert_extract::import::tsv::{TsvOptions, import_tsv};
use lxmert_extract::inputs::{find_captioned, find_images};
use lxmert_extract::pipeline::{DetectorRegions, ExtractSummary, PipelineOptions, extract};
use lxmert_extract::regions::Selection;
use lxmert_extract::scenes::cli::{self as scenes_cli, ScenesArgs};
use lxmert_extract::{failures, inspect, scenes};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Photos to regions: finds objects in images and stores a feature, box and label for each.
///
/// Without arguments: draws data/scenes if it is not there and extracts it into data/features/scenes.
/// Exit code: 0 all well, 1 some images or the job failed, 2 wrong arguments, 130 after Ctrl-C.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    extract: ExtractArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum Command {
    Scenes(ScenesArgs),
    /// Show what a feature store holds
    Inspect {
        /// Folder of the store
        store: PathBuf,
        /// Show this image's regions
        #[arg(long, value_name = "NAME")]
        image: Option<String>,
    },
    /// Train a small detector on generated scenes
    TrainDetector(TrainDetectorArgs),
    /// Make a feature store of region features from another program
    #[command(subcommand)]
    Import(Import),
}

#[derive(Subcommand)]
enum Import {
    /// Bottom-up attention's TSV, as LXMERT reads it
    BottomUp {
        /// The TSV
        tsv: PathBuf,
        /// Folder of the store
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Numbers of the features
        #[arg(long, value_enum, default_value_t = StoreDtype::F32)]
        dtype: StoreDtype,
        /// Names of the objects, one a line, synonyms after a comma left out [default: their numbers]
        #[arg(long, value_name = "FILE")]
        objects: Option<PathBuf>,
        /// Names of the attributes, likewise [default: their numbers]
        #[arg(long, value_name = "FILE")]
        attributes: Option<PathBuf>,
    },
    /// The student project's folder of .pt files, one an image
    Student {
        /// The folder
        folder: PathBuf,
        /// Folder of the store
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Numbers of the features
        #[arg(long, value_enum, default_value_t = StoreDtype::F32)]
        dtype: StoreDtype,
    },
}

#[derive(Args)]
struct ExtractArgs {
    /// Folder, list file or caption file of the images, or a single image
    #[arg(long, value_name = "PATH", conflicts_with = "flickr30k")]
    images: Option<PathBuf>,
    /// Only the images that this caption file names
    #[arg(long, value_name = "FILE", conflicts_with = "flickr30k")]
    captions: Option<PathBuf>,
    /// Folder with Flickr30k's results.csv and images, extracted with the coco detector
    #[arg(long, value_name = "DIR")]
    flickr30k: Option<PathBuf>,
    /// Folder of the store [default: data/features/<name of the images' folder>]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// scenes, coco, or a folder with config.json and model.safetensors [default: scenes for the bare command, else coco]
    #[arg(long)]
    detector: Option<DetectorChoice>,
    /// Weights in place of the detector's own: a safetensors or .pth file, or hf:owner/repo/file[@revision]
    #[arg(long, value_name = "FILE|hf:…")]
    weights: Option<WeightSource>,
    /// Regions an image [default: 12 for the bare command, else 36]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    regions: Option<u16>,
    /// Which regions
    #[arg(long, value_enum, default_value_t = Selection::Detections)]
    select: Selection,
    /// Numbers of the features
    #[arg(long, value_enum, default_value_t = StoreDtype::F32)]
    dtype: StoreDtype,
    /// Round weights and activations to bf16 in the detector's products: features within 2 % of the f32 ones, in two thirds
    /// of the time where the CPU has AVX512-BF16
    #[arg(long, default_value_t = Precision::F32, value_name = "f32|bf16")]
    precision: Precision,
    /// Threads that decode images ahead of the network
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    decoders: u16,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            let interrupted = error.chain().any(|cause| {
                matches!(cause.downcast_ref(), Some(lxmert_core::Error::Interrupted))
                    || matches!(
                        cause.downcast_ref(),
                        Some(lxmert_extract::Error::Core(lxmert_core::Error::Interrupted))
                    )
            });
            // Our errors carry their cause in their own text; printing the chain would repeat it.
            eprintln!("error: {error}");
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let device = cli.common.start()?;
    cli::catch_interrupts();
    match cli.command {
        None => return run_extract(cli.extract, &cli.common, &device),
        Some(Command::Scenes(args)) => scenes_cli::run(&args, cli.common.seed(), cli.common.show_progress())?,
        Some(Command::TrainDetector(args)) => {
            training_cli::run(&args, cli.common.seed(), &device, cli.common.show_progress())?;
        }
        Some(Command::Inspect { store, image }) => {
            let store = FeatureStore::open(store)?;
            match image {
                Some(name) => print!("{}", inspect::describe_image(&store, &name)?),
                None => print!("{}", inspect::describe_store(&store)?),
            }
        }
        Some(Command::Import(Import::BottomUp { tsv, output, dtype, objects, attributes })) => {
            let (object_names, attribute_names) = (read_names(objects)?, read_names(attributes)?);
            let options = TsvOptions { dtype, object_names, attribute_names };
            let imported = import_tsv(&tsv, &output, &options, cli.common.show_progress())?;
            return Ok(report("imported", &imported));
        }
        Some(Command::Import(Import::Student { folder, output, dtype })) => {
            return Ok(report("imported", &import_pt(&folder, &output, dtype, cli.common.show_progress())?));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read_names(path: Option<PathBuf>) -> anyhow::Result<Vec<String>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(&path).map_err(lxmert_core::Error::io(&path))?;
    Ok(text.lines().map(|line| line.split(',').next().unwrap_or(line).trim().to_string()).collect())
}

fn run_extract(args: ExtractArgs, common: &CommonArgs, device: &candle_core::Device) -> anyhow::Result<ExitCode> {
    let bare = args.images.is_none() && args.captions.is_none() && args.flickr30k.is_none();
    let (source, folder) = match (&args.flickr30k, &args.captions, &args.images) {
        (Some(flickr), ..) => (flickr.clone(), None),
        (None, Some(captions), images) => (captions.clone(), images.clone()),
        (None, None, Some(images)) => (images.clone(), None),
        (None, None, None) => {
            let scenes = Workspace::locate()?.data("scenes");
            if !scenes.exists() {
                let config = scenes::ScenesConfig { seed: common.seed(), ..Default::default() };
                let summary = scenes::generate(&scenes, &config, false, common.show_progress())?;
                println!("{}: {summary}", scenes.display());
            } else if scenes.join("scenes.json").is_file() {
                let added = scenes::tasks::complete(&scenes)?;
                if !added.is_empty() {
                    println!("{}: added {}", scenes.display(), added.join(", "));
                }
            }
            (scenes.join("images"), None)
        }
    };
    let images = match &args.flickr30k {
        Some(folder) => find_captioned(folder)?,
        None => find_images(&source, folder.as_deref())?,
    };
    let output = match args.output {
        Some(output) => output,
        None if bare => Workspace::locate()?.features("scenes"),
        None if args.flickr30k.is_some() => Workspace::locate()?.features("flickr30k"),
        None => Workspace::locate()?.features(&store_name(folder.as_deref().unwrap_or(&source))),
    };
    let choice = args.detector.unwrap_or(if bare { DetectorChoice::Scenes } else { DetectorChoice::Coco });
    let count = usize::from(args.regions.unwrap_or(if bare { 12 } else { 36 }));
    cli::warn_of_slow(args.precision, device);
    let loaded = choice::load(&choice, args.weights.as_ref(), args.precision, device, common.show_progress())?;
    let config = loaded.detector.config();
    let select = match args.select {
        Selection::Detections => "detections",
        Selection::Student => "student",
    };
    let mut settings: BTreeMap<String, String> =
        [("select".into(), select.into()), ("weights sha256".into(), loaded.weights_sha256)].into();
    if args.precision != Precision::F32 {
        settings.insert("precision".into(), args.precision.to_string());
    }
    let attribute = config.attributes.first();
    settings.extend(attribute.map(|attribute| ("attribute".into(), attribute.name.clone())));
    let info = StoreInfo {
        detector: loaded.name,
        settings,
        regions: count,
        feature_dim: config.roi_heads.representation_size,
        dtype: args.dtype,
        label_names: config.label_names.clone(),
        attribute_names: attribute.map_or_else(Vec::new, |attribute| attribute.classes.clone()),
    };
    if bare && lacks_only_attributes(&output, &info) {
        println!("{}: made by an older version, without attributes; it is extracted anew", output.display());
        std::fs::remove_dir_all(&output).map_err(lxmert_core::Error::io(&output))?;
    }
    let store = StoreWriter::open(&output, info)?;
    let extractor = DetectorRegions { detector: loaded.detector, count, selection: args.select };
    let options = PipelineOptions { decoders: usize::from(args.decoders), progress: common.show_progress() };
    let summary = extract(&images, &extractor, store, &options)?;
    Ok(report("extracted", &summary))
}

/// Whether the folder holds a store that differs from `wanted` in its missing attributes alone.
fn lacks_only_attributes(folder: &Path, wanted: &StoreInfo) -> bool {
    let Ok(store) = FeatureStore::open(folder) else { return false };
    let mut there = store.info().clone();
    if there.has_attributes() || !wanted.has_attributes() {
        return false;
    }
    there.attribute_names.clone_from(&wanted.attribute_names);
    there.settings.extend(wanted.settings.get("attribute").map(|name| ("attribute".into(), name.clone())));
    there.differences(wanted).is_empty()
}

/// Prints what a job did; gives its exit code.
fn report(done: &str, summary: &ExtractSummary) -> ExitCode {
    let (folder, seconds) = (&summary.store.folder, summary.time.as_secs_f64());
    println!(
        "{}: {} of {} images {done} in {seconds:.1} s ({:.1} images/s), {} there before, {} failed; {} images, {} in all",
        folder.display(),
        summary.extracted,
        summary.asked,
        summary.extracted as f64 / seconds.max(1e-9),
        summary.already,
        summary.failures.len(),
        summary.store.images,
        indicatif::HumanBytes(summary.store.bytes),
    );
    if !summary.failures.is_empty() {
        eprintln!("{} images failed: see {}", summary.failures.len(), failures::path_in(folder).display());
    }
    if summary.interrupted {
        eprintln!("stopped; run the same command again to go on");
        ExitCode::from(130)
    } else if summary.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A store is named after the images' folder; a folder that is only called "images" after its parent.
fn store_name(source: &Path) -> String {
    let source = source.canonicalize().unwrap_or_else(|_| source.to_path_buf());
    let name = |path: &Path| path.file_stem().map(|name| name.to_string_lossy().into_owned());
    match name(&source) {
        Some(own) if own.eq_ignore_ascii_case("images") => source.parent().and_then(name).unwrap_or(own),
        Some(own) => own,
        None => "images".into(),
    }
}
