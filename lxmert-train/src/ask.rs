//! `lxmert-train ask`: its arguments and the command.

use crate::run_folder::open_checkpoint;
use crate::{Error, Result};
use candle_core::Device;
use lxmert_core::answering::{Answer, Answerer};
use lxmert_core::checkpoint::WeightSource;
use lxmert_core::features::{FeatureStore, Regions};
use lxmert_core::image_names::NameFinder;
use lxmert_core::workspace::Workspace;
use lxmert_extract::choice::DetectorChoice;
use lxmert_extract::finder::Finder;
use lxmert_extract::images::decode_file;
use std::path::PathBuf;

/// Answer a question about a photo
#[derive(Debug, Clone, clap::Args)]
pub struct AskArgs {
    /// Checkpoint of a model trained on questions: a folder, a run folder, a weights file beside its config.json, or
    /// hf:owner/repo or hf:owner/repo@revision [default: runs/scenes-questions]
    #[arg(long, value_name = "CHECKPOINT")]
    pub checkpoint: Option<PathBuf>,
    /// The photo; with --features, the name of an image in the store
    #[arg(long, value_name = "PHOTO")]
    pub image: PathBuf,
    /// The question
    #[arg(long, value_name = "SENTENCE")]
    pub question: String,
    /// How many answers to give
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub top: usize,
    /// Take the image's regions from this feature store instead of finding them in a photo
    #[arg(long, value_name = "DIR", conflicts_with_all = ["detector", "weights"])]
    pub features: Option<PathBuf>,
    /// scenes, coco, visual-genome, visual-genome-caffe, or a folder with a detector [default: the one whose features the checkpoint takes]
    #[arg(long, value_name = "DETECTOR")]
    pub detector: Option<DetectorChoice>,
    /// Weights in place of the detector's own: a safetensors or .pth file, or `hf:owner/repo/file[@revision]`
    #[arg(long, value_name = "FILE|hf:…")]
    pub weights: Option<WeightSource>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// Returns an error if the checkpoint does not answer questions, its features are from another detector, or the photo
/// cannot be read.
pub fn run(args: &AskArgs, device: &Device, progress: bool) -> Result<()> {
    let folder = match &args.checkpoint {
        Some(folder) => folder.clone(),
        None => Workspace::locate()?.run("scenes-questions"),
    };
    let answerer = Answerer::new(open_checkpoint(&folder, "questions")?, device)?;
    let regions = match &args.features {
        Some(store) => stored_regions(store, args)?,
        None => {
            let wanted = (answerer.config.visual_feat_dim, answerer.preprocessing.regions);
            let photo = decode_file(&args.image)?;
            let (choice, weights) = (args.detector.clone(), args.weights.as_ref());
            Finder::open(&Workspace::locate()?, choice, weights, wanted, progress, device)?.regions(&photo)?
        }
    };
    let answers = answerer.ask(&regions, &args.question, args.top, device)?;
    if args.json {
        let text = serde_json::to_string_pretty(&answers).map_err(Error::json("answers"))?;
        lxmert_core::cli::print_line(text)?;
    } else {
        lxmert_core::cli::print(table(&answers))?;
    }
    Ok(())
}

fn stored_regions(store: &std::path::Path, args: &AskArgs) -> Result<Regions> {
    let store = FeatureStore::open(store)?;
    let name = args.image.to_string_lossy();
    let index = NameFinder::new(store.names()).find(&name).ok_or_else(|| {
        let some = store.names().iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        Error::file(store.folder(), format!("no image '{name}' here; there are {some} and others"))
    })?;
    Ok(store.regions(index)?)
}

fn table(answers: &[Answer]) -> String {
    let width = answers.iter().map(|answer| answer.answer.chars().count()).max().unwrap_or(0);
    answers.iter().map(|a| format!("{:width$}  {:.3}\n", a.answer, a.probability)).collect()
}
