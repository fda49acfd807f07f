//! The attention sub-layer: `norm(x + dropout(attention(x, context) Wₒᵀ + bₒ))`.

use super::super::attention::HeadsLayout;
use super::super::bf16::Precision;
use super::super::dropout::{DropoutRng, Mask};
use super::super::finish::{Finish, RowDropout};
use super::super::matmul::Write;
use super::super::packed_weights::PackedWeights;
use super::super::packing::Packing;
use super::super::scratch::with_scratch;
use super::super::{contiguous_f32, cpu_tensor, hold, use_fast};
use super::norm::{self, Norm, Normed};
use super::parameters::Parameters;
use super::{Factor, Weights, linear, linear_dw, linear_dx};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::Mutex;

/// Query, key and value projections.
#[derive(Clone, Copy, Debug)]
pub enum Projections<'a> {
    /// Each its own `[hidden, hidden]` and `[hidden]`.
    Separate([Weights<'a>; 3]),
    /// One `[3 · hidden, hidden]` and `[3 · hidden]`, as in torch's `MultiheadAttention`.
    Joint(Weights<'a>),
}

/// The sub-layer's weights and constants.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBlock<'a> {
    /// Query, key and value projections.
    pub projections: Projections<'a>,
    /// Number of heads; divides the width.
    pub heads: usize,
    /// The projection of the attended values, `[hidden, hidden]` and `[hidden]`.
    pub output: Weights<'a>,
    /// The layer norm at the end.
    pub norm: Norm<'a>,
    /// Dropout of the probabilities, and of the output before the residual.
    pub dropout: [f32; 2],
    /// What the products with weights round their operands to.
    pub precision: Precision,
    /// Where the weights lie packed, if they do.
    pub packed: Option<&'a PackedWeights>,
}

impl AttentionBlock<'_> {
    /// `x`: the packed rows of the first packing, `[rows, hidden]`; `context`: those of the second, `[keys, hidden]`, which may
    /// be `x` itself.
    ///
    /// # Errors
    /// When the shapes do not fit, or a tensor is not f32 on the CPU.
    pub fn forward(
        &self,
        (x, queries): (&Tensor, &Packing),
        (context, keys): (&Tensor, &Packing),
        rng: Option<&DropoutRng>,
    ) -> Result<Tensor> {
        let mut tensors = match self.projections {
            Projections::Separate(parts) => parts.iter().flat_map(|(w, b)| [*w, *b]).collect(),
            Projections::Joint((w, b)) => vec![w, b],
        };
        tensors.extend([self.output.0, self.output.1, self.norm.weight, self.norm.bias]);
        let parameters = Parameters::new(&tensors)?;
        if !use_fast(&tensors) || !use_fast(&[x, context]) {
            candle_core::bail!("this kernel takes f32 tensors on the CPU");
        }
        let hidden = self.output.1.elem_count();
        let width =
            |w: &Tensor, b: &Tensor, times: usize| w.dims() == [times * hidden, hidden] && b.dims() == [times * hidden];
        let projections = match self.projections {
            Projections::Separate(parts) => parts.iter().all(|(w, b)| width(w, b, 1)),
            Projections::Joint((w, b)) => width(w, b, 3),
        };
        let fits = projections
            && width(self.output.0, self.output.1, 1)
            && (self.norm.weight.dims(), self.norm.bias.dims()) == (&[hidden], &[hidden])
            && x.dims() == [queries.count(), hidden]
            && context.dims() == [keys.count(), hidden]
            && queries.batch() == keys.batch();
        if !fits || hidden == 0 || !hidden.is_multiple_of(self.heads.max(1)) {
            candle_core::bail!(
                "attention of {:?} over {:?}, {} heads, output {:?}",
                x,
                context,
                self.heads,
                self.output.0
            );
        }
        let node = parameters.node()?;
        let mask = |p: f32| rng.filter(|_| p > 0.0).map(|rng| Mask::new(p, rng.next_key()));
        let layout = HeadsLayout {
            heads: self.heads,
            width: hidden,
            queries: queries.clone(),
            keys: keys.clone(),
            dropout: mask(self.dropout[0]),
        };
        let op = Attention {
            keep: x.track_op() || context.track_op() || node.track_op(),
            joint: matches!(self.projections, Projections::Joint(_)),
            itself: x.id() == context.id(),
            mask: mask(self.dropout[1]),
            eps: self.norm.eps,
            precision: self.precision,
            packed: self.packed.cloned(),
            layout,
            parameters,
            saved: Mutex::new(Saved::default()),
        };
        x.contiguous()?.apply_op3(&context.contiguous()?, &node, op)
    }
}

struct Attention {
    keep: bool,
    joint: bool,
    /// Whether queries and context are one tensor, which then takes one gradient.
    itself: bool,
    mask: Option<Mask>,
    eps: f64,
    precision: Precision,
    packed: Option<PackedWeights>,
    layout: HeadsLayout,
    parameters: Parameters,
    saved: Mutex<Saved>,
}

