//! The feed-forward sub-layer: `norm(x + dropout(dropout(act(x W₁ᵀ + b₁)) W₂ᵀ + b₂))`.

use super::super::activation::FusedActivation;
use super::super::cuda;
use super::super::dropout::mask_rows;
use super::super::dropout_mask::Mask;
use super::super::epilogue::{Epilogue, RowDropout};
use super::super::layer_norm::{self, Normed};
use super::super::linear::{linear_dw, linear_dx, linear_product, linear_rows, linear_with};
use super::super::microkernel::Base;
use super::super::precision::Precision;
use super::super::ragged::Ragged;
use super::super::scratch::with_scratch;
use super::super::{activate, contiguous_f32, cpu_tensor, hold, use_fast};
use super::parameters::Parameters;
use super::{Norm, Run, Weights, composed_output};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use candle_nn::Activation;
use std::sync::{Mutex, PoisonError};

/// The sub-layer's weights and constants.
#[derive(Clone, Copy, Debug)]
pub struct FeedForwardSublayer<'a> {
    /// `[inner, hidden]` and `[inner]`.
    pub first: Weights<'a>,
    /// The activation of the inner values.
    pub activation: Activation,
    /// `[hidden, inner]` and `[hidden]`.
    pub second: Weights<'a>,
    /// The layer norm at the end.
    pub norm: Norm<'a>,
    /// Dropout of the inner values, and of the output before the residual.
    pub dropout: [f32; 2],
}

impl FeedForwardSublayer<'_> {
    /// `x`: ragged rows, `[rows, hidden]`.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(&self, x: &Tensor, rows: &Ragged, run: &Run) -> Result<Tensor> {
        let tensors = [self.first.0, self.first.1, self.second.0, self.second.1, self.norm.weight, self.norm.bias];
        let (inner, hidden) = self.first.0.dims2()?;
        let fits = x.dims() == [rows.count(), hidden]
            && self.second.0.dims() == [hidden, inner]
            && self.first.1.dims() == [inner]
            && [self.second.1, self.norm.weight, self.norm.bias].iter().all(|t| t.dims() == [hidden]);
        if !fits || hidden == 0 || inner == 0 {
            candle_core::bail!(
                "a feed-forward of {:?} and {:?} on {:?}",
                self.first.0.dims(),
                self.second.0.dims(),
                x.dims()
            );
        }
        let activation = match FusedActivation::of(self.activation) {
            Some(activation) if use_fast(&tensors) && use_fast(&[x]) => activation,
            _ => return self.composed(x, rows, run),
        };
        let parameters = Parameters::new(&tensors, run.prepacked)?;
        let node = parameters.node()?;
        let op = FeedForward {
            keep: x.track_op() || node.track_op(),
            masks: self.dropout.map(|probability| run.mask(probability)),
            activation,
            eps: self.norm.eps,
            precision: run.precision,
            rows: rows.clone(),
            parameters,
            saved: Mutex::new(Saved::default()),
        };
        x.contiguous()?.apply_op2(&node, op)
    }

    /// `dropout(act(x W₁ᵀ + b₁))` by the device's kernel, where it applies.
    fn inner_on_device(
        &self,
        x: &Tensor,
        dropout: Option<(Mask, Option<&Ragged>)>,
        run: &Run,
    ) -> Result<Option<Tensor>> {
        let activation = match FusedActivation::of(self.activation) {
            Some(FusedActivation::Gelu) => 1,
            Some(FusedActivation::Relu) => 2,
            None => return Ok(None),
        };
        if !x.device().is_cuda() {
            return Ok(None);
        }
        let product = linear_product(x, self.first.0, run.precision)?;
        cuda::fused::activate(&product, Some(self.first.1), activation, dropout)
    }

    fn composed(&self, x: &Tensor, rows: &Ragged, run: &Run) -> Result<Tensor> {
        let mask = run.mask(self.dropout[0]);
        let inner = match self.inner_on_device(x, mask.map(|mask| (mask, Some(rows))), run)? {
            Some(inner) => inner,
            None => {
                let inner = activate(self.activation, &linear_with(x, self.first.0, self.first.1, run.precision)?)?;
                mask.map_or(Ok(inner.clone()), |mask| mask_rows(&inner, rows, mask))?
            }
        };
        composed_output(x, &inner, self.second, &self.norm, self.dropout[1], rows, run)
    }
}

struct FeedForward {
    keep: bool,
    masks: [Option<Mask>; 2],
    activation: FusedActivation,
    eps: f64,
    precision: Precision,
    rows: Ragged,
    parameters: Parameters,
    saved: Mutex<Saved>,
}

/// Values for the backward pass: the inner values after activation and dropout, their derivatives, and the normalised
/// output.
#[derive(Default)]
struct Saved {
    inner: Vec<f32>,
    derivatives: Vec<f32>,
    normed: Normed,
}

impl FeedForward {
    fn dropout(&self, which: usize, width: usize) -> Option<RowDropout<'_>> {
        self.masks[which].map(|mask| RowDropout { mask, rows: self.rows.rows(), width })
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
        let rows = self.rows.count();
        let (inner_width, hidden) = (b1.len(), b2.len());
        let mut out = vec![0.0f32; rows * hidden];
        let mut saved = Saved::default();
        let mut run = |inner: &mut [f32], derivative: Option<&mut [f32]>| {
            let dropout = self.dropout(0, inner_width);
            linear_rows(
                inner,
                x,
                self.parameters.factor(0, w1),
                b1,
                Epilogue::Activate { activation: self.activation, dropout, derivative },
                self.precision,
            );
            linear_rows(&mut out, inner, self.parameters.factor(2, w2), b2, Epilogue::Nothing, self.precision);
            layer_norm::forward(&mut out, Some(x), weight, bias, self.eps, self.dropout(1, hidden), self.keep)
        };
        if self.keep {
            let (mut inner, mut derivatives) = (vec![0.0; rows * inner_width], vec![0.0; rows * inner_width]);
            let normed = run(&mut inner, Some(&mut derivatives));
            saved = Saved { inner, derivatives, normed };
        } else {
            with_scratch([rows * inner_width], |[inner]| drop(run(inner, None)));
        }
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, node: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
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
            let learned = self.parameters.is_learned(4);
            let norms = layer_norm::backward(&mut dx, dropped, grads, &saved.normed, weight, dropout, learned);
            let dout = if dropout.is_some() { &*dropped } else { dx.as_slice() };
            linear_dw(&mut dw2, &mut db2, dout, &saved.inner, hidden, self.precision);
            linear_dx(dinner, Base::Zero, dout, w2, hidden, Epilogue::Times(&saved.derivatives), self.precision);
            linear_dw(&mut dw1, &mut db1, dinner, xs, inner_width, self.precision);
            linear_dx(&mut dx, Base::Out, dinner, w1, inner_width, Epilogue::Nothing, self.precision);
            norms
        });
        for (index, gradient) in [dw1, db1, dw2, db2, dweight, dbias].into_iter().enumerate() {
            self.parameters.set(index, gradient)?;
        }
        Ok((Some(cpu_tensor(dx, x.shape())?), Some(node.zeros_like()?)))
    }
}
