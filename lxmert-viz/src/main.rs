//! `lxmert-viz`: see `lxmert-viz --help`.

use clap::{Parser, Subcommand};
use lxmert_core::cli::{self, CommonArgs};
use lxmert_core::workspace::Workspace;
use lxmert_viz::commands::explore::ExploreArgs;
use lxmert_viz::commands::export::ExportArgs;
use lxmert_viz::commands::grounding::GroundingArgs;
use lxmert_viz::commands::maps::{HeadsArgs, HeatmapArgs, OverlayArgs};
use lxmert_viz::commands::pair::PairArgs;
use lxmert_viz::commands::perturbation::PerturbationArgs;
use lxmert_viz::commands::relevancy::RelevancyArgs;
use lxmert_viz::commands::serve::ServeArgs;
use lxmert_viz::commands::{self, Session, gallery, predictions};
use lxmert_viz::figures::FigureArgs;
use lxmert_viz::places::PlacesArgs;
use std::process::ExitCode;

/// Pictures of what a trained LXMERT attends to.
///
/// Without a subcommand: the explorer and the pictures of the run on the generated scenes, into runs/scenes.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    places: PlacesArgs,
    #[command(flatten)]
    figures: FigureArgs,
    /// How many test pairs to explain
    #[arg(long, default_value_t = 4, value_name = "N")]
    pairs: usize,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum Command {
    /// One page for the browser: photos, regions, words, and every map by every method, to point at
    Explore(ExploreArgs),
    /// The same page from this machine with a live model: drop a photo, write a sentence, hide a region, see the score move
    Serve(ServeArgs),
    /// From a raw photo and a sentence to pictures: detector, model, plots
    Pair(PairArgs),
    /// One attention map as a table of colours
    Heatmap(HeatmapArgs),
    /// The photo with its regions; those with the largest weights are outlined and named
    Overlay(OverlayArgs),
    /// Evidence for and against a match or an answer, by several methods side by side
    Relevancy(RelevancyArgs),
    /// Whether the methods know what matters: remove what they call relevant, and see if the match disappears
    Perturbation(PerturbationArgs),
    /// How often the region that a phrase points to is the one that it names, by type of phrase
    Grounding(GroundingArgs),
    /// All heads side by side, one row per layer
    Heads(HeadsArgs),
    /// Attention maps, relevances, boxes, words and scores as arrays (safetensors) for your own analysis
    Export(ExportArgs),
    /// Test pairs with probabilities, right or wrong
    Grid,
    /// The training curves of the run
    Curves,
}

fn main() -> ExitCode {
    match run(&cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::report_failure(&error, cli::interrupted()),
    }
}

fn run(cli: &Cli) -> lxmert_viz::Result<()> {
    let device = cli.common.start()?;
    cli::catch_interrupts();
    let default_run = match &cli.command {
        Some(Command::Relevancy(args)) if args.question.is_some() => "scenes-questions",
        Some(Command::Relevancy(args)) if args.statement.is_some() => "scenes-statements",
        _ => "scenes",
    };
    let session = Session {
        places: cli.places.resolve(&Workspace::locate(), default_run)?,
        figures: cli.figures.clone(),
        device,
        seed: cli.common.seed(),
        progress: cli.common.show_progress(),
    };
    let report = match &cli.command {
        Some(Command::Explore(args)) => args.run(&session),
        Some(Command::Serve(args)) => args.run(&session),
        None => gallery::run(&session, cli.pairs),
        Some(Command::Pair(args)) => args.run(&session),
        Some(Command::Heatmap(args)) => args.run(&session),
        Some(Command::Overlay(args)) => args.run(&session),
        Some(Command::Relevancy(args)) => args.run(&session),
        Some(Command::Perturbation(args)) => args.run(&session),
        Some(Command::Grounding(args)) => args.run(&session),
        Some(Command::Heads(args)) => args.run(&session),
        Some(Command::Export(args)) => args.run(&session),
        Some(Command::Grid) => predictions::run(&session),
        Some(Command::Curves) => commands::curves(&session),
    }?;
    cli::print(&report)?;
    if let Some(warning) = report.warning() {
        log::warn!("{warning}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// clap would read a subcommand's argument as the global one of the same name, and panic if their types differ.
    #[test]
    fn no_subcommand_reuses_the_name_of_a_global_argument() {
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
