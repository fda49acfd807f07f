//! Every hand-written op: against the plain composition, and its gradient against finite differences.

mod common;

use candle_core::{D, Device, Tensor, Var};
use common::difference;
use common::gradients::{check_gradients, variable, weigh};
use lxmert_core::ops::{self, AttentionOptions, DropoutRng, KeyMask};
use lxmert_core::procedural;
use std::path::Path;

#[test]
fn linear_and_its_gradient() {
    for (shape, out) in [(vec![2, 3, 5], 7), (vec![1, 17], 1), (vec![33, 16], 20)] {
        let (x, w, b) = (variable("x", &shape), variable("w", &[out, *shape.last().unwrap()]), variable("b", &[out]));
        let y = ops::linear(&x, &w, &b).unwrap();
        let rows = x.elem_count() / shape.last().unwrap();
        let flat = x.reshape((rows, ())).unwrap().matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        assert!(difference(&y.reshape((rows, out)).unwrap(), &flat) < 1e-5);
        check_gradients(&[&x, &w, &b], || ops::linear(&x, &w, &b));
    }
}

#[test]
fn layer_norm_and_its_gradient() {
    for shape in [vec![2, 3, 37], vec![130, 16], vec![1, 5]] {
        let width = *shape.last().unwrap();
        let (x, w, b) = (variable("x", &shape), variable("w", &[width]), variable("b", &[width]));
        let y = ops::layer_norm(&x, &w, &b, 1e-12).unwrap();
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let deviation = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap().sqrt().unwrap();
        let plain = centred.broadcast_div(&deviation).unwrap().broadcast_mul(&w).unwrap().broadcast_add(&b).unwrap();
        assert!(difference(&y, &plain) < 2e-6);
        if width > 5 {
            check_gradients(&[&x, &w, &b], || ops::layer_norm(&x, &w, &b, 1e-12));
        }
    }
}

#[test]
fn gelu_and_its_gradient() {
    let x = Var::from_tensor(&procedural::tensor("x", &[3, 41], -5.0, 5.0, 5).unwrap()).unwrap();
    assert!(difference(&ops::gelu(&x).unwrap(), &x.gelu_erf().unwrap()) < 2e-6);
    check_gradients(&[&x], || ops::gelu(&x));
}

#[test]
fn embedding_and_its_gradient() {
    let table = variable("table", &[7, 5]);
    let ids = Tensor::new(&[[3u32, 0, 3], [6, 3, 1]], &Device::Cpu).unwrap();
    let y = ops::embedding(&table, &ids).unwrap();
    let plain = table.index_select(&ids.flatten_all().unwrap(), 0).unwrap().reshape((2, 3, 5)).unwrap();
    assert_eq!((y.dims(), difference(&y, &plain)), (plain.dims(), 0.0));
    check_gradients(&[&table], || ops::embedding(&table, &ids));
    let error = ops::embedding(&table, &Tensor::new(&[7u32], &Device::Cpu).unwrap()).unwrap_err();
    assert!(error.to_string().contains("id 7 of a table with 7 rows"), "{error}");
    let none = Tensor::zeros((2, 0), candle_core::DType::U32, &Device::Cpu).unwrap();
    assert_eq!(ops::embedding(&table, &none).unwrap().dims(), [2, 0, 5]);
}

#[test]
fn dropout_keeps_the_mean_and_its_gradient_uses_the_same_mask() {
    let x = Var::ones(100_000, candle_core::DType::F32, &Device::Cpu).unwrap();
    let drop = || ops::dropout(&x, 0.3, Some(&DropoutRng::new(1, 2)));
    let y: Vec<f32> = drop().unwrap().to_vec1().unwrap();
    let dropped = y.iter().filter(|v| **v == 0.0).count() as f64 / 1e5;
    assert!((dropped - 0.3).abs() < 0.006, "{dropped}");
    assert!(y.iter().all(|v| *v == 0.0 || (*v - 1.0 / 0.7).abs() < 1e-6));
    let gradients = drop().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(gradients.get(&x).unwrap().to_vec1::<f32>().unwrap(), y);
    // Another step, another call: other masks. The same step again: the same.
    let rng = DropoutRng::new(1, 2);
    let first: Vec<f32> = ops::dropout(&x, 0.3, Some(&rng)).unwrap().to_vec1().unwrap();
    let second: Vec<f32> = ops::dropout(&x, 0.3, Some(&rng)).unwrap().to_vec1().unwrap();
    let other: Vec<f32> = ops::dropout(&x, 0.3, Some(&DropoutRng::new(1, 3))).unwrap().to_vec1().unwrap();
    assert_eq!(first, y);
    assert!(first != second && first != other);
}

#[test]
fn dropout_matches_finite_differences() {
    let x = variable("x", &[40]);
    check_gradients(&[&x], || ops::dropout(&x, 0.3, Some(&DropoutRng::new(1, 2))));
}

#[test]
fn batch_norm_matches_finite_differences() {
    let (x, w, b) = (variable("x", &[2, 3, 3, 2]), variable("w", &[3]), variable("b", &[3]));
    check_gradients(&[&x, &w, &b], || Ok(ops::batch_norm(&x, &w, &b, 1e-2, false)?.y));
    // All of a channel passes the ReLU or nothing: at its corner there is no derivative.
    let b = Var::from_tensor(&Tensor::new(&[5f32, -5.0, 5.0], &Device::Cpu).unwrap()).unwrap();
    check_gradients(&[&x, &w, &b], || Ok(ops::batch_norm(&x, &w, &b, 1e-2, true)?.y));
}

