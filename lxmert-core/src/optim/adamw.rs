//! AdamW (Loshchilov & Hutter 2019), as torch computes it: decoupled weight decay, bias
//! correction, epsilon outside the root.
//!
//! On the CPU, one pass over each parameter updates weight and moments in place; other devices compose the same formula
//! from tensor operations.

use super::clip::{clip_factor, global_norm};
use crate::ops::in_pool;
use crate::{Error, Result};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// The constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Fraction of the weight removed per step, times the learning rate.
    pub weight_decay: f64,
    /// Whether biases and norms decay too; off by default.
    pub decay_all: bool,
    /// Whether to correct the moments' bias towards their initial 0; BertAdam does not.
    pub bias_correction: bool,
}

impl AdamWConfig {
    /// BertAdam as used to train LXMERT (airsplay/lxmert, `lxrt/optimization.py`): no bias correction, epsilon 1e-6,
    /// weight decay 0.01 on every parameter.
    pub fn bert_adam() -> Self {
        Self { epsilon: 1e-6, decay_all: true, bias_correction: false, ..Self::default() }
    }
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, decay_all: false, bias_correction: true }
    }
}

struct Parameter {
    name: String,
    var: Var,
    decays: bool,
    /// Factor on the learning rate.
    rate: f64,
    moments: Moments,
}

enum Moments {
    Flat { first: Vec<f32>, second: Vec<f32> },
    Tensors { first: Tensor, second: Tensor },
}

/// What a step multiplies the gradients by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Clip {
    /// This.
    Scale(f64),
    /// What brings their norm down to the limit, if there is one.
    Limit(Option<f64>),
}

/// The global norm of a step's gradients.
#[derive(Debug, Clone)]
pub enum Norm {
    /// The number.
    Known(f64),
    /// `[1]`, f32, on a device that may not have computed it yet.
    OnDevice(Tensor),
}

/// The optimiser. Its parameters are sorted by name.
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Parameter>,
    step: u64,
}

/// Whether a parameter with this name decays by default: weights of linear layers and embeddings do, biases and layer
/// norms do not.
pub fn decays_by_default(name: &str) -> bool {
    let norm = crate::model::init::is_norm(name);
    // The student project's torch layers call their norms norm1, norm2, …
    let norm = norm || name.rsplit('.').nth(1).is_some_and(|module| module.starts_with("norm"));
    !norm && !name.ends_with("bias")
}

impl AdamW {
    /// Creates an optimiser at step 0 for these parameters, which must be f32.
    ///
    /// # Errors
    /// Returns an error if a parameter is not f32 or its moments cannot be allocated.
    pub fn new(config: AdamWConfig, parameters: BTreeMap<String, Var>) -> Result<Self> {
        let parameters = parameters
            .into_iter()
            .map(|(name, var)| {
                if var.dtype() != candle_core::DType::F32 {
                    return Err(Error::Argument(format!(
                        "{name}: AdamW trains f32 parameters, this one is {:?}",
                        var.dtype()
                    )));
                }
                let moments = if var.device().is_cpu() {
                    let count = var.elem_count();
                    Moments::Flat { first: vec![0.0; count], second: vec![0.0; count] }
                } else {
                    Moments::Tensors { first: var.zeros_like()?, second: var.zeros_like()? }
                };
                Ok(Parameter { decays: config.decay_all || decays_by_default(&name), name, var, rate: 1.0, moments })
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, parameters, step: 0 })
    }

    /// Multiplies the learning rate of each parameter, and so its decay, by what `factor` gives for its name.
    pub fn scale_rates(&mut self, factor: impl Fn(&str) -> f64) {
        self.parameters.iter_mut().for_each(|p| p.rate = factor(&p.name));
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The parameters, sorted by name.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.parameters.iter().map(|p| (p.name.as_str(), &p.var))
    }

    /// The gradients of these parameters in `gradients`, sorted by parameter name; `None` for a parameter that the loss
    /// does not depend on.
    pub fn gradients(&self, gradients: &GradStore) -> Vec<Option<Tensor>> {
        self.parameters.iter().map(|p| gradients.get(p.var.as_tensor()).cloned()).collect()
    }