/// For the backward.
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

    /// Index of the output projection's weight among the parameters.
    fn output(&self) -> usize {
        if self.joint { 2 } else { 6 }
    }

    /// Where projection `part` lies: its weight's index, and the thirds before it.
    fn place(&self, part: usize) -> (usize, usize) {
        if self.joint { (0, part) } else { (2 * part, 0) }
    }

    /// `out = x wᵀ + b` by projection `part`.
    fn project(&self, part: usize, x: &[f32], out: &mut [f32]) -> Result<()> {
        let hidden = self.layout.width;
        let (index, third) = self.place(part);
        let (w, b) = (self.parameters.hold(index), self.parameters.hold(index + 1));
        let size = hidden * hidden;
        let w = self.factor((index, third), &w.values()?[third * size..][..size]);
        linear(out, x, w, &b.values()?[third * hidden..][..hidden], Finish::Nothing, self.precision);
        Ok(())
    }

    /// Part `part` of weight `index`, whose values those are.
    fn factor<'a>(&'a self, (index, part): (usize, usize), values: &'a [f32]) -> Factor<'a> {
        Factor { values, id: (self.parameters.id(index), part), packed: self.packed.as_ref() }
    }

    /// Adds to `dx` what the projection's `grad` gives, and writes its weights' gradients.
    fn project_back(
        &self,
        part: usize,
        grad: &[f32],
        x: &[f32],
        dx: &mut [f32],
        weights: &mut [Vec<f32>],
    ) -> Result<()> {
        let hidden = self.layout.width;
        let (index, third) = self.place(part);
        let size = hidden * hidden;
        let w = self.parameters.hold(index);
        linear_dx(dx, Write::Add, grad, &w.values()?[third * size..][..size], hidden, Finish::Nothing, self.precision);
        let (dw, db) = weights.split_at_mut(index + 1);
        linear_dw(
            &mut dw[index][third * size..][..size],
            &mut db[0][third * hidden..][..hidden],
            grad,
            x,
            self.precision,
        );
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
        let output = self.output();
        let held: [_; 4] = std::array::from_fn(|i| self.parameters.hold(output + i));
        let [w, b, weight, bias] = held.each_ref().map(|held| held.values());
        let (w, b, weight, bias) = (w?, b?, weight?, bias?);
        let mut out = vec![0.0f32; x.len()];
        let mut run = |q: &mut [f32], k: &mut [f32], v: &mut [f32], attended: &mut [f32]| -> Result<Normed> {
            self.project(0, x, q)?;
            self.project(1, context, k)?;
            self.project(2, context, v)?;
            attended.fill(0.0);
            self.layout.forward(attended, q, k, v, None);
            linear(&mut out, attended, self.factor((output, 0), w), b, Finish::Nothing, self.precision);
            Ok(norm::forward(&mut out, x, weight, bias, self.eps, self.dropout(), self.keep))
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
            if let Ok(mut place) = self.saved.lock() {
                *place = saved;
            }
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
        let saved =
            self.saved.lock().map_err(|_| candle_core::Error::Msg("a saved state's lock is poisoned".into()))?;
        let grad = grad.contiguous()?;
        let (x_held, context_held, grad_held) = (hold(x), hold(context), hold(&grad));
        let (xs, contexts, grads) = (x_held.values()?, context_held.values()?, grad_held.values()?);
        let output = self.output();
        let (w_held, weight_held) = (self.parameters.hold(output), self.parameters.hold(output + 2));
        let (w, weight) = (w_held.values()?, weight_held.values()?);
        let hidden = weight.len();
        let mut weights: Vec<Vec<f32>> = (0..output + 2).map(|i| self.parameters.zeros(i)).collect();
        let mut dx = vec![0.0f32; xs.len()];
        let mut dcontext = vec![0.0f32; if self.itself { 0 } else { contexts.len() }];
        let dropout = self.dropout();
        let dropped_len = if dropout.is_some() { xs.len() } else { 0 };
        let sizes = [dropped_len, xs.len(), xs.len(), contexts.len(), contexts.len()];
        let norms = with_scratch(sizes, |[dropped, dattended, dq, dk, dv]| -> Result<_> {
            let norms = norm::backward(&mut dx, dropped, grads, &saved.normed, weight, dropout);
            let dout = if dropout.is_some() { &*dropped } else { dx.as_slice() };
            linear_dx(dattended, Write::Replace, dout, w, hidden, Finish::Nothing, self.precision);
            let (dw, db) = weights.split_at_mut(output + 1);
            linear_dw(&mut dw[output], &mut db[0], dout, &saved.attended, self.precision);
            for values in [&mut *dq, &mut *dk, &mut *dv] {
                values.fill(0.0);
            }
            self.layout.backward(dq, dk, dv, dattended, &saved.q, &saved.k, &saved.v, None);
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