#[test]
fn packing_matches_finite_differences() {
    let mask = Tensor::new(&[[1f32, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], &Device::Cpu).unwrap();
    let mask = KeyMask::new(&mask).unwrap();
    let packing = mask.packing().unwrap();
    let (padded, packed) = (variable("padded", &[3, 3, 2]), variable("packed", &[6, 2]));
    check_gradients(&[&padded], || packing.pack(&padded));
    check_gradients(&[&packed], || packing.unpack(&packed));
    check_gradients(&[&packed], || packing.pick_first(&packed));
}

#[test]
fn attention_equals_its_composition_with_masks_and_dropout() {
    for (batch, queries, keys, heads, width, masked, p) in [
        (2, 5, 7, 2, 12, false, 0.0),
        (3, 4, 9, 1, 20, true, 0.0),
        (2, 6, 36, 4, 64, true, 0.25),
        (1, 1, 1, 1, 1, false, 0.0),
    ] {
        let q = variable("q", &[batch, queries, width]);
        let (k, v) = (variable("k", &[batch, keys, width]), variable("v", &[batch, keys, width]));
        let mask = masked.then(|| {
            let rows: Vec<f32> =
                (0..batch * keys).map(|i| if i % keys < keys - 1 - i / keys { 1.0 } else { 0.0 }).collect();
            KeyMask::new(&Tensor::from_vec(rows, (batch, keys), &Device::Cpu).unwrap()).unwrap()
        });
        let run = |fused: bool| {
            let rng = DropoutRng::new(3, 4);
            let options = AttentionOptions { heads, mask: mask.as_ref(), dropout_probability: p, rng: Some(&rng) };
            if fused {
                ops::attention(&q, &k, &v, &options)
            } else {
                let map = ops::attention_probabilities(&q, &k, &options)?;
                ops::attention_weigh(&map, &v, &options)
            }
        };
        let (fused, composed) = (run(true).unwrap(), run(false).unwrap());
        assert!(difference(&fused, &composed) < 2e-6);
        let by = |y: Tensor| weigh(&y).unwrap().backward().unwrap();
        let (a, b) = (by(fused), by(composed));
        for (name, var) in [("q", &q), ("k", &k), ("v", &v)] {
            let d = difference(a.get(var).unwrap(), b.get(var).unwrap());
            assert!(d < 5e-6, "{name}: {d}");
        }
        if width > 1 {
            check_gradients(&[&q, &k, &v], || run(true));
        }
    }
}

#[test]
fn a_row_whose_keys_are_all_masked_stays_finite() {
    let q = variable("q", &[1, 2, 8]);
    let mask = KeyMask::new(&Tensor::zeros((1, 3), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
    let k = variable("k", &[1, 3, 8]);
    let options = AttentionOptions { heads: 2, mask: Some(&mask), dropout_probability: 0.0, rng: None };
    let y: Vec<f32> = ops::attention(&q, &k, &k, &options).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(y.iter().all(|v| v.is_finite()));
}

/// Which test compares an operation's gradient with finite differences, by the file that defines it.
const COVERED: [(&str, usize, &str, &str); 14] = [
    ("attention.rs", 1, "ops_gradients.rs", "attention_equals_its_composition_with_masks_and_dropout"),
    ("batch_norm.rs", 1, "ops_gradients.rs", "batch_norm_matches_finite_differences"),
    ("blocks/attention.rs", 1, "ops_blocks.rs", "attention_matches_finite_differences_in_every_input_and_weight"),
    ("blocks/feed_forward.rs", 1, "ops_blocks.rs", "feed_forward_matches_finite_differences_in_every_input_and_weight"),
    // What stands for the weights of the two in the graph.
    ("blocks/parameters.rs", 1, "ops_blocks.rs", "attention_matches_finite_differences_in_every_input_and_weight"),
    ("conv.rs", 2, "ops_conv.rs", "convolution_matches_finite_differences"),
    ("dropout.rs", 1, "ops_gradients.rs", "dropout_matches_finite_differences"),
    ("embedding.rs", 1, "ops_gradients.rs", "embedding_and_its_gradient"),
    ("gelu.rs", 1, "ops_gradients.rs", "gelu_and_its_gradient"),
    ("layer_norm.rs", 1, "ops_gradients.rs", "layer_norm_and_its_gradient"),
    ("linear.rs", 1, "ops_gradients.rs", "linear_and_its_gradient"),
    ("packing.rs", 2, "ops_gradients.rs", "packing_matches_finite_differences"),
    ("pool.rs", 1, "ops_conv.rs", "pooling_equals_the_composition_and_finite_differences"),
    ("roi_align.rs", 1, "ops_conv.rs", "roi_align_equals_the_composition_and_finite_differences"),
];

#[test]
fn every_operation_has_such_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["", "blocks"] {
        for entry in std::fs::read_dir(root.join("src/ops").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = Path::new(folder).join(path.file_name().unwrap()).to_string_lossy().replace('\\', "/");
            if path.is_file() {
                let operations = std::fs::read_to_string(&path).unwrap().matches("\nimpl CustomOp").count();
                found.extend((operations > 0).then_some((name, operations)));
            }
        }
    }
    found.sort();
    assert_eq!(found, COVERED.map(|(file, operations, ..)| (file.to_string(), operations)));
    for (_, _, file, test) in COVERED {
        let tests = std::fs::read_to_string(root.join("tests").join(file)).unwrap();
        assert!(tests.contains(&format!("#[test]\nfn {test}()")), "{file} has no test {test}");
    }
}