    /// Takes one step at `learning_rate`. `gradients` are in the parameters' order and are multiplied by `scale` first
    /// (clipping). A parameter without a gradient stays unchanged, as in torch.
    ///
    /// # Errors
    /// Returns an error if the number of gradients is not that of the parameters, or a tensor operation fails.
    pub fn step(&mut self, gradients: &[Option<Tensor>], learning_rate: f64, scale: f64) -> Result<()> {
        self.take_step(gradients, learning_rate, Clip::Scale(scale)).map(drop)
    }

    /// As [`step`](Self::step), with the gradients scaled down to a global norm of at most `limit`, and not at all without one; their
    /// norm before. A device computes norm, factor and step without the host. A step whose norm is not finite changes no weight.
    ///
    /// # Errors
    /// As there.
    pub fn clipped_step(
        &mut self,
        gradients: &[Option<Tensor>],
        learning_rate: f64,
        limit: Option<f64>,
    ) -> Result<Norm> {
        self.take_step(gradients, learning_rate, Clip::Limit(limit))
    }

    fn take_step(&mut self, gradients: &[Option<Tensor>], learning_rate: f64, clip: Clip) -> Result<Norm> {
        let device = self.parameters.first().map_or(Device::Cpu, |p| p.var.device().clone());
        in_pool(&device, || self.take_step_in_pool(gradients, learning_rate, clip))
    }

    fn take_step_in_pool(&mut self, gradients: &[Option<Tensor>], learning_rate: f64, clip: Clip) -> Result<Norm> {
        if gradients.len() != self.parameters.len() {
            return Err(Error::Argument(format!(
                "{} gradients for {} parameters",
                gradients.len(),
                self.parameters.len()
            )));
        }
        self.step += 1;
        let correction = |beta: f64| if self.config.bias_correction { 1.0 - beta.powf(self.step as f64) } else { 1.0 };
        let (correction1, correction2) = (correction(self.config.beta1), correction(self.config.beta2));
        let config = self.config;
        let update = |decays: bool, learning_rate: f64| Update {
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            // From f64: 1 - 0.999 in f32 is off by 1.3e-5 of itself.
            rest1: (1.0 - config.beta1) as f32,
            rest2: (1.0 - config.beta2) as f32,
            keep: (1.0 - learning_rate * if decays { config.weight_decay } else { 0.0 }) as f32,
            step_size: (learning_rate / correction1) as f32,
            root_correction: correction2.sqrt() as f32,
            epsilon: config.epsilon as f32,
            scale: 1.0,
        };
        #[cfg(feature = "cuda")]
        if let Some(norm) = self.step_on_device(gradients, |p| update(p.decays, learning_rate * p.rate), clip)? {
            return Ok(Norm::OnDevice(norm));
        }
        let (norm, scale) = match clip {
            Clip::Scale(scale) => (0.0, scale),
            Clip::Limit(limit) => {
                let norm = global_norm(gradients.iter().flatten())?;
                (norm, clip_factor(norm, limit))
            }
        };
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients).filter(|_| norm.is_finite()) {
            let Some(gradient) = gradient else { continue };
            let update = Update { scale: scale as f32, ..update(parameter.decays, learning_rate * parameter.rate) };
            match &mut parameter.moments {
                Moments::Flat { first, second } => {
                    let gradient = gradient.contiguous()?;
                    let op = InPlace { update, moments: Mutex::new((first, second)) };
                    parameter.var.as_tensor().inplace_op2(&gradient, &op)?;
                }
                Moments::Tensors { first, second } => update.composed(&parameter.var, gradient, first, second)?,
            }
        }
        Ok(Norm::Known(norm))
    }

    /// All parameters by the device's kernels; none where they do not apply.
    #[cfg(feature = "cuda")]
    fn step_on_device(
        &self,
        gradients: &[Option<Tensor>],
        update: impl Fn(&Parameter) -> Update,
        clip: Clip,
    ) -> Result<Option<Tensor>> {
        use crate::ops::cuda::{launches::StepConstants, optimiser};
        let Some(first) = self.parameters.first() else { return Ok(None) };
        let Update { beta1, beta2, rest1, rest2, root_correction, epsilon, .. } = update(first);
        let constants = StepConstants { beta1, beta2, rest1, rest2, root_correction, epsilon };
        let mut parameters = Vec::with_capacity(self.parameters.len());
        for (p, gradient) in self.parameters.iter().zip(gradients) {
            let Moments::Tensors { first, second } = &p.moments else { return Ok(None) };
            let gradient = gradient.as_ref().map(Tensor::contiguous).transpose()?;
            let Update { keep, step_size, .. } = update(p);
            parameters.push(optimiser::Parameter {
                weight: p.var.as_tensor(),
                first,
                second,
                gradient,
                keep,
                step_size,
            });
        }
        Ok(optimiser::step(&parameters, &constants, clip)?)
    }

    /// The moments as tensors named `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, as in torch.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be made.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::with_capacity(2 * self.parameters.len());
        for p in &self.parameters {
            let (first, second) = match &p.moments {
                Moments::Flat { first, second } => (
                    Tensor::from_slice(first, p.var.shape(), p.var.device())?,
                    Tensor::from_slice(second, p.var.shape(), p.var.device())?,
                ),
                Moments::Tensors { first, second } => (first.clone(), second.clone()),
            };
            state.push((format!("exp_avg.{}", p.name), first));
            state.push((format!("exp_avg_sq.{}", p.name), second));
        }
        Ok(state)
    }

    /// Restores the moments that [`AdamW::state`] returned, and the number of steps taken.
    ///
    /// # Errors
    /// Returns an error if a moment is missing or has another shape than its parameter.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        for p in &mut self.parameters {
            let find = |kind: &str| -> Result<Tensor> {
                let key = format!("{kind}.{}", p.name);
                let tensor =
                    state.get(&key).ok_or_else(|| Error::Argument(format!("the training state lacks '{key}'")))?;
                if tensor.shape() != p.var.shape() {
                    return Err(Error::Argument(format!(
                        "the training state's '{key}' is {:?}, the parameter is {:?}",
                        tensor.dims(),
                        p.var.dims()
                    )));
                }
                Ok(tensor.to_device(p.var.device())?)
            };
            let (new_first, new_second) = (find("exp_avg")?, find("exp_avg_sq")?);
            match &mut p.moments {
                Moments::Flat { first, second } => {
                    *first = new_first.flatten_all()?.to_vec1()?;
                    *second = new_second.flatten_all()?.to_vec1()?;
                }
                Moments::Tensors { first, second } => (*first, *second) = (new_first, new_second),
            }
        }
        self.step = step;
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Update {
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    /// The factor that weight decay leaves of the weight.
    keep: f32,
    /// The learning rate divided by the first bias correction.
    step_size: f32,
    root_correction: f32,
    epsilon: f32,
    scale: f32,
}

