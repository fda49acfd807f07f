//! `lxmert-train`: arguments in, a run folder or a table of measures out.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use lxmert_core::cli::{CommonArgs, catch_interrupts};
use lxmert_core::features::FeatureStore;
use lxmert_core::workspace::Workspace;
use lxmert_train::answering::{self, AnswerCheckpoint};
use lxmert_train::ask::{self, AskArgs};
use lxmert_train::config::{NamedRecipe, Recipe, RecipeArgs};
use lxmert_train::data::paths::{Data, DataPaths, ExamplePaths};
use lxmert_train::data::question_set::QuestionSet;
use lxmert_train::data::{Dataset, LoadOptions};
use lxmert_train::log::jsonl::TestRecord;
use lxmert_train::log::progress;
use lxmert_train::measures::Measures;
use lxmert_train::run_folder::{Checkpoint, Report, RunFolder};
use lxmert_train::tasks::statements::StatementSet;
use lxmert_train::tasks::{TaskKind, matching, questions, statements};
use lxmert_train::trainer::{self, Job, Outcome, Start};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Trains LXMERT to tell whether a sentence describes an image, to answer questions, or to judge statements.
///
/// Without arguments it trains on the generated scenes (data/scenes, data/features/scenes) and
/// writes runs/scenes; an unfinished run of the same settings goes on where it stopped.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a checkpoint on a data set's test split
    Evaluate(EvaluateArgs),
    Ask(AskArgs),
}

#[derive(Args)]
struct DataArgs {
    /// `scenes`, or a folder with a caption file
    #[arg(long, value_name = "scenes|DIR", conflicts_with_all = ["captions", "flickr30k"], help_heading = "Data")]
    data: Option<String>,
    /// Flickr30k as Kaggle lays it out; features in data/features/flickr30k, run in runs/flickr30k
    #[arg(long, value_name = "DIR", conflicts_with = "captions", help_heading = "Data")]
    flickr30k: Option<PathBuf>,
    /// Caption file: Flickr30k results.csv, Flickr8k captions.txt, a token file, or Karpathy's JSON
    #[arg(long, value_name = "FILE", requires = "features", help_heading = "Data")]
    captions: Option<PathBuf>,
    /// Feature store that lxmert-extract wrote
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    features: Option<PathBuf>,
    /// Split of the images: {"train": [names], "val": …, "test": …} or Karpathy's JSON
    /// [default: splits.json beside the captions, else 80/10/10 by the seed]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    splits: Option<PathBuf>,
    /// JSON of questions or statements to train on; may be given several times [default: the scenes']
    #[arg(long, value_name = "FILE", requires_all = ["valid_file", "features"], help_heading = "Data")]
    train_file: Vec<PathBuf>,
    /// JSON that the best epoch is chosen on; may be given several times
    #[arg(long, value_name = "FILE", requires = "train_file", help_heading = "Data")]
    valid_file: Vec<PathBuf>,
    /// JSON that is measured and predicted at the end; may be given several times [default: --valid-file]
    #[arg(long, value_name = "FILE", requires = "features", help_heading = "Data")]
    test_file: Vec<PathBuf>,
    /// Table of the answers to choose from, such as data/answers/vqa.json
    #[arg(long, value_name = "FILE", requires = "train_file", help_heading = "Data")]
    answers: Option<PathBuf>,
    /// Leave out captions, questions and statements whose images have no features, however many
    #[arg(long, help_heading = "Data")]
    allow_missing_images: bool,
}

#[derive(Args)]
struct TrainArgs {
    /// What is trained [default: what --recipe trains, else matching]
    #[arg(long, value_enum)]
    task: Option<TaskKind>,
    /// Start from these numbers instead of those that suit the data; other flags change single ones
    #[arg(long = "recipe", value_enum)]
    named: Option<NamedRecipe>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Run folder [default: runs/<name of the data>]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    output: Option<PathBuf>,
    /// Go on with the unfinished run in the folder, with its own settings
    #[arg(long, help_heading = "Run")]
    resume: bool,
    /// Delete the run in the folder and start anew
    #[arg(long, conflicts_with = "resume", help_heading = "Run")]
    overwrite: bool,
    /// Save the state for --resume every N optimiser steps …
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run")]
    save_every: u64,
    /// … and after this many minutes; also after each epoch and at Ctrl-C
    #[arg(long, value_name = "MINUTES", default_value_t = 5.0, help_heading = "Run")]
    save_minutes: f64,
    /// Save the state and stop once N optimiser steps are taken
    #[arg(long, value_name = "N", help_heading = "Run")]
    stop_after: Option<u64>,
}

