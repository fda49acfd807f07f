//! Results do not depend on the number of threads, except for the sums over a batch in the gradients of a convolution's
//! weights and bias, where the threads decide the order.

mod common;

use candle_core::{Device, Result, Tensor, Var};
use common::random;
use lxmert_core::ops::{self, Matrix, MatrixMut, RoiAlign, Threads, Write, gemm};

fn in_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Values and gradients of `f` with this many threads.
fn run(threads: usize, inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor> + Sync) -> Vec<Tensor> {
    in_threads(threads, || {
        let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let y = f(&vars).unwrap();
        let gradients = (&y * random("pull", y.dims())).unwrap().sum_all().unwrap().backward().unwrap();
        let by_inputs = vars.iter().map(|var| gradients.get(var).unwrap().clone());
        std::iter::once(y.detach()).chain(by_inputs).collect()
    })
}

fn independent(what: &str, inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor> + Sync) {
    let one = run(1, inputs, &f);
    for threads in [2, 3, 5] {
        for (i, (a, b)) in one.iter().zip(run(threads, inputs, &f)).enumerate() {
            assert!(bits(a) == bits(&b), "{what} in {threads} threads: result {i}");
        }
    }
}

#[test]
fn products_have_the_same_bits() {
    // Tiles and panels, skinny products, several blocks of the inner dimension, and sizes that fill none of them.
    for (rows, inner, columns) in [(300, 64, 100), (40, 512, 400), (150, 1100, 65), (33, 37, 41)] {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let (a, b) = (random("a", &[rows * inner]), random("b", &[inner * columns]));
            let (a, b) = (a.to_vec1::<f32>().unwrap(), b.to_vec1::<f32>().unwrap());
            let product = |threads: usize| {
                in_threads(threads, || {
                    let mut out = vec![0.0; rows * columns];
                    let a = if ta { Matrix::new(&a, inner, rows).t() } else { Matrix::new(&a, rows, inner) };
                    let b = if tb { Matrix::new(&b, columns, inner).t() } else { Matrix::new(&b, inner, columns) };
                    gemm(MatrixMut::new(&mut out, rows, columns), Write::Replace, 1.0, a, b, Threads::Pool);
                    out
                })
            };
            let one = product(1);
            assert!([2, 3, 5].iter().all(|threads| product(*threads) == one), "{rows} {inner} {columns} {ta} {tb}");
        }
    }
}

#[test]
fn layers_and_their_gradients_have_the_same_bits() {
    let (rows, width) = (700, 48);
    let x = random("x", &[rows, width]);
    let (w, b) = (random("w", &[64, width]), random("b", &[64]));
    independent("linear", &[x.clone(), w, b], |v| ops::linear(&v[0], &v[1], &v[2]));
    let (scale, shift) = (random("scale", &[width]), random("shift", &[width]));
    independent("layer norm", &[x.clone(), scale, shift], |v| ops::layer_norm(&v[0], &v[1], &v[2], 1e-12));
    independent("gelu", &[x], |v| ops::gelu(&v[0]));
    let maps = random("maps", &[5, 7, 13, 11]);
    let (scale, shift) = (random("scale", &[7]), random("shift", &[7]));
    independent("batch norm", &[maps.clone(), scale, shift], |v| {
        Ok(ops::batch_norm(&v[0], &v[1], &v[2], 1e-5, true)?.y)
    });
    independent("max pool", std::slice::from_ref(&maps), |v| ops::max_pool2d(&v[0], 3, 2, 1));
    let rois: Vec<f32> =
        (0..20).flat_map(|i| [(i % 5) as f32, i as f32 / 3.0, 1.0, 9.0, 5.0 + i as f32 / 4.0]).collect();
    let rois = Tensor::from_vec(rois, (20, 5), &Device::Cpu).unwrap();
    let options = RoiAlign { spatial_scale: 0.9, output_size: 3, sampling_ratio: 0 };
    independent("roi align", &[maps], |v| ops::roi_align(&v[0], &rois, options));
}

#[test]
fn a_convolutions_sums_over_the_batch_differ_only_by_rounding() {
    let inputs = [random("x", &[7, 16, 20, 19]), random("w", &[33, 16, 3, 3]), random("b", &[33])];
    let f = |v: &[Var]| ops::conv2d(&v[0], &v[1], Some(&v[2]), 1, 1);
    let one = run(1, &inputs, f);
    for threads in [2, 3] {
        let more = run(threads, &inputs, f);
        assert_eq!(bits(&one[0]), bits(&more[0]), "values");
        assert_eq!(bits(&one[1]), bits(&more[1]), "gradient by the input");
        for which in [2, 3] {
            let far = (&one[which] - &more[which]).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let size = one[which].abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let (far, size) = (far.to_scalar::<f32>().unwrap(), size.to_scalar::<f32>().unwrap());
            assert!(far < 2e-6 * size, "gradient {which}: {far:e} of {size}");
        }
        let again = run(threads, &inputs, f);
        assert!(more.iter().zip(&again).all(|(a, b)| bits(a) == bits(b)), "differs between runs");
    }
}
