//! `lxmert-viz relevancy`: the methods side by side, for a match or for an answer.

use crate::{Cli, DetectorArgs, Found, SubjectArgs, output_file, subject, subject_image};
use anyhow::{Result, ensure};
use candle_core::Device;
use lxmert_core::features::Regions;
use lxmert_core::model::Capture;
use lxmert_core::workspace::Workspace;
use lxmert_viz::asker::Asker;
use lxmert_viz::dataset::{DataSet, Places, slug};
use lxmert_viz::gallery::{method_slug, verdict_line};
use lxmert_viz::pictures::Explained;
use lxmert_viz::relevancy::Method;
use lxmert_viz::scorer::{PairInput, Scorer};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct RelevancyArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// A photo from a file instead of an image of the feature store; a detector finds its regions
    #[arg(long, value_name = "PHOTO", conflicts_with = "image")]
    photo: Option<PathBuf>,
    /// Explain the answer to this question, with a checkpoint trained on questions [default: runs/scenes-questions]
    #[arg(long, value_name = "SENTENCE", conflicts_with = "text")]
    question: Option<String>,
    /// The answer to explain [default: the top one]
    #[arg(long, value_name = "NAME", requires = "question")]
    answer: Option<String>,
    /// Only this method [default: attention, rollout, Grad-CAM and relevancy side by side]
    #[arg(long, value_enum, value_name = "METHOD")]
    method: Option<Method>,
    #[command(flatten)]
    detector: DetectorArgs,
}

pub fn run(cli: &Cli, args: &RelevancyArgs, places: Places, device: &Device) -> Result<()> {
    let methods = args.method.map_or_else(|| Method::COMPARED.to_vec(), |method| vec![method]);
    match &args.question {
        Some(question) => answer(cli, args, question, places, &methods, device),
        None => matching(cli, args, places, &methods, device),
    }
}

fn matching(cli: &Cli, args: &RelevancyArgs, places: Places, methods: &[Method], device: &Device) -> Result<()> {
    let scorer = Scorer::open(&places.checkpoint, device)?;
    let (plots, takes) = (places.clone(), (scorer.config().visual_feat_dim, scorer.regions()));
    let (found, text) = match &args.photo {
        Some(photo) => {
            let text = args.subject.text.clone().unwrap_or_default();
            ensure!(!text.trim().is_empty(), "--photo needs a sentence: give one with --text");
            (args.detector.find(cli, photo, takes, device)?, text)
        }
        None => {
            let data = DataSet::open(places, cli.common.seed())?;
            let (image, regions, text) = subject(&args.subject, &data)?;
            (stored(&data, image, regions)?, text)
        }
    };
    let input = PairInput { regions: &found.regions, text: &text };
    let scored = scorer.score(&[input], Capture::Probes)?.remove(0);
    println!("{}, “{text}”: {}", found.name, verdict_line(scored.probability()));
    let explained = Explained::new(&found.name, &text, &scored, &found.regions, &found.label_names);
    draw(cli, &explained, &found, methods, &plots)
}

fn answer(
    cli: &Cli,
    args: &RelevancyArgs,
    question: &str,
    places: Places,
    methods: &[Method],
    device: &Device,
) -> Result<()> {
    let named = cli.places.checkpoint.clone().or_else(|| cli.places.run.clone());
    let folder = named.map_or_else(|| Ok(Workspace::locate()?.run("scenes-questions")), anyhow::Ok)?;
    let asker = Asker::open(&folder, device)?;
    let plots = if cli.places.run.is_some() || cli.places.checkpoint.is_some() {
        places.clone()
    } else {
        Places { run: folder, ..places.clone() }
    };
    let found = match &args.photo {
        Some(photo) => args.detector.find(cli, photo, asker.takes(), device)?,
        None => {
            let data = DataSet::open(places, cli.common.seed())?;
            let (image, regions) = subject_image(&args.subject, &data)?;
            stored(&data, image, regions)?
        }
    };
    let answered = asker.explain(&found.regions, question, args.answer.as_deref())?;
    println!("{}, “{question}”:", found.name);
    for answer in &answered.best {
        println!("  {:.3}  {}", answer.probability, answer.answer);
    }
    let explained = Explained::new(&found.name, question, &answered.scored, &answered.regions, &found.label_names);
    draw(cli, &explained.of_answer(&answered.answer), &found, methods, &plots)
}

fn stored(data: &DataSet, name: String, regions: Regions) -> Result<Found> {
    let (photo, label_names) = (data.photo(&name)?, data.store.info().label_names.clone());
    Ok(Found { name, photo, regions, label_names, detector: data.store.info().detector.clone() })
}

fn draw(cli: &Cli, explained: &Explained, found: &Found, methods: &[Method], places: &Places) -> Result<()> {
    let which = if let [only] = methods { format!("-{}", method_slug(*only)) } else { String::new() };
    // Answers are told apart by their question too.
    let question = || slug(&explained.text.to_lowercase().replace(['.', '/', '\\'], " "));
    let of = match explained.claim.as_str() {
        "match" => String::new(),
        answer => format!("-{}-{}", question(), slug(answer)),
    };
    let path: PathBuf = output_file(cli, places, &format!("relevancy-{}{of}{which}.png", slug(&found.name)));
    explained.methods(found.photo.clone(), methods)?.draw()?.save(Path::new(&path))?;
    println!("{}", path.display());
    Ok(())
}
