//! `lxmert-train check-published`: the published weights against what others published of them. What a check needs and is not
//! given is said, so that a person with a network sees in minutes whether all is right.

use crate::arguments::{Circumstances, EvaluateArgs};
use crate::tasks::registry;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lxmert_core::answering::Answerer;
use lxmert_core::boxes::iou;
use lxmert_core::checkpoint::{ExpectedFile, WeightSource};
use lxmert_core::features::{FeatureStore, Regions, StoreDtype};
use lxmert_core::files::{read_json, sha256};
use lxmert_core::image_names::NameFinder;
use lxmert_core::model::{LxmertInputs, LxmertModel, Pass};
use lxmert_core::ops::Precision;
use lxmert_core::pretrained::{Preprocessing, Pretrained};
use lxmert_extract::choice::DetectorChoice;
use lxmert_extract::detector::visual_genome;
use lxmert_extract::finder::{Finder, FinderArgs};
use lxmert_extract::images::decode_file;
use lxmert_extract::import::tsv::{TsvOptions, import_tsv};
use lxmert_extract::inputs::find_images;
use lxmert_extract::weights;
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

/// Numbers of transformers' integration test, and the demo's questions and answers.
const BASE: &[u8] = include_bytes!("../assets/published/base.safetensors");
const DEMO: &str = include_str!("../assets/published/demo.json");

/// The tolerance of transformers' own test.
const TOLERANCE: f32 = 1e-4;

/// How far MILVLG's converted weights are from Caffe's, by its README.
const FEATURES: f32 = 0.01;

/// What can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Nine numbers of unc-nlp/lxmert-base-uncased, by transformers' integration test
    Base,
    /// Size, hash and tensors of the Visual Genome detector's weights
    Detector,
    /// The demo's answers by unc-nlp/lxmert-vqa-uncased and -gqa-uncased, from the photo (--demo-image)
    Answers,
    /// The features of train2014_obj36.tsv, from its photos (--tsv, --images, --caffe-weights)
    Features,
    /// Accuracy on VQA's minival and GQA's testdev (--vqa-file, --gqa-file, --features)
    Scores,
}

/// Check the published weights against what others published of them
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// What to check [default: all]
    #[arg(value_enum)]
    pub what: Vec<What>,
    /// LXMERT pre-trained
    #[arg(long, value_name = "CHECKPOINT", default_value = "hf:unc-nlp/lxmert-base-uncased")]
    pub base: PathBuf,
    /// Inputs and numbers of another checkpoint, in the form of assets/published/base.safetensors [default: the published]
    #[arg(long, value_name = "FILE")]
    pub base_numbers: Option<PathBuf>,
    /// LXMERT for VQA
    #[arg(long, value_name = "CHECKPOINT", default_value = "hf:unc-nlp/lxmert-vqa-uncased")]
    pub vqa: PathBuf,
    /// LXMERT for GQA
    #[arg(long, value_name = "CHECKPOINT", default_value = "hf:unc-nlp/lxmert-gqa-uncased")]
    pub gqa: PathBuf,
    /// The demo's photo, COCO_test2014_000000262567.jpg
    #[arg(long, value_name = "PHOTO")]
    pub demo_image: Option<PathBuf>,
    /// Other questions and answers, in the form of assets/published/demo.json [default: the demo's]
    #[arg(long, value_name = "FILE")]
    pub demo: Option<PathBuf>,
    /// How the demo's regions are found.
    #[command(flatten)]
    pub finder: FinderArgs,
    /// train2014_obj36.tsv, or some rows of it
    #[arg(long, value_name = "TSV")]
    pub tsv: Option<PathBuf>,
    /// Folder of the TSV's photos
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// bua-caffe-frcn-r101-k36.pth
    #[arg(long, value_name = "FILE")]
    pub caffe_weights: Option<WeightSource>,
    /// LXMERT's vqa/minival.json
    #[arg(long, value_name = "FILE")]
    pub vqa_file: Option<PathBuf>,
    /// LXMERT's gqa/testdev.json
    #[arg(long, value_name = "FILE")]
    pub gqa_file: Option<PathBuf>,
    /// Feature store of their images
    #[arg(long, value_name = "DIR")]
    pub features: Option<PathBuf>,
}

/// What came of a check.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What was checked.
    pub what: String,
    /// What is published.
    pub expected: String,
    /// What came out; or what is needed to know.
    pub got: String,
    /// Whether both agree; `None` where it could not be told.
    pub right: Option<bool>,
}

