//! Every hand-written op against the plain composition, and its gradient against finite differences.

mod common;

use candle_core::{D, Device, Result, Tensor, Var};
use common::kernels::{check_gradients, difference, variable};
use lxmert_core::ops::{self, DropoutRng, Ragged};
use lxmert_core::procedural;

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
    // Another step and another call give other masks; the same step gives the same mask.
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
fn gathering_and_scattering_rows_match_finite_differences() {
    let mask = Tensor::new(&[[1f32, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], &Device::Cpu).unwrap();
    let rows = Ragged::of_mask(&mask).unwrap();
    let (padded, ragged) = (variable("padded", &[3, 3, 2]), variable("ragged", &[6, 2]));
    check_gradients(&[&padded], || rows.gather(&padded));
    check_gradients(&[&ragged], || rows.scatter(&ragged));
    check_gradients(&[&ragged], || rows.pick_first(&ragged));
}

#[test]
fn rejects_a_mask_with_other_values_or_without_a_first_row() {
    let error = Ragged::of_mask(&Tensor::new(&[[1f32, 0.5]], &Device::Cpu).unwrap()).unwrap_err().to_string();
    assert!(error.contains("not 0.5"), "{error}");
    let rows = Ragged::of_mask(&Tensor::new(&[[0f32, 1.0]], &Device::Cpu).unwrap()).unwrap();
    assert!(rows.pick_first(&variable("x", &[1, 2])).is_err());
}

#[test]
fn backward_gives_the_gradients_of_candle_s_own() {
    let (w, b, x) = (variable("w", &[6, 6]), variable("b", &[6]), variable("x", &[4, 6]));
    let unused = variable("unused", &[2]);
    // The weights twice, once of their own and once derived, and in an operation of candle's.
    let loss = || -> Result<Tensor> {
        let y = ops::linear(&ops::linear(&x, &w, &b)?, &w.t()?.contiguous()?, &b)?;
        let y = ops::linear(&y, &w, &(b.as_tensor() * 2.0)?)?;
        y.sqr()?.sum_all()? + w.sqr()?.sum_all()?
    };
    // Candle's own comes second, and gets every gradient directly: nothing is left of the first.
    let (ours, theirs) = (ops::backward(&loss().unwrap()).unwrap(), loss().unwrap().backward().unwrap());
    for var in [&w, &b, &x] {
        assert!(difference(ours.get(var).unwrap(), theirs.get(var).unwrap()) < 1e-4);
    }
    assert!(ours.get(&unused).is_none());
}
