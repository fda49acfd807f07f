//! `lxmert-train`: arguments in, a run folder or a table of measures out.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use lxmert_core::cli::{self, CommonArgs, catch_interrupts, keep_freed_memory};
use lxmert_core::features::FeatureStore;
use lxmert_core::ops::Precision;
use lxmert_train::answering::{self, AnswerCheckpoint};
use lxmert_train::arguments::{DataArgs, Settings, TrainArgs};
use lxmert_train::ask::{self, AskArgs};
use lxmert_train::data::question_set::QuestionSet;
use lxmert_train::data::statements::StatementSet;
use lxmert_train::data::{Dataset, LoadOptions};
use lxmert_train::evaluate::Evaluation;
use lxmert_train::log::jsonl::TestRecord;
use lxmert_train::log::progress;
use lxmert_train::measures::Measures;
use lxmert_train::run_folder::{Checkpoint, Report};
use lxmert_train::tasks::{TaskKind, matching, questions, statements};
use lxmert_train::trainer::{self, Job, Outcome, Start};
use serde::Serialize;
use std::path::PathBuf;
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
struct EvaluateArgs {
    /// Checkpoint: a folder, a run folder (its best is taken), a weights file beside its config.json, or
    /// hf:owner/repo[@revision]
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
    /// Products of the encoders' layers in f32, or with operands rounded to bf16 and sums in f32: about 1.6 times as fast on a
    /// CPU with AVX512-BF16
    #[arg(long, default_value_t = Precision::F32, value_name = "f32|bf16", help_heading = "Evaluation")]
    precision: Precision,
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

fn run_training(args: &TrainArgs, cli: &Cli, device: candle_core::Device) -> Result<()> {
    keep_freed_memory();
    let Settings { recipe, data, output } = args.settings(cli.common.seed)?;
    let job = Job {
        recipe,
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
fn evaluate_examples(args: &EvaluateArgs, cli: &Cli, how: Evaluation) -> Result<Measures> {
    let stem = if args.task == TaskKind::Questions { "questions" } else { "statements" };
    let (files, features) = args.data.test_examples(args.task)?;
    let store = FeatureStore::open(&features)?;
    let bar = progress::bar(0, stem, cli.common.show_progress());
    let missing = args.data.allow_missing_images;
    let measures = if args.task == TaskKind::Questions {
        let checkpoint = AnswerCheckpoint::open(&args.checkpoint, how.device)?;
        checkpoint.check_features(store.info().feature_dim)?;
        let text = (&checkpoint.text, checkpoint.preprocessing.max_length);
        let set = QuestionSet::read(&files, &store, &checkpoint.answers, text, missing)?;
        bar.set_length(set.len() as u64);
        let place = (&store, checkpoint.preprocessing.regions.min(store.info().regions));
        let (measures, labels) = questions::measure(&checkpoint.model, &checkpoint.answers, &set, place, how, &bar)?;
        if let Some(folder) = &args.predictions {
            questions::write_predictions(folder, &checkpoint.answers, &set, &labels)?;
        }
        measures
    } else {
        let checkpoint = statements::StatementCheckpoint::open(&args.checkpoint, how.device)?;
        answering::check_features(&checkpoint.config, &checkpoint.preprocessing, store.info().feature_dim)?;
        let text = (&checkpoint.text, checkpoint.preprocessing.max_length);
        let set = StatementSet::read(&files, &store, text, missing)?;
        bar.set_length(set.len() as u64);
        let place = (&store, checkpoint.preprocessing.regions.min(store.info().regions));
        let (measures, judged) = statements::measure(&checkpoint.model, &set, place, how, &bar)?;
        if let Some(folder) = &args.predictions {
            statements::write_predictions(folder, &set, &judged)?;
        }
        measures
    };
    bar.finish_and_clear();
    Ok(measures)
}

fn run_evaluate(args: &EvaluateArgs, cli: &Cli, device: &candle_core::Device) -> Result<()> {
    cli::warn_of_slow(args.precision, device);
    let how = Evaluation { batch_size: usize::from(args.batch_size), precision: args.precision, device };
    let test = match args.task {
        TaskKind::Matching | TaskKind::Retrieval => evaluate_pairs(args, cli, how)?,
        TaskKind::Questions | TaskKind::Statements => evaluate_examples(args, cli, how)?,
        TaskKind::Pretraining => anyhow::bail!(
            "--task pretraining: its losses are measured at the end of its own run (report.json); measure the checkpoint by --task matching"
        ),
    };
    print_measures(test, args)
}

/// Measures a checkpoint that matches sentences with images.
fn evaluate_pairs(args: &EvaluateArgs, cli: &Cli, how: Evaluation) -> Result<Measures> {
    anyhow::ensure!(args.predictions.is_none(), "--predictions: only --task questions and statements have a server");
    let checkpoint = Checkpoint::open(&args.checkpoint, how.device)?;
    let (data, _) = args.data.captioned()?;
    let options = LoadOptions {
        max_length: checkpoint.preprocessing.max_length,
        regions: Some(checkpoint.preprocessing.regions),
        seed: cli.common.seed(),
        allow_missing_images: args.data.allow_missing_images,
    };
    let dataset = Dataset::load(&data, &checkpoint.text, &options)?;
    answering::check_features(&checkpoint.config, &checkpoint.preprocessing, dataset.feature_dim())?;
    let bar = progress::bar(0, "pairs", cli.common.show_progress());
    let test = matching::test(&checkpoint.model, &dataset, args.recall_images, how, &bar)?;
    bar.finish_and_clear();
    Ok(test)
}

/// What `evaluate --json` prints.
#[derive(Serialize)]
struct Evaluated {
    precision: Precision,
    #[serde(flatten)]
    record: TestRecord,
}

fn print_measures(test: Measures, args: &EvaluateArgs) -> Result<()> {
    if args.json {
        let measured = Evaluated { precision: args.precision, record: TestRecord { epoch: 0, test } };
        println!("{}", serde_json::to_string_pretty(&measured).context("the measures as JSON")?);
    } else {
        println!("products of the encoders' layers in {}\n", args.precision);
        print!("{}", test.tables("test"));
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
