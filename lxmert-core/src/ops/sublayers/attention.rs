//! The attention sub-layer: `norm(x + dropout(attention(x, context) Wₒᵀ + bₒ))`.

use super::super::attention::{HeadsLayout, attention_probabilities, attention_weigh};
use super::super::cuda;
use super::super::dropout::apply_mask;
use super::super::dropout_mask::Mask;
use super::super::epilogue::{Epilogue, RowDropout};
use super::super::layer_norm::{self, Normed};
use super::super::linear::{linear_dw, linear_dx, linear_rows, linear_with};
use super::super::microkernel::Base;
use super::super::precision::Precision;
use super::super::ragged::Ragged;
use super::super::scratch::with_scratch;
use super::super::{contiguous_f32, cpu_tensor, hold, use_fast, use_reference};
use super::parameters::Parameters;
use super::{Norm, Run, Weights, composed_output};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::{Mutex, PoisonError};

/// Receives the attention map, `[batch, heads, queries, keys]`, before dropout, and returns what is used instead.
pub type Watch<'a> = &'a (dyn Fn(Tensor) -> Result<Tensor> + Sync);

/// The sub-layer's weights and constants.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSublayer<'a> {
    /// Query, key and value projections, `[hidden, hidden]` and `[hidden]` each.
    pub projections: [Weights<'a>; 3],
    /// Number of heads; divides the width.
    pub heads: usize,
    /// The projection of the attended values, `[hidden, hidden]` and `[hidden]`.
    pub output: Weights<'a>,
    /// The layer norm at the end.
    pub norm: Norm<'a>,
    /// Dropout of the probabilities, and of the output before the residual.
    pub dropout: [f32; 2],
}

impl AttentionSublayer<'_> {
    /// `x`: ragged rows, `[rows, hidden]`; `context`: likewise, `[keys, hidden]`; it may be `x` itself. With `watch`
    /// the map is formed and passed to it.
    ///
    /// # Errors
    /// Returns an error if the shapes do not fit.
    pub fn forward(
        &self,
        (x, queries): (&Tensor, &Ragged),
        (context, keys): (&Tensor, &Ragged),
        run: &Run,
        watch: Option<Watch>,
    ) -> Result<Tensor> {
        let [q, k, v] = self.projections;
        let tensors = [q.0, q.1, k.0, k.1, v.0, v.1, self.output.0, self.output.1, self.norm.weight, self.norm.bias];
        let hidden = self.output.1.elem_count();
        let fits = [q, k, v, self.output].iter().all(|(w, b)| w.dims() == [hidden, hidden] && b.dims() == [hidden])
            && (self.norm.weight.dims(), self.norm.bias.dims()) == (&[hidden], &[hidden])
            && x.dims() == [queries.count(), hidden]
            && context.dims() == [keys.count(), hidden]
            && queries.batch() == keys.batch();
        if !fits || hidden == 0 || !hidden.is_multiple_of(self.heads.max(1)) {
            candle_core::bail!(
                "attention of {:?} over {:?}, {} heads, output {:?}",
                x.dims(),
                context.dims(),
                self.heads,
                self.output.0.dims()
            );
        }
        if watch.is_some() || !use_fast(&tensors) || !use_fast(&[x, context]) {
            return self.composed((x, queries), (context, keys), run, watch);
        }
        let parameters = Parameters::new(&tensors, run.prepacked)?;
        let node = parameters.node()?;
        let layout = HeadsLayout {
            heads: self.heads,
            width: hidden,
            queries: queries.clone(),
            keys: keys.clone(),
            dropout: run.mask(self.dropout[0]),
        };
        let op = Attention {
            keep: x.track_op() || context.track_op() || node.track_op(),
            itself: x.id() == context.id(),
            mask: run.mask(self.dropout[1]),
            eps: self.norm.eps,
            precision: run.precision,
            layout,
            parameters,
            saved: Mutex::new(Saved::default()),
        };
        x.contiguous()?.apply_op3(&context.contiguous()?, &node, op)
    }

    fn composed(
        &self,
        (x, queries): (&Tensor, &Ragged),
        (context, keys): (&Tensor, &Ragged),
        run: &Run,
        watch: Option<Watch>,
    ) -> Result<Tensor> {
        let project = |part: usize, x: &Tensor| {
            let (weight, bias) = self.projections[part];
            linear_with(x, weight, bias, run.precision)
        };
        let dropout = run.mask(self.dropout[0]);
        let width = self.output.1.elem_count();
        let fits = cuda::launches::Attention::fits(keys.length(), width / self.heads);
        if watch.is_none() && x.device().is_cuda() && !use_reference() && fits {
            // Projections of the same rows as columns of one product.
            let columns = |parts: &[Weights], x: &Tensor| {
                let (weights, biases): (Vec<_>, Vec<_>) = parts.iter().copied().unzip();
                linear_with(x, &Tensor::cat(&weights, 0)?, &Tensor::cat(&biases, 0)?, run.precision)
            };
            let (q, kv) = if x.id() == context.id() {
                let all = columns(&self.projections, x)?;
                (all.clone(), all)
            } else {
                (project(0, x)?, columns(&self.projections[1..], context)?)
            };
            let layout =
                HeadsLayout { heads: self.heads, width, queries: queries.clone(), keys: keys.clone(), dropout };
            if let Some(attended) = cuda::fused::attention(&q, &kv, &layout)? {
                return composed_output(x, &attended, self.output, &self.norm, self.dropout[1], queries, run);
            }
        }
        let (q, k, v) = (project(0, x)?, project(1, context)?, project(2, context)?);
        let (q, k, v) = (queries.scatter(&q)?, keys.scatter(&k)?, keys.scatter(&v)?);
        let map = attention_probabilities(&q, &k, self.heads, keys)?;
        let map = watch.map_or(Ok(map.clone()), |watch| watch(map))?;
        let map = dropout.map_or(Ok(map.clone()), |mask| apply_mask(&map, mask))?;
        let attended = queries.gather(&attention_weigh(&map, &v)?)?;
        composed_output(x, &attended, self.output, &self.norm, self.dropout[1], queries, run)
    }
}