impl Update {
    fn element(&self, weight: &mut f32, gradient: f32, first: &mut f32, second: &mut f32) {
        let g = gradient * self.scale;
        *first = self.beta1 * *first + self.rest1 * g;
        *second = self.beta2 * *second + self.rest2 * g * g;
        let root = second.sqrt() / self.root_correction + self.epsilon;
        *weight = *weight * self.keep - self.step_size * (*first / root);
    }

    fn composed(&self, var: &Var, gradient: &Tensor, first: &mut Tensor, second: &mut Tensor) -> Result<()> {
        let f = f64::from;
        let g = (gradient * f(self.scale))?;
        *first = ((&*first * f(self.beta1))? + (&g * f(self.rest1))?)?;
        *second = ((&*second * f(self.beta2))? + (g.sqr()? * f(self.rest2))?)?;
        let root = ((second.sqrt()? / f(self.root_correction))? + f(self.epsilon))?;
        let weight = ((var.as_tensor() * f(self.keep))? - (first.div(&root)? * f(self.step_size))?)?;
        Ok(var.set(&weight)?)
    }
}

struct InPlace<'a> {
    update: Update,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

/// Elements per unit of parallel work; a parameter of at most one unit is updated on the calling thread.
const PIECE: usize = 1 << 15;

impl InplaceOp2 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(weight), CpuStorage::F32(gradient)) = (weight, gradient) else {
            candle_core::bail!("adamw: weight and gradient must be f32")
        };
        let (Some((w0, w1)), Some((g0, g1))) =
            (weight_layout.contiguous_offsets(), gradient_layout.contiguous_offsets())
        else {
            candle_core::bail!("adamw: weight and gradient must be contiguous")
        };
        let mut moments = self.moments.lock().map_err(|_| candle_core::Error::Msg("adamw: a thread died".into()))?;
        let (first, second) = &mut *moments;
        let update = self.update;
        let pieces = weight[w0..w1].par_chunks_mut(PIECE).zip(gradient[g0..g1].par_chunks(PIECE));
        let pieces = pieces.zip(first.par_chunks_mut(PIECE)).zip(second.par_chunks_mut(PIECE));
        pieces.for_each(|(((w, g), m), v)| {
            for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                update.element(w, g, m, v);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn one(name: &str, values: &[f32]) -> (BTreeMap<String, Var>, Var) {
        let var = Var::new(values, &Device::Cpu).unwrap();
        (BTreeMap::from([(name.to_string(), var.clone())]), var)
    }

    /// torch 2: p = tensor([1., -2., 0.5]); AdamW([p], lr=0.1, weight_decay=0.01); gradients
    /// [0.1, -0.2, 0.3] then [-0.5, 0.25, 0.0].
    #[test]
    fn two_steps_equal_torch() {
        let (parameters, var) = one("dense.weight", &[1.0, -2.0, 0.5]);
        let mut adamw = AdamW::new(AdamWConfig::default(), parameters).unwrap();
        for gradient in [[0.1f32, -0.2, 0.3], [-0.5, 0.25, 0.0]] {
            adamw.step(&[Some(Tensor::new(&gradient, &Device::Cpu).unwrap())], 0.1, 1.0).unwrap();
        }
        let got: Vec<f32> = var.to_vec1().unwrap();
        for (g, want) in got.iter().zip(TORCH) {
            assert!((g - want).abs() < 2e-7, "{got:?}");
        }
    }

    const TORCH: [f32; 3] = [0.957_936_4, -1.912_375_3, 0.332_094_7];

    /// airsplay/lxmert, lxrt/optimization.py, computed by hand in f64 for the same parameters and gradients: m and v
    /// without correction, update = m / (sqrt(v) + 1e-6) + 0.01 p, p -= lr update.
    #[test]
    fn two_steps_equal_bert_adam() {
        let start = [1.0f64, -2.0, 0.5];
        let (parameters, var) = one("dense.bias", &[1.0, -2.0, 0.5]);
        let mut adam = AdamW::new(AdamWConfig::bert_adam(), parameters).unwrap();
        let (mut p, mut m, mut v) = (start, [0f64; 3], [0f64; 3]);
        for gradient in [[0.1f32, -0.2, 0.3], [-0.5, 0.25, 0.0]] {
            adam.step(&[Some(Tensor::new(&gradient, &Device::Cpu).unwrap())], 0.01, 1.0).unwrap();
            for i in 0..3 {
                let g = f64::from(gradient[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                p[i] -= 0.01 * (m[i] / (v[i].sqrt() + 1e-6) + 0.01 * p[i]);
            }
        }
        let got: Vec<f32> = var.to_vec1().unwrap();
        for (g, want) in got.iter().zip(p) {
            assert!((f64::from(*g) - want).abs() < 5e-7, "{got:?}, not {p:?}");
        }
    }

    #[test]
    fn the_composition_equals_the_single_pass() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let (parameters, var) = one("dense.weight", &values);
        let mut adamw = AdamW::new(AdamWConfig::default(), parameters).unwrap();
        let composed = Var::new(values.as_slice(), &Device::Cpu).unwrap();
        let (mut m, mut v) = (composed.zeros_like().unwrap(), composed.zeros_like().unwrap());
        for step in 1..=5i32 {
            let g: Vec<f32> = (0..1000).map(|i| ((i + 7 * step) as f32 * 0.11).cos()).collect();
            let g = Tensor::new(g.as_slice(), &Device::Cpu).unwrap();
            adamw.step(&[Some(g.clone())], 1e-2, 0.5).unwrap();
            let update = Update {
                beta1: 0.9,
                beta2: 0.999,
                rest1: 0.1,
                rest2: 0.001,
                keep: 1.0 - 1e-2 * 0.01,
                step_size: (1e-2 / (1.0 - 0.9f64.powi(step))) as f32,
                root_correction: (1.0 - 0.999f64.powi(step)).sqrt() as f32,
                epsilon: 1e-8,
                scale: 0.5,
            };
            update.composed(&composed, &g, &mut m, &mut v).unwrap();
        }
        let far = (var.as_tensor() - composed.as_tensor())
            .unwrap()
            .abs()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(far < 1e-6, "{far}");
    }

    #[test]
    fn biases_and_norms_do_not_decay_unless_asked() {
        for (name, expected) in [
            ("lxmert.encoder.layer.0.output.dense.weight", true),
            ("lxmert.embeddings.word_embeddings.weight", true),
            ("lxmert.encoder.layer.0.output.dense.bias", false),
            ("lxmert.encoder.layer.0.output.LayerNorm.weight", false),
            ("lxmert.encoder.visn_fc.box_layer_norm.weight", false),
            ("text_encoder.layers.0.norm1.weight", false),
        ] {
            assert_eq!(decays_by_default(name), expected, "{name}");
            let zero = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
            for decay_all in [false, true] {
                let (parameters, var) = one(name, &[1.0]);
                let config = AdamWConfig { weight_decay: 0.5, decay_all, ..Default::default() };
                let mut adamw = AdamW::new(config, parameters).unwrap();
                adamw.step(&[Some(zero.clone())], 0.1, 1.0).unwrap();
                let weight = var.to_vec1::<f32>().unwrap()[0];
                assert_eq!(weight, if expected || decay_all { 0.95 } else { 1.0 }, "{name}");
            }
        }
    }

    #[test]
    fn a_scaled_rate_is_the_rate_of_its_parameter_alone() {
        let gradient = || Some(Tensor::new(&[0.1f32, -0.2], &Device::Cpu).unwrap());
        let step = |rate: f64, factor: f64| {
            let vars = ["a.weight", "b.weight"].map(|name| one(name, &[1.0, -2.0]));
            let parameters = vars.iter().flat_map(|(named, _)| named.clone()).collect();
            let mut adamw = AdamW::new(AdamWConfig { weight_decay: 0.5, ..Default::default() }, parameters).unwrap();
            adamw.scale_rates(|name| if name.starts_with('b') { factor } else { 1.0 });
            adamw.step(&[gradient(), gradient()], rate, 1.0).unwrap();
            vars.map(|(_, var)| var.to_vec1::<f32>().unwrap())
        };
        let ([a, b], [_, slow]) = (step(0.1, 0.25), step(0.025, 1.0));
        assert_eq!((&a, &b), (&step(0.1, 1.0)[0], &slow));
        assert_ne!(a, b);
    }

    #[test]
    fn a_restored_optimiser_continues_bit_for_bit() {
        let start = [0.3f32, -0.7, 1.1];
        let gradient = |i: i32| Some(Tensor::new(&[0.1f32 * i as f32, 0.2, -0.3], &Device::Cpu).unwrap());
        let (parameters, whole) = one("w", &start);
        let mut adamw = AdamW::new(AdamWConfig::default(), parameters).unwrap();
        for i in 0..4 {
            adamw.step(&[gradient(i)], 0.01, 1.0).unwrap();
        }
        let (parameters, halves) = one("w", &start);
        let mut first = AdamW::new(AdamWConfig::default(), parameters.clone()).unwrap();
        for i in 0..2 {
            first.step(&[gradient(i)], 0.01, 1.0).unwrap();
        }
        let state = first.state().unwrap().into_iter().collect();
        let mut second = AdamW::new(AdamWConfig::default(), parameters).unwrap();
        second.restore(&state, first.steps()).unwrap();
        for i in 2..4 {
            second.step(&[gradient(i)], 0.01, 1.0).unwrap();
        }
        assert_eq!(whole.to_vec1::<f32>().unwrap(), halves.to_vec1::<f32>().unwrap());
        assert!(second.restore(&BTreeMap::new(), 0).unwrap_err().to_string().contains("exp_avg.w"));
    }
}
