//! LXMERT's forward passes and training steps at the sizes that the peers' scripts time, in f32 and with bf16 products.
//! Prints JSON lines for `lxmert-core/benches/peers/compare.py`.
//!
//! `cargo bench -p lxmert-train --bench steps -- [--runs N] [--batch N] [case …]` prints the seconds of each run of
//! each case, after one warm-up run. A step is forward, backward, global norm and AdamW, with dropout.
//!
//! Built with `--features mpi` and started by `mpirun`, the ranks share each case's batch, and a step has the exchange of
//! gradients in it, whose seconds are printed too: `scripts/ranks.sh`.

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::Parser;
use lxmert_core::cli::{CommonArgs, keep_freed_memory};
use lxmert_core::config::{CrossLayer, LxmertConfig};
use lxmert_core::model::{LxmertInputs, MatchingModel, Pass, init};
use lxmert_core::ops::{self, DropoutRng, Precision, PrepackedWeights};
use lxmert_core::optim::{AdamW, AdamWConfig};
use lxmert_core::procedural;
use lxmert_train::ranks::{self, GradientSum};
use lxmert_train::tasks::losses::binary_cross_entropy;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

#[path = "../../lxmert-core/benches/peers/timing.rs"]
mod timing;

/// Times forward passes and training steps; prints one JSON line per case.
#[derive(Parser)]
struct Arguments {
    /// Timed runs per case
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Pairs per batch instead of each case's own number
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// The cases to run, by their printed names [default: all]
    cases: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
    /// Passed by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A case to time.
struct Case {
    name: &'static str,
    preset: &'static str,
    student: bool,
    train: bool,
    /// Whether to compute only the pooled output, as in training and retrieval.
    pooled: bool,
    batch: usize,
    words: usize,
    /// How many of the words are real, the rest being padding; an average if sentences differ.
    real: fn(usize) -> usize,
    regions: usize,
    precision: Precision,
}

/// Lengths as of Flickr30k's captions: 9 to 20 WordPieces, 14 on average.
fn captions(sentence: usize) -> usize {
    9 + (sentence * 7) % 12
}

const CASES: [Case; 13] = [
    Case { pooled: false, train: false, batch: 1, ..BASE },
    Case { name: "base forward, batch 1, pooled output", train: false, batch: 1, ..BASE },
    Case { name: "base forward, batch 8", pooled: false, train: false, batch: 8, ..BASE },
    Case { name: "base forward, batch 8, pooled output", train: false, batch: 8, ..BASE },
    Case { name: "base forward, batch 32", pooled: false, train: false, ..BASE },
    Case { name: "base forward, batch 32, pooled output", train: false, ..BASE },
    Case { name: "base forward, batch 32, real lengths", pooled: false, train: false, real: captions, ..BASE },
    Case { name: "base forward, batch 32, real lengths, pooled output", train: false, real: captions, ..BASE },
    Case { name: "base step, batch 32", ..BASE },
    Case { name: "small step, batch 64", preset: "small", batch: 64, words: 32, real: |_| 32, ..BASE },
    Case { name: "small forward, batch 64", preset: "small", batch: 64, words: 32, real: |_| 32, train: false, ..BASE },
    Case { name: "student step, batch 32", preset: "small", student: true, words: 50, real: |_| 16, ..BASE },
    Case { name: "tiny step, batch 64", preset: "tiny", batch: 64, words: 14, real: |_| 14, regions: 12, ..BASE },
];

const BASE: Case = Case {
    name: "base forward, batch 1",
    preset: "base",
    student: false,
    train: true,
    pooled: true,
    batch: 32,
    words: 20,
    real: |_| 20,
    regions: 36,
    precision: Precision::F32,
};

fn inputs(case: &Case, config: &LxmertConfig) -> Result<LxmertInputs> {
    let (batch, words) = (case.batch, case.words);
    let ids: Vec<u32> =
        procedural::values("ids", batch * words, 1000.0, 20000.0, 0).iter().map(|v| *v as u32).collect();
    let real = |i: usize| if i % words < (case.real)(i / words) { 1f32 } else { 0.0 };
    let mask: Vec<f32> = (0..batch * words).map(real).collect();
    Ok(LxmertInputs {
        input_ids: Tensor::from_vec(ids, (batch, words), &Device::Cpu)?,
        attention_mask: Some(Tensor::from_vec(mask, (batch, words), &Device::Cpu)?),
        visual_feats: procedural::tensor("features", &[batch, case.regions, config.visual_feat_dim], 0.0, 2.0, 0)?,
        visual_boxes: procedural::tensor("boxes", &[batch, case.regions, 4], 0.0, 1.0, 0)?,
        visual_attention_mask: None,
    })
}

/// Seconds for each of `runs` runs, and how many of them the exchange of gradients between ranks took.
fn time(case: &Case, runs: usize) -> Result<[Vec<f64>; 2]> {
    let (world, exchanges) = (ranks::world(), RefCell::new(Vec::new()));
    let mut config = LxmertConfig::preset(case.preset)?;
    if case.student {
        config.cross_layer = CrossLayer::Student;
    }
    let varmap = VarMap::new();
    let model = MatchingModel::new(&config, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
    init::seed_weights(&varmap, 0, config.initializer_range)?;
    let variables: BTreeMap<_, _> = match varmap.data().lock() {
        Ok(variables) => variables.iter().map(|(name, var)| (name.clone(), var.clone())).collect(),
        Err(_) => bail!("the variables' lock is poisoned"),
    };
    let (inputs, pooled, precision) = (inputs(case, &config)?, case.pooled, case.precision);
    let prepacked = PrepackedWeights::new();
    let run: Box<dyn FnMut() -> Result<()> + '_> = if case.train {
        let targets = Tensor::from_vec(vec![1f32; case.batch], case.batch, &Device::Cpu)?;
        let mut optimiser = AdamW::new(AdamWConfig::default(), variables)?;
        let shapes = optimiser.parameters().map(|(_, var)| var.shape().clone()).collect();
        let mut sum = GradientSum::new(world, shapes, &Device::Cpu);
        let (mut step, exchanges) = (0, &exchanges);
        Box::new(move || {
            step += 1;
            let rng = DropoutRng::new(0, step);
            let run = Pass { pooled_only: pooled, precision, ..Pass::train(&rng) };
            let logits = model.forward(&inputs, &run)?.logits;
            let loss = binary_cross_entropy(&logits, &targets)?.mean_all()?;
            let gradients = optimiser.gradients(&ops::backward(&loss)?);
            // The wait for a slower rank is not the exchange's.
            world.agree(Ok(()))?;
            let start = Instant::now();
            let present = vec![gradients.iter().map(Option::is_some).collect(); world.size()];
            sum.add(gradients, &present)?;
            let gradients = sum.take()?;
            exchanges.borrow_mut().push(start.elapsed().as_secs_f64());
            Ok(optimiser.clipped_step(&gradients, 1e-5, Some(1.0)).map(drop)?)
        })
    } else {
        // Plain tensors, as if read from a checkpoint: no graph is kept, and the first run prepacks them.
        let weights: HashMap<_, _> = variables.into_iter().map(|(k, v)| (k, v.as_tensor().detach())).collect();
        let model = MatchingModel::new(&config, VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu))?;
        let run = Pass { pooled_only: pooled, precision, prepacked: Some(&prepacked), ..Pass::eval() };
        Box::new(move || model.forward(&inputs, &run).map(drop).map_err(Into::into))
    };
    let seconds = timing::time(runs, run)?;
    Ok([seconds, exchanges.into_inner().into_iter().skip(1).collect()])
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let _connection = ranks::connect()?;
    arguments.common.start()?;
    let world = ranks::world();
    // As in the trainer.
    keep_freed_memory();
    for case in &CASES {
        for (suffix, precision) in [("", Precision::F32), (", bf16", Precision::Bf16)] {
            let name = format!("{}{suffix}", case.name);
            if arguments.cases.is_empty() || arguments.cases.contains(&name) {
                let batch = arguments.batch.unwrap_or(case.batch);
                let case = Case { batch: batch / world.size(), precision, ..*case };
                let [seconds, exchanges] = time(&case, arguments.runs)?;
                let mut line = serde_json::json!({"case": name, "batch": batch, "seconds": seconds});
                if !world.is_alone() {
                    line["ranks"] = world.size().into();
                    line["exchange_seconds"] = exchanges.into();
                }
                if world.is_first() {
                    println!("{line}");
                }
            }
        }
    }
    Ok(())
}
