//! What is in a checkpoint: the names and shapes of a model's weights, and what happens to a file that does not fit.
//!
//! `cargo run -p lxmert-core --example 02_what_is_in_a_checkpoint [-- FILE]`: FILE may be safetensors or a `.pth` of
//! any age.

use candle_core::{DType, Device, Tensor};
use lxmert_core::checkpoint::{FitOptions, fit, read_tensors, save_safetensors};
use lxmert_core::config::LxmertConfig;
use lxmert_core::model::MatchingModel;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    // %% A matching model expects the hub's names
    let expected = MatchingModel::expected(&LxmertConfig::preset("tiny")?)?;
    println!("a tiny matching model expects {} tensors, among them:", expected.len());
    for (name, shape) in expected.iter().step_by(expected.len() / 8) {
        println!("  {name} {shape:?}");
    }

    // %% Any weights file, recognised by its content
    let folder = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => {
            // A file with one key missing, one too many, and one with another shape.
            let path = folder.path().join("wrong.safetensors");
            let mut tensors = Vec::new();
            for (i, (name, shape)) in expected.iter().enumerate() {
                let shape = if i == 1 { vec![3, 3] } else { shape.clone() };
                if i > 0 {
                    tensors.push((name.clone(), Tensor::zeros(shape, DType::F32, &Device::Cpu)?));
                }
            }
            tensors.push(("lxmert.surprise".into(), Tensor::zeros(1, DType::F32, &Device::Cpu)?));
            save_safetensors(&path, &tensors, &BTreeMap::new())?;
            path
        }
    };
    let tensors = read_tensors(&path)?;
    println!("{} holds {} tensors", path.display(), tensors.len());

    // %% A file that does not fit is refused with a list of everything that is wrong; nothing is half loaded
    match fit(&path, &expected, tensors, &FitOptions::default()) {
        Ok(_) => println!("it fits"),
        Err(error) => println!("it does not fit:\n{error}"),
    }
    Ok(())
}