#[derive(Args)]
struct EvaluateArgs {
    /// Checkpoint folder, or a run folder (its best checkpoint is taken)
    checkpoint: PathBuf,
    /// What is measured; for questions and statements --test-file names the files [default for these: the scenes']
    #[arg(long, value_enum, default_value_t = TaskKind::Matching)]
    task: TaskKind,
    #[command(flatten)]
    data: DataArgs,
    /// Write the predictions into this folder, in the form that the benchmark's server takes
    #[arg(long, value_name = "DIR", help_heading = "Evaluation")]
    predictions: Option<PathBuf>,
    /// Pairs per batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Evaluation")]
    batch_size: u16,
    /// Test images that take part in retrieval, each with each caption; 0 leaves it out. The cost
    /// is images × captions passes through the cross-modality layers
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Evaluation")]
    recall_images: usize,
    /// Print JSON instead of tables
    #[arg(long, help_heading = "Evaluation")]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Our errors carry their cause in their own text; printing the chain would repeat it.
            eprintln!("error: {error}");
            let interrupted =
                error.downcast_ref::<lxmert_train::Error>().is_some_and(lxmert_train::Error::is_interrupt);
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let device = cli.common.start()?;
    catch_interrupts();
    match &cli.command {
        Some(Command::Evaluate(args)) => run_evaluate(args, cli, &device),
        Some(Command::Ask(args)) => Ok(ask::run(args, &device, cli.common.show_progress())?),
        None => run_training(&cli.train, cli, device),
    }
}

/// The data that the arguments name, and the recipe that suits it.
fn resolve_captions(args: &DataArgs) -> Result<(DataPaths, Recipe)> {
    let with_overrides = |mut paths: DataPaths| {
        if let Some(features) = &args.features {
            paths.features.clone_from(features);
        }
        if args.splits.is_some() {
            paths.splits.clone_from(&args.splits);
        }
        paths.absolute()
    };
    if let Some(captions) = &args.captions {
        let features = args.features.clone().unwrap_or_default();
        return Ok((DataPaths::of_files(captions.clone(), args.splits.clone(), features).absolute(), Recipe::photos()));
    }
    if let Some(folder) = &args.flickr30k {
        return Ok((with_overrides(DataPaths::flickr30k(folder, &Workspace::locate()?)?), Recipe::photos()));
    }
    match args.data.as_deref() {
        None | Some("scenes") => Ok((with_overrides(DataPaths::scenes(&Workspace::locate()?)?), Recipe::scenes())),
        Some(folder) => {
            Ok((with_overrides(DataPaths::in_folder(Path::new(folder), args.features.as_deref())?), Recipe::photos()))
        }
    }
}

/// The data that the arguments name for a task, and the recipe that suits both.
fn resolve(args: &DataArgs, task: TaskKind) -> Result<(Data, Recipe)> {
    let captioned = args.data.as_deref().is_some_and(|data| data != "scenes")
        || args.captions.is_some()
        || args.flickr30k.is_some();
    let stem = match task {
        TaskKind::Matching | TaskKind::Retrieval => {
            anyhow::ensure!(
                args.train_file.is_empty(),
                "--train-file: name the task that reads it, such as --task questions"
            );
            let (paths, recipe) = resolve_captions(args)?;
            let recipe = if paths.name == "scenes" { Recipe::scenes_for(task) } else { recipe.for_task(task) };
            return Ok((Data::Captions(paths), recipe));
        }
        TaskKind::Pretraining if captioned => {
            anyhow::ensure!(
                args.train_file.is_empty(),
                "--train-file: captioned images are named already; give one of the two"
            );
            let (paths, recipe) = resolve_captions(args)?;
            return Ok((Data::Captions(paths), recipe.for_task(task)));
        }
        TaskKind::Pretraining => "pretrain",
        TaskKind::Questions => "questions",
        TaskKind::Statements => "statements",
    };
    if captioned {
        anyhow::bail!("--task {task} reads JSON files: name them by --train-file, --valid-file and --test-file");
    }
    let Some(first) = args.train_file.first() else {
        let mut paths = ExamplePaths::scenes(&Workspace::locate()?, stem)?;
        if let Some(features) = &args.features {
            paths.features.clone_from(features);
        }
        return Ok((Data::Examples(paths.absolute()), Recipe::scenes_for(task)));
    };
    let name = first.file_stem().map_or_else(|| stem.into(), |name| name.to_string_lossy().into_owned());
    let test = if args.test_file.is_empty() { &args.valid_file } else { &args.test_file };
    let paths = ExamplePaths {
        name: format!("{stem}-{name}"),
        features: args.features.clone().unwrap_or_default(),
        train: args.train_file.clone(),
        valid: args.valid_file.clone(),
        test: test.clone(),
        answers: args.answers.clone(),
    };
    let recipe = match task {
        TaskKind::Pretraining => Recipe::paper_pretraining(),
        _ => Recipe::fine_tuning(task),
    };
    Ok((Data::Examples(paths.absolute()), recipe))
}