/// All that came of it.
#[derive(Debug, Clone, Default)]
pub struct Findings(pub Vec<Checked>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, expected: impl Into<String>, got: impl Into<String>, right: bool) {
        let (what, expected, got) = (what.into(), expected.into(), got.into());
        self.0.push(Checked { what, expected, got, right: Some(right) });
    }

    fn lacks(&mut self, what: impl Into<String>, expected: impl Into<String>, needed: impl Into<String>) {
        let (what, expected, got) = (what.into(), expected.into(), needed.into());
        self.0.push(Checked { what, expected, got, right: None });
    }

    /// How many checks do not agree.
    pub fn wrong(&self) -> usize {
        self.0.iter().filter(|checked| checked.right == Some(false)).count()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide =
            |column: fn(&Checked) -> &str| self.0.iter().map(|row| column(row).chars().count()).max().unwrap_or(0);
        let (what, expected) = (wide(|row| &row.what), wide(|row| &row.expected));
        for row in &self.0 {
            let verdict = match row.right {
                Some(true) => "right  ",
                Some(false) => "WRONG  ",
                None => "not run",
            };
            writeln!(f, "{verdict}  {:what$}  expected {:expected$}  got {}", row.what, row.expected, row.got)?;
        }
        Ok(())
    }
}

/// Runs the checks.
///
/// # Errors
/// When a file cannot be fetched or read. Numbers that differ are no error here.
pub fn run(args: &CheckArgs, with: &Circumstances) -> Result<Findings> {
    let mut findings = Findings::default();
    let wanted = |what: What| args.what.is_empty() || args.what.contains(&what);
    if wanted(What::Base) {
        base(args, with, &mut findings)?;
    }
    if wanted(What::Detector) {
        detector(with, &mut findings)?;
    }
    if wanted(What::Answers) {
        answers(args, with, &mut findings)?;
    }
    if wanted(What::Features) {
        features(args, with, &mut findings)?;
    }
    if wanted(What::Scores) {
        scores(args, with, &mut findings)?;
    }
    Ok(findings)
}

fn base(args: &CheckArgs, with: &Circumstances, findings: &mut Findings) -> Result<()> {
    let device = &with.device;
    let given: HashMap<String, Tensor> = match &args.base_numbers {
        Some(path) => candle_core::safetensors::load(path, device)?,
        None => candle_core::safetensors::load_buffer(BASE, device)?,
    };
    let get = |name: &str, dtype: DType| -> Result<Tensor> {
        let tensor = given.get(name).ok_or_else(|| Error::Argument(format!("--base-numbers: no tensor '{name}'")))?;
        Ok(tensor.to_dtype(dtype)?)
    };
    let inputs = LxmertInputs {
        input_ids: get("ids", DType::U32)?,
        attention_mask: None,
        visual_feats: get("features", DType::F32)?,
        visual_boxes: get("boxes", DType::F32)?,
        visual_attention_mask: None,
    };
    log::info!("reading {}", args.base.display());
    let model = Pretrained::open(&args.base)?.model(device, |config, vb| LxmertModel::new(config, vb.pp("lxmert")))?;
    let language = model.forward(&inputs, &Pass::eval())?.language; // [1, words, hidden]
    let nine = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.narrow(0, 0, 3)?.narrow(1, 0, 3)?.flatten_all()?.to_vec1()?) };
    let (expected, got) = (nine(&get("language_output_first_3x3", DType::F32)?)?, nine(&language.get(0)?)?);
    let right = expected.iter().zip(&got).all(|(a, b)| (a - b).abs() <= TOLERANCE);
    let words = |values: &[f32]| values.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(" ");
    findings.add("base: language_output, 3 × 3", words(&expected), words(&got), right);
    Ok(())
}

fn detector(with: &Circumstances, findings: &mut Findings) -> Result<()> {
    let ExpectedFile { size, sha256: hash } = weights::VISUAL_GENOME_FILE;
    log::info!("reading {}", weights::VISUAL_GENOME_SOURCE);
    // Without the expected hash, so that another file is reported and not refused.
    let published: WeightSource = weights::VISUAL_GENOME_SOURCE.parse().map_err(Error::Argument)?;
    let path = published.resolve(None, with.show_progress)?;
    let found = (std::fs::metadata(&path).map_err(Error::io(&path))?.len(), sha256(&path)?);
    let words = |size: u64, hash: &str| format!("{size} bytes, {}…", &hash[..8]);
    findings.add("detector: file", words(size, hash), words(found.0, &found.1), found == (size, hash.into()));
    let fits = weights::load(&visual_genome::hugging_face(), &path, Precision::F32, &Device::Cpu);
    let got = fits.as_ref().map_or_else(ToString::to_string, |_| "all fit".into());
    findings.add("detector: tensors", "all fit", got, fits.is_ok());
    Ok(())
}

/// Questions with the answers of the two checkpoints.
#[derive(Debug, Deserialize)]
struct Demo {
    questions: Vec<DemoQuestion>,
}

#[derive(Debug, Deserialize)]
struct DemoQuestion {
    question: String,
    vqa: String,
    gqa: String,
}

