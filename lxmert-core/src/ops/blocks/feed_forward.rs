//! The feed-forward sub-layer: `norm(x + dropout(dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂))`.

use super::super::bf16::Precision;
use super::super::dropout::{DropoutRng, Mask};
use super::super::finish::{Activation, Finish, RowDropout};
use super::super::matmul::Write;
use super::super::packed_weights::PackedWeights;
use super::super::packing::Packing;
use super::super::scratch::with_scratch;
use super::super::{contiguous_f32, cpu_tensor, hold, use_fast};
use super::norm::{self, Norm, Normed};
use super::parameters::Parameters;
use super::{Factor, Weights, linear, linear_dw, linear_dx};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use std::sync::Mutex;

/// The sub-layer's weights and constants.
#[derive(Clone, Copy, Debug)]
pub struct FeedForwardBlock<'a> {
    /// `[inner, hidden]` and `[inner]`.
    pub first: Weights<'a>,
    /// What the inner values go through.
    pub activation: Activation,
    /// `[hidden, inner]` and `[hidden]`.
    pub second: Weights<'a>,
    /// The layer norm at the end.
    pub norm: Norm<'a>,
    /// Dropout of the inner values, and of the output before the residual.
    pub dropout: [f32; 2],
    /// What the products with weights round their operands to.
    pub precision: Precision,
    /// Where the weights lie packed, if they do.
    pub packed: Option<&'a PackedWeights>,
}

impl FeedForwardBlock<'_> {
    /// `x`: the packed rows of `packing`, `[rows, hidden]`.
    ///
    /// # Errors
    /// When the shapes do not fit, or a tensor is not f32 on the CPU.
    pub fn forward(&self, x: &Tensor, packing: &Packing, rng: Option<&DropoutRng>) -> Result<Tensor> {
        let tensors = [self.first.0, self.first.1, self.second.0, self.second.1, self.norm.weight, self.norm.bias];
        let parameters = Parameters::new(&tensors)?;
        if !use_fast(&tensors) || !use_fast(&[x]) {
            candle_core::bail!("this kernel takes f32 tensors on the CPU");
        }
        let (inner, hidden) = self.first.0.dims2()?;
        let fits = x.dims() == [packing.count(), hidden]
            && self.second.0.dims() == [hidden, inner]
            && self.first.1.dims() == [inner]
            && [self.second.1, self.norm.weight, self.norm.bias].iter().all(|t| t.dims() == [hidden]);
        if !fits || hidden == 0 || inner == 0 {
            candle_core::bail!("a feed-forward of {:?} and {:?} on {:?}", self.first.0, self.second.0, x);
        }
        let node = parameters.node()?;
        let mask = |p: f32| rng.filter(|_| p > 0.0).map(|rng| Mask::new(p, rng.next_key()));
        let op = FeedForward {
            keep: x.track_op() || node.track_op(),
            masks: [mask(self.dropout[0]), mask(self.dropout[1])],
            activation: self.activation,
            eps: self.norm.eps,
            precision: self.precision,
            packed: self.packed.cloned(),
            packing: packing.clone(),
            parameters,
            saved: Mutex::new(Saved::default()),
        };
        x.contiguous()?.apply_op2(&node, op)
    }
}

struct FeedForward {
    keep: bool,
    masks: [Option<Mask>; 2],
    activation: Activation,
    eps: f64,
    precision: Precision,
    packed: Option<PackedWeights>,
    packing: Packing,
    parameters: Parameters,
    saved: Mutex<Saved>,
}

/// For the backward: the inner values after activation and dropout, their derivatives, and the normalised output.
#[derive(Default)]
struct Saved {
    inner: Vec<f32>,
    derivatives: Vec<f32>,
    normed: Normed,
}

impl FeedForward {
    fn dropout(&self, which: usize, width: usize) -> Option<RowDropout<'_>> {
        self.masks[which].map(|mask| RowDropout { mask, rows: self.packing.rows(), width })
    }

    /// Weight `index`, whose values those are.
    fn factor<'a>(&'a self, index: usize, values: &'a [f32]) -> Factor<'a> {
        Factor { values, id: (self.parameters.id(index), 0), packed: self.packed.as_ref() }
    }
}

impl CustomOp2 for FeedForward {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(x, x_layout)?;
        let held: [_; 6] = std::array::from_fn(|i| self.parameters.hold(i));
        let [w1, b1, w2, b2, weight, bias] = held.each_ref().map(|held| held.values());
        let (w1, b1, w2, b2, weight, bias) = (w1?, b1?, w2?, b2?, weight?, bias?);
        let rows = self.packing.count();
        let (inner_width, hidden) = (b1.len(), b2.len());
        let mut out = vec![0.0f32; rows * hidden];
        let mut saved = Saved::default();
        let mut run = |inner: &mut [f32], derivative: Option<&mut [f32]>| {
            let dropout = self.dropout(0, inner_width);
            linear(
                inner,
                x,
                self.factor(0, w1),
                b1,
                Finish::Activate { activation: self.activation, dropout, derivative },
                self.precision,
            );
            linear(&mut out, inner, self.factor(2, w2), b2, Finish::Nothing, self.precision);
            norm::forward(&mut out, x, weight, bias, self.eps, self.dropout(1, hidden), self.keep)
        };
        if self.keep {
            let (mut inner, mut derivatives) = (vec![0.0; rows * inner_width], vec![0.0; rows * inner_width]);
            let normed = run(&mut inner, Some(&mut derivatives));
            saved = Saved { inner, derivatives, normed };
        } else {
            with_scratch([rows * inner_width], |[inner]| drop(run(inner, None)));
        }
        if let Ok(mut place) = self.saved.lock() {
            *place = saved;
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, node: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let saved =
            self.saved.lock().map_err(|_| candle_core::Error::Msg("a saved state's lock is poisoned".into()))?;
        let grad = grad.contiguous()?;
        let (x_held, grad_held) = (hold(x), hold(&grad));
        let (xs, grads) = (x_held.values()?, grad_held.values()?);
        let held: [_; 6] = std::array::from_fn(|i| self.parameters.hold(i));
        let (w1, w2, weight) = (held[0].values()?, held[2].values()?, held[4].values()?);
        let (inner_width, hidden) = (held[1].values()?.len(), weight.len());
        let mut dx = vec![0.0f32; xs.len()];
        let (mut dw1, mut db1) = (self.parameters.zeros(0), self.parameters.zeros(1));
        let (mut dw2, mut db2) = (self.parameters.zeros(2), self.parameters.zeros(3));
        let dropout = self.dropout(1, hidden);
        let dropped_len = if dropout.is_some() { xs.len() } else { 0 };
        let (dweight, dbias) = with_scratch([dropped_len, saved.inner.len()], |[dropped, dinner]| {
            let norms = norm::backward(&mut dx, dropped, grads, &saved.normed, weight, dropout);
            let dout = if dropout.is_some() { &*dropped } else { dx.as_slice() };
            linear_dw(&mut dw2, &mut db2, dout, &saved.inner, self.precision);
            linear_dx(dinner, Write::Replace, dout, w2, hidden, Finish::Times(&saved.derivatives), self.precision);
            linear_dw(&mut dw1, &mut db1, dinner, xs, self.precision);
            linear_dx(&mut dx, Write::Add, dinner, w1, inner_width, Finish::Nothing, self.precision);
            norms
        });
        for (index, gradient) in [dw1, db1, dw2, db2, dweight, dbias].into_iter().enumerate() {
            self.parameters.set(index, gradient)?;
        }
        Ok((Some(cpu_tensor(dx, x.shape())?), Some(node.zeros_like()?)))
    }
}