fn run_training(args: &TrainArgs, cli: &Cli, device: candle_core::Device) -> Result<()> {
    let data_named = args.data.data.is_some()
        || args.data.captions.is_some()
        || args.data.flickr30k.is_some()
        || !args.data.train_file.is_empty();
    // With --resume and a folder, everything comes from the run itself.
    let stored = match (&args.output, args.resume) {
        (Some(output), true) => trainer::read_settings(&RunFolder::new(output))?,
        _ => None,
    };
    let (data, base) = match stored {
        Some(settings) if !data_named => (settings.data, settings.recipe),
        Some(settings) => (resolve(&args.data, settings.recipe.task)?.0, settings.recipe),
        None => {
            let named = args.named.map(NamedRecipe::recipe);
            let task = args.task.or(named.as_ref().map(|recipe| recipe.task)).unwrap_or(TaskKind::Matching);
            let (data, suited) = resolve(&args.data, task)?;
            let recipe = match named {
                Some(recipe) if recipe.task == task => recipe,
                Some(recipe) => anyhow::bail!("--recipe trains {}, not the {task} of --task", recipe.task),
                None => suited,
            };
            (data, Recipe { seed: cli.common.seed, ..recipe })
        }
    };
    let output = match &args.output {
        Some(output) => output.clone(),
        None => match (&data, base.task) {
            (Data::Captions(paths), TaskKind::Retrieval | TaskKind::Pretraining) => {
                Workspace::locate()?.run(&format!("{}-{}", paths.name, base.task))
            }
            _ => Workspace::locate()?.run(data.name()),
        },
    };
    let job = Job {
        recipe: args.recipe.apply(base),
        data,
        output: output.clone(),
        device,
        start: match (args.resume, args.overwrite) {
            (true, _) => Start::Resume,
            (_, true) => Start::Overwrite,
            _ => Start::Auto,
        },
        allow_missing_images: args.data.allow_missing_images,
        save_every_steps: args.save_every,
        save_every: Duration::from_secs_f64((args.save_minutes.clamp(0.01, 1e6)) * 60.0),
        stop_after: args.stop_after,
        show_progress: cli.common.show_progress(),
        command: command_line(),
    };
    match trainer::run(&job)? {
        Outcome::Finished(report) => {
            print_report(&report);
            println!(
                "checkpoint {}\ncurves     {}",
                output.join("best").display(),
                output.join("curves.png").display()
            );
        }
        Outcome::AlreadyFinished(report) => {
            print_report(&report);
            println!(
                "{}: this run has already finished; nothing was done. Train anew with --overwrite, or beside it with --output DIR",
                output.display()
            );
        }
    }
    Ok(())
}