fn answers(args: &CheckArgs, with: &Circumstances, findings: &mut Findings) -> Result<()> {
    let device = &with.device;
    let demo: Demo = match &args.demo {
        Some(path) => read_json(path)?,
        None => serde_json::from_str(DEMO).map_err(Error::json("demo.json"))?,
    };
    for (name, place) in [("vqa", &args.vqa), ("gqa", &args.gqa)] {
        let expected =
            |question: &DemoQuestion| if name == "vqa" { question.vqa.clone() } else { question.gqa.clone() };
        let Some(image) = &args.demo_image else {
            for question in &demo.questions {
                findings.lacks(
                    format!("{name}: {}", question.question),
                    expected(question),
                    "nothing: give --demo-image",
                );
            }
            continue;
        };
        log::info!("reading {}", place.display());
        let answerer = Answerer::new(Pretrained::open(place)?, device)?;
        let (width, preprocessing) = (answerer.config.visual_feat_dim, &answerer.preprocessing);
        let finder = Finder::open(&args.finder, width, preprocessing, with.show_progress, device)?;
        let found = finder.find(&decode_file(image)?, &image.to_string_lossy())?;
        for question in &demo.questions {
            let best = answerer.ask(&found.regions, &question.question, 1, device)?;
            let got = best.first().map(|answer| answer.answer.clone()).unwrap_or_default();
            let (expected, what) = (expected(question), format!("{name}: {}", question.question));
            let right = got == expected;
            findings.add(what, expected, got, right);
        }
    }
    Ok(())
}

fn features(args: &CheckArgs, with: &Circumstances, findings: &mut Findings) -> Result<()> {
    let expected = format!("differ by {FEATURES} at most in the mean");
    let (Some(tsv), Some(images), Some(weights)) = (&args.tsv, &args.images, &args.caffe_weights) else {
        findings.lacks("features of the TSV", expected, "nothing: give --tsv, --images and --caffe-weights");
        return Ok(());
    };
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let store = folder.path().join("store");
    import_tsv(tsv, &store, &TsvOptions::new(StoreDtype::F32, None, None)?, with.show_progress)?;
    let store = FeatureStore::open(&store)?;
    let photos = find_images(images, None)?;
    let names: Vec<String> = photos.iter().map(|photo| photo.name.clone()).collect();
    let by_name = NameFinder::new(&names);
    let finder = FinderArgs {
        detector: Some(DetectorChoice::VisualGenomeCaffe),
        weights: Some(weights.clone()),
        ..FinderArgs::default()
    };
    let trained = Preprocessing::default();
    let finder = Finder::open(&finder, store.info().feature_dim, &trained, with.show_progress, &with.device)?;
    for (index, name) in store.names().enumerate() {
        let what = format!("features of {name}");
        let Some(photo) = by_name.find(name) else {
            findings.lacks(what, expected.clone(), format!("nothing: {} has no such photo", images.display()));
            continue;
        };
        let found = finder.find(&decode_file(&photos[photo].path)?, name)?.regions;
        let (matched, difference) = compare(&store.regions(index)?, &found);
        let all = store.num_regions(index)?;
        let got = format!("{difference:.4}, {matched} of {all} regions at the same place");
        findings.add(what, expected.clone(), got, 2 * matched > all && difference <= FEATURES);
    }
    Ok(())
}

/// How many regions lie where the published ones do, and how far the features of these differ in the mean.
fn compare(published: &Regions, ours: &Regions) -> (usize, f32) {
    let (mut matched, mut sum) = (0, 0.0);
    let width = published.feature_dim;
    for (i, of) in published.boxes.iter().enumerate() {
        let overlap = |j: &usize| iou(of, &ours.boxes[*j]);
        let nearest = (0..ours.boxes.len()).max_by(|a, b| overlap(a).total_cmp(&overlap(b)));
        let Some(j) = nearest.filter(|j| overlap(j) >= 0.95) else { continue };
        let pairs = published.features[i * width..][..width].iter().zip(&ours.features[j * width..][..width]);
        sum += pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / width as f32;
        matched += 1;
    }
    (matched, sum / matched.max(1) as f32)
}

fn scores(args: &CheckArgs, with: &Circumstances, findings: &mut Findings) -> Result<()> {
    let files = [
        (
            "vqa: accuracy on minival",
            "69.7 to 70.2 % (airsplay/lxmert)",
            0.697..0.702,
            &args.vqa,
            &args.vqa_file,
            "--vqa-file",
        ),
        (
            "gqa: accuracy on testdev",
            "59.8 to 60.1 % (airsplay/lxmert)",
            0.598..0.601,
            &args.gqa,
            &args.gqa_file,
            "--gqa-file",
        ),
    ];
    for (what, expected, range, checkpoint, file, option) in files {
        let Some((file, store)) = file.as_ref().zip(args.features.as_ref()) else {
            findings.lacks(what, expected, format!("nothing: give {option} and --features"));
            continue;
        };
        let evaluate =
            EvaluateArgs::of_examples(checkpoint.clone(), registry::task("questions")?, store.clone(), file.clone());
        let accuracy = evaluate.measure(with)?.measures.get("all", "accuracy").unwrap_or(f64::NAN);
        // What is published is of the original's own fine-tuned weights; half a point more or less is another seed's.
        let right = (range.start - 0.005..range.end + 0.005).contains(&accuracy);
        findings.add(what, expected, format!("{:.2} %", 100.0 * accuracy), right);
    }
    Ok(())
}
