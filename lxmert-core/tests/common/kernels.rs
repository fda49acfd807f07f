//! Shared by the tests of kernels, here and in the crates above: numbers, distances, gradients, threads.

#![allow(dead_code)] // each test file uses part of it

use candle_core::{DType, Device, Result, Tensor, Var};
use lxmert_core::procedural;

/// Runs this file's tests, except those with a string of `skipped` in their names, in a child process with
/// `LXMERT_KERNELS=kernels`, since a process reads the variable only once.
pub fn passes_with(kernels: &str, skipped: &[&str]) {
    if std::env::var_os("LXMERT_KERNELS").is_some() {
        return; // the child itself, or a full run that already uses these kernels
    }
    let tests = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new(tests);
    // Candle's own pool spins; see `CommonArgs::start`.
    child.env("LXMERT_KERNELS", kernels).env("CANDLE_NUM_THREADS", "1");
    child.args(skipped.iter().flat_map(|test| ["--skip", test]));
    let child = child.output().unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && !output.contains(" 0 passed"), "with LXMERT_KERNELS={kernels}:\n{output}");
}

/// Numbers in −1..1 that depend only on `name` and their positions.
pub fn random(name: &str, shape: &[usize]) -> Tensor {
    procedural::tensor(name, shape, -1.0, 1.0, 5).unwrap()
}

/// The largest absolute difference.
pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let d = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    d.to_scalar().unwrap()
}

/// The largest difference relative to the largest value; 0 for empty tensors.
pub fn relative_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    if a.elem_count() == 0 {
        return 0.0;
    }
    let largest = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    largest(&(a - b).unwrap()) / largest(b).max(1e-6)
}

/// A variable of [`random`] numbers.
pub fn variable(name: &str, shape: &[usize]) -> Var {
    Var::from_tensor(&random(name, shape)).unwrap()
}

/// A scalar that weights every output differently, so that no gradient cancels.
pub fn weigh(y: &Tensor) -> Result<Tensor> {
    let weights = procedural::tensor("weights", y.dims(), -1.0, 1.0, 6)?.to_dtype(y.dtype())?;
    (y * weights)?.sum_all()
}

/// Central differences in f32 with step 1e-2: the truncation error is about 1e-4 of the third
/// derivative and the rounding error about 1e-7 / 1e-2; 2e-3 bounds both for values near 1.
pub fn check_gradients(inputs: &[&Var], f: impl Fn() -> Result<Tensor>) {
    let gradients = weigh(&f().unwrap()).unwrap().backward().unwrap();
    for (which, input) in inputs.iter().enumerate() {
        let gradient: Vec<f32> = gradients.get(input).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let original = input.as_tensor().copy().unwrap();
        let values: Vec<f32> = original.flatten_all().unwrap().to_vec1().unwrap();
        assert!(gradient.iter().any(|g| g.abs() > 1e-3), "input {which} gets no gradient");
        for i in (0..values.len()).step_by(values.len().div_ceil(12)) {
            let at = |delta: f32| -> f64 {
                let mut moved = values.clone();
                moved[i] += delta;
                input.set(&Tensor::from_vec(moved, original.dims(), &Device::Cpu).unwrap()).unwrap();
                let y = f().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let w = procedural::values("weights", y.len(), -1.0, 1.0, 6);
                y.iter().zip(&w).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
            };
            let numeric = ((at(1e-2) - at(-1e-2)) / 2e-2) as f32;
            assert!(
                (numeric - gradient[i]).abs() <= 2e-3 * (1.0 + numeric.abs()),
                "input {which} element {i}: {} by the op, {numeric} by differences",
                gradient[i]
            );
        }
        input.set(&original).unwrap();
    }
}

/// The largest difference from an f64 tensor; 0 if empty.
pub fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    if want.elem_count() == 0 {
        return 0.0;
    }
    let d = (got.to_dtype(DType::F64).unwrap() - want).unwrap().abs().unwrap();
    d.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// Checks that values and gradients of `f` for f32 inputs, where the kernels run, equal those for f64 inputs.
pub fn agrees_with_f64(inputs: &[Tensor], bound: f64, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |dtype| {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let gradients = weigh(&y).unwrap().backward().unwrap();
        let gradients: Vec<Tensor> =
            tensors.iter().map(|t| gradients.get(t).cloned().unwrap_or_else(|| t.zeros_like().unwrap())).collect();
        (y, gradients)
    };
    let ((y, gradients), (want, wanted)) = (run(DType::F32), run(DType::F64));
    assert!(distance(&y, &want) < bound, "values differ by {:e}", distance(&y, &want));
    for (i, (got, want)) in gradients.iter().zip(&wanted).enumerate() {
        let size = want.abs().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() / want.elem_count().max(1) as f64;
        let far = distance(got, want);
        assert!(far < bound * (1.0 + size), "gradient {i} differs by {far:e}");
    }
}

/// Runs `f` in a pool with this many threads.
pub fn in_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// The values' bits.
pub fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Values and gradients of `f` with this many threads.
pub fn run_in(threads: usize, inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor> + Sync) -> Vec<Tensor> {
    in_threads(threads, || {
        let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        let y = f(&vars).unwrap();
        let gradients = (&y * random("pull", y.dims())).unwrap().sum_all().unwrap().backward().unwrap();
        let by_inputs = vars.iter().map(|var| gradients.get(var).unwrap().clone());
        std::iter::once(y.detach()).chain(by_inputs).collect()
    })
}

/// Checks that values and gradients have the same bits with any number of threads.
pub fn independent(what: &str, inputs: &[Tensor], f: impl Fn(&[Var]) -> Result<Tensor> + Sync) {
    let one = run_in(1, inputs, &f);
    for threads in [2, 3, 5] {
        for (i, (a, b)) in one.iter().zip(run_in(threads, inputs, &f)).enumerate() {
            assert!(bits(a) == bits(&b), "{what} in {threads} threads: result {i}");
        }
    }
}
