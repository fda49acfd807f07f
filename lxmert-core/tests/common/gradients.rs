//! Checks gradients against finite differences.

use super::random;
use candle_core::{Device, Result, Tensor, Var};
use lxmert_core::procedural;

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