/// Index of the output projection's weight among the parameters.
const OUTPUT: usize = 6;

struct Attention {
    keep: bool,
    /// Whether queries and context are one tensor, which then has a single gradient.
    itself: bool,
    mask: Option<Mask>,
    eps: f64,
    precision: Precision,
    layout: HeadsLayout,
    parameters: Parameters,
    saved: Mutex<Saved>,
}

/// Values for the backward pass.
#[derive(Default)]
struct Saved {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    normed: Normed,
}

impl Attention {
    fn dropout(&self) -> Option<RowDropout<'_>> {
        self.mask.map(|mask| RowDropout { mask, rows: self.layout.queries.rows(), width: self.layout.width })
    }

    /// `out = x wᵀ + b` with projection `part`.
    fn project(&self, part: usize, x: &[f32], out: &mut [f32]) -> Result<()> {
        let (w, b) = (self.parameters.hold(2 * part), self.parameters.hold(2 * part + 1));
        linear_rows(
            out,
            x,
            self.parameters.factor(2 * part, w.values()?),
            b.values()?,
            Epilogue::Nothing,
            self.precision,
        );
        Ok(())
    }

    /// Adds to `dx` the contribution of the projection's `grad`, and writes its weights' gradients.
    fn project_back(
        &self,
        part: usize,
        grad: &[f32],
        x: &[f32],
        dx: &mut [f32],
        weights: &mut [Vec<f32>],
    ) -> Result<()> {
        let (hidden, index) = (self.layout.width, 2 * part);
        let w = self.parameters.hold(index);
        linear_dx(dx, Base::Out, grad, w.values()?, hidden, Epilogue::Nothing, self.precision);
        let (dw, db) = weights.split_at_mut(index + 1);
        linear_dw(&mut dw[index], &mut db[0], grad, x, hidden, self.precision);
        Ok(())
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention-block"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        context: &CpuStorage,
        context_layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, context) = (contiguous_f32(x, x_layout)?, contiguous_f32(context, context_layout)?);
        let held: [_; 4] = std::array::from_fn(|i| self.parameters.hold(OUTPUT + i));
        let [w, b, weight, bias] = held.each_ref().map(|held| held.values());
        let (w, b, weight, bias) = (w?, b?, weight?, bias?);
        let mut out = vec![0.0f32; x.len()];
        let mut run = |q: &mut [f32], k: &mut [f32], v: &mut [f32], attended: &mut [f32]| -> Result<Normed> {
            self.project(0, x, q)?;
            self.project(1, context, k)?;
            self.project(2, context, v)?;
            attended.fill(0.0);
            self.layout.forward(attended, [q, k, v]);
            linear_rows(&mut out, attended, self.parameters.factor(OUTPUT, w), b, Epilogue::Nothing, self.precision);
            Ok(layer_norm::forward(&mut out, Some(x), weight, bias, self.eps, self.dropout(), self.keep))
        };
        if self.keep {
            let mut saved = Saved {
                q: vec![0.0; x.len()],
                k: vec![0.0; context.len()],
                v: vec![0.0; context.len()],
                attended: vec![0.0; x.len()],
                normed: Normed::default(),
            };
            saved.normed = run(&mut saved.q, &mut saved.k, &mut saved.v, &mut saved.attended)?;
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        } else {
            let sizes = [x.len(), context.len(), context.len(), x.len()];
            with_scratch(sizes, |[q, k, v, attended]| run(q, k, v, attended))?;
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        context: &Tensor,
        node: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let grad = grad.contiguous()?;
        let (x_held, context_held, grad_held) = (hold(x), hold(context), hold(&grad));
        let (xs, contexts, grads) = (x_held.values()?, context_held.values()?, grad_held.values()?);
        let (w_held, weight_held) = (self.parameters.hold(OUTPUT), self.parameters.hold(OUTPUT + 2));
        let (w, weight) = (w_held.values()?, weight_held.values()?);
        let hidden = weight.len();
        let mut weights: Vec<Vec<f32>> = (0..OUTPUT + 2).map(|i| self.parameters.zeros(i)).collect();
        let mut dx = vec![0.0f32; xs.len()];
        let mut dcontext = vec![0.0f32; if self.itself { 0 } else { contexts.len() }];
        let dropout = self.dropout();
        let dropped_len = if dropout.is_some() { xs.len() } else { 0 };
        let sizes = [dropped_len, xs.len(), xs.len(), contexts.len(), contexts.len()];
        let norms = with_scratch(sizes, |[dropped, dattended, dq, dk, dv]| -> Result<_> {
            let learned = self.parameters.is_learned(OUTPUT + 2);
            let norms = layer_norm::backward(&mut dx, dropped, grads, &saved.normed, weight, dropout, learned);
            let dout = if dropout.is_some() { &*dropped } else { dx.as_slice() };
            linear_dx(dattended, Base::Zero, dout, w, hidden, Epilogue::Nothing, self.precision);
            let (dw, db) = weights.split_at_mut(OUTPUT + 1);
            linear_dw(&mut dw[OUTPUT], &mut db[0], dout, &saved.attended, hidden, self.precision);
            for values in [&mut *dq, &mut *dk, &mut *dv] {
                values.fill(0.0);
            }
            self.layout.backward([dq, dk, dv], dattended, [&saved.q, &saved.k, &saved.v]);
            self.project_back(0, dq, xs, &mut dx, &mut weights)?;
            let into = if self.itself { &mut dx } else { &mut dcontext };
            self.project_back(1, dk, contexts, into, &mut weights)?;
            self.project_back(2, dv, contexts, into, &mut weights)?;
            Ok(norms)
        })?;
        weights.extend([norms.0, norms.1]);
        for (index, gradient) in weights.into_iter().enumerate() {
            self.parameters.set(index, gradient)?;
        }
        let dcontext = if self.itself { None } else { Some(cpu_tensor(dcontext, context.shape())?) };
        Ok((Some(cpu_tensor(dx, x.shape())?), dcontext, Some(node.zeros_like()?)))
    }
}