/// Measures a checkpoint of questions or statements, and writes its predictions.
fn evaluate_examples(args: &EvaluateArgs, cli: &Cli, device: &candle_core::Device) -> Result<Measures> {
    let stem = if args.task == TaskKind::Questions { "questions" } else { "statements" };
    let (files, features) = match &args.data.features {
        Some(features) if !args.data.test_file.is_empty() => (args.data.test_file.clone(), features.clone()),
        _ => {
            let paths = ExamplePaths::scenes(&Workspace::locate()?, stem)?;
            (paths.test, args.data.features.clone().unwrap_or(paths.features))
        }
    };
    let store = FeatureStore::open(&features)?;
    let batch = usize::from(args.batch_size);
    let bar = progress::bar(0, stem, cli.common.show_progress());
    let missing = args.data.allow_missing_images;
    let measures = if args.task == TaskKind::Questions {
        let checkpoint = AnswerCheckpoint::open(&args.checkpoint, device)?;
        checkpoint.check_features(store.info().feature_dim)?;
        let text = (&checkpoint.text, checkpoint.preprocessing.max_length);
        let set = QuestionSet::read(&files, &store, &checkpoint.answers, text, missing)?;
        bar.set_length(set.len() as u64);
        let place = (&store, checkpoint.preprocessing.regions.min(store.info().regions));
        let (measures, labels) =
            questions::measure(&checkpoint.model, &checkpoint.answers, &set, place, batch, device, &bar)?;
        if let Some(folder) = &args.predictions {
            questions::write_predictions(folder, &checkpoint.answers, &set, &labels)?;
        }
        measures
    } else {
        let checkpoint = statements::StatementCheckpoint::open(&args.checkpoint, device)?;
        answering::check_features(&checkpoint.config, &checkpoint.preprocessing, store.info().feature_dim)?;
        let text = (&checkpoint.text, checkpoint.preprocessing.max_length);
        let set = StatementSet::read(&files, &store, text, missing)?;
        bar.set_length(set.len() as u64);
        let place = (&store, checkpoint.preprocessing.regions.min(store.info().regions));
        let (measures, judged) = statements::measure(&checkpoint.model, &set, place, batch, device, &bar)?;
        if let Some(folder) = &args.predictions {
            statements::write_predictions(folder, &set, &judged)?;
        }
        measures
    };
    bar.finish_and_clear();
    Ok(measures)
}

fn run_evaluate(args: &EvaluateArgs, cli: &Cli, device: &candle_core::Device) -> Result<()> {
    match args.task {
        TaskKind::Matching | TaskKind::Retrieval => {}
        TaskKind::Questions | TaskKind::Statements => {
            return print_measures(evaluate_examples(args, cli, device)?, args.json);
        }
        TaskKind::Pretraining => anyhow::bail!(
            "--task pretraining: its losses are measured at the end of its own run (report.json); measure the checkpoint by --task matching"
        ),
    }
    let checkpoint = Checkpoint::open(&args.checkpoint, device)?;
    let (data, _) = resolve_captions(&args.data)?;
    let options = LoadOptions {
        max_length: checkpoint.preprocessing.max_length,
        regions: Some(checkpoint.preprocessing.regions),
        seed: cli.common.seed,
        allow_missing_images: args.data.allow_missing_images,
    };
    let dataset = Dataset::load(&data, &checkpoint.text, &options)?;
    checkpoint.check_features(&data, dataset.feature_dim(), &dataset.store.info().detector)?;
    let bar = progress::bar(0, "pairs", cli.common.show_progress());
    let batch = usize::from(args.batch_size);
    let test = matching::test(&checkpoint.model, &dataset, batch, args.recall_images, device, &bar)?;
    bar.finish_and_clear();
    print_measures(test, args.json)
}

fn print_measures(test: Measures, json: bool) -> Result<()> {
    let record = TestRecord { epoch: 0, test };
    if json {
        println!("{}", serde_json::to_string_pretty(&record).context("the measures as JSON")?);
    } else {
        print!("{}", record.test.tables("test"));
    }
    Ok(())
}

fn print_report(report: &Report) {
    println!(
        "{}, {}: {} epochs, {} steps, {:.0} s; best epoch {}\n",
        report.data, report.task, report.epochs, report.steps, report.training_seconds, report.test.epoch
    );
    print!("{}", report.test.test.tables("test"));
}

/// The command as it was typed, with the program's bare name.
fn command_line() -> String {
    let mut words = vec!["lxmert-train".to_string()];
    words.extend(std::env::args().skip(1).map(|word| if word.contains(' ') { format!("'{word}'") } else { word }));
    words.join(" ")
}
