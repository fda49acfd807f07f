//! The fused sub-layers against their composition in f64 at any size, and their gradients against finite differences,
//! with and without padding, dropout and a separate context.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::Activation;
use common::kernels::{check_gradients, weigh};
use lxmert_core::ops::sublayers::{AttentionSublayer, FeedForwardSublayer, Norm, Run};
use lxmert_core::ops::{self, DropoutRng, Ragged};
use lxmert_core::procedural;
use proptest::prelude::*;

/// Items of these lengths, padded to the longest.
struct Rows {
    ragged: Ragged,
    batch: usize,
    length: usize,
}

impl Rows {
    fn new(lengths: &[usize]) -> Self {
        let (batch, length) = (lengths.len(), lengths.iter().max().copied().unwrap_or(0));
        let mask: Vec<f32> =
            lengths.iter().flat_map(|n| (0..length).map(move |i| if i < *n { 1.0 } else { 0.0 })).collect();
        let ragged = Ragged::of_mask(&Tensor::from_vec(mask, (batch, length), &Device::Cpu).unwrap()).unwrap();
        Self { ragged, batch, length }
    }

    /// Random rows, padding included.
    fn states(&self, name: &str, width: usize) -> Tensor {
        procedural::tensor(name, &[self.batch, self.length, width], -1.0, 1.0, 21).unwrap()
    }
}

fn variable(name: &str, shape: &[usize], low: f64, high: f64) -> Var {
    Var::from_tensor(&procedural::tensor(name, shape, low, high, 22).unwrap()).unwrap()
}

/// A weight as it is trained, and as the sub-layer sees it: the same variable, or a constant.
#[derive(Clone)]
struct Weight {
    name: &'static str,
    var: Var,
    seen: Tensor,
}

/// The weights of a sub-layer.
struct Weights(Vec<Weight>);

impl Weights {
    fn new(named: Vec<(&'static str, Var)>) -> Self {
        Self(named.into_iter().map(|(name, var)| Weight { name, seen: var.as_tensor().clone(), var }).collect())
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.0.iter().find(|weight| weight.name == name).unwrap().seen
    }

    fn pair(&self, weight: &str, bias: &str) -> (&Tensor, &Tensor) {
        (self.get(weight), self.get(bias))
    }

    fn norm(&self) -> Norm<'_> {
        Norm { weight: self.get("norm.weight"), bias: self.get("norm.bias"), eps: EPS }
    }

    fn vars(&self) -> Vec<&Var> {
        self.0.iter().map(|weight| &weight.var).collect()
    }

    fn in_f64(&self) -> Self {
        let wide = |weight: &Weight| Var::from_tensor(&weight.var.to_dtype(DType::F64).unwrap()).unwrap();
        Self::new(self.0.iter().map(|weight| (weight.name, wide(weight))).collect())
    }

    /// The same weights, all constant except one.
    fn frozen_but(&self, learning: &str) -> Self {
        let frozen = |weight: &Weight| match weight.name == learning {
            true => weight.clone(),
            false => Weight { seen: weight.seen.detach(), ..weight.clone() },
        };
        Self(self.0.iter().map(frozen).collect())
    }
}

/// Rows with little variance would magnify the rounding differences.
const EPS: f64 = 1e-2;

fn attention_weights(hidden: usize) -> Weights {
    let scale = 1.5 / (hidden as f64).sqrt();
    let matrix = |name| (name, variable(name, &[hidden, hidden], -scale, scale));
    let vector = |name| (name, variable(name, &[hidden], -0.3, 0.3));
    let mut weights = Vec::new();
    for (weight, bias) in
        [("q.weight", "q.bias"), ("k.weight", "k.bias"), ("v.weight", "v.bias"), ("out.weight", "out.bias")]
    {
        weights.extend([matrix(weight), vector(bias)]);
    }
    weights.push(("norm.weight", variable("norm.weight", &[hidden], 0.5, 1.5)));
    weights.push(vector("norm.bias"));
    Weights::new(weights)
}

struct Attention {
    heads: usize,
    dropout: [f32; 2],
}

impl Attention {
    fn rng(&self) -> Option<DropoutRng> {
        self.dropout.iter().any(|p| *p > 0.0).then(|| DropoutRng::new(5, 6))
    }

    fn sublayer<'a>(&self, w: &'a Weights) -> AttentionSublayer<'a> {
        AttentionSublayer {
            projections: [w.pair("q.weight", "q.bias"), w.pair("k.weight", "k.bias"), w.pair("v.weight", "v.bias")],
            heads: self.heads,
            output: w.pair("out.weight", "out.bias"),
            norm: w.norm(),
            dropout: self.dropout,
        }
    }

    /// Ragged rows in and out.
    fn fused(&self, w: &Weights, (x, queries): (&Tensor, &Rows), (context, keys): (&Tensor, &Rows)) -> Result<Tensor> {
        let rng = self.rng();
        let run = Run { rng: rng.as_ref(), ..Run::default() };
        self.sublayer(w).forward((x, &queries.ragged), (context, &keys.ragged), &run, None)
    }

    /// Padded rows in and out, of any type.
    fn composed(&self, w: &Weights, x: &Tensor, context: &Tensor, keys: &Rows) -> Result<Tensor> {
        let project = |part: usize, x: &Tensor| {
            let names = [("q.weight", "q.bias"), ("k.weight", "k.bias"), ("v.weight", "v.bias")][part];
            ops::linear(x, w.get(names.0), w.get(names.1))
        };
        let (q, k, v) = (project(0, x)?, project(1, context)?, project(2, context)?);
        let rng = self.rng();
        let map = ops::attention_probabilities(&q, &k, self.heads, &keys.ragged)?;
        let map = ops::dropout(&map, self.dropout[0], rng.as_ref())?;
        let attended = ops::attention_weigh(&map, &v)?;
        let out = ops::linear(&attended, w.get("out.weight"), w.get("out.bias"))?;
        let out = (x + ops::dropout(&out, self.dropout[1], rng.as_ref())?)?;
        ops::layer_norm(&out, w.get("norm.weight"), w.get("norm.bias"), EPS)
    }
}

fn feed_forward_weights(hidden: usize, inner: usize, activation: Activation) -> Weights {
    let first = 1.0 / hidden as f64;
    // Stay away from the ReLU's corner: every inner value is within 1 of 2 or −2.
    let bias: Vec<f32> = match activation {
        Activation::Relu => (0..inner).map(|i| if i % 3 == 0 { -2.0 } else { 2.0 }).collect(),
        _ => procedural::values("first.bias", inner, -1.0, 1.0, 22),
    };
    let second = 1.0 / (inner as f64).sqrt();
    Weights::new(vec![
        ("first.weight", variable("first.weight", &[inner, hidden], -first, first)),
        ("first.bias", Var::from_tensor(&Tensor::from_vec(bias, inner, &Device::Cpu).unwrap()).unwrap()),
        ("second.weight", variable("second.weight", &[hidden, inner], -second, second)),
        ("second.bias", variable("second.bias", &[hidden], -0.3, 0.3)),
        ("norm.weight", variable("norm.weight", &[hidden], 0.5, 1.5)),
        ("norm.bias", variable("norm.bias", &[hidden], -0.3, 0.3)),
    ])
}

fn feed_forward(w: &Weights, x: &Tensor, rows: &Rows, activation: Activation, dropout: [f32; 2]) -> Result<Tensor> {
    let sublayer = FeedForwardSublayer {
        first: w.pair("first.weight", "first.bias"),
        activation,
        second: w.pair("second.weight", "second.bias"),
        norm: w.norm(),
        dropout,
    };
    sublayer.forward(x, &rows.ragged, &Run { rng: Some(&DropoutRng::new(7, 8)), ..Run::default() })
}

fn composed_feed_forward(w: &Weights, x: &Tensor, activation: Activation, dropout: [f32; 2]) -> Result<Tensor> {
    let rng = DropoutRng::new(7, 8);
    let inner = ops::linear(x, w.get("first.weight"), w.get("first.bias"))?;
    let inner = ops::dropout(&ops::activate(activation, &inner)?, dropout[0], Some(&rng))?;
    let out = ops::linear(&inner, w.get("second.weight"), w.get("second.bias"))?;
    let out = (x + ops::dropout(&out, dropout[1], Some(&rng))?)?;
    ops::layer_norm(&out, w.get("norm.weight"), w.get("norm.bias"), EPS)
}

/// The gradients with respect to these variables of a sum that weights every value differently.
fn gradients(y: &Tensor, weights: &Tensor, variables: &[&Var]) -> Vec<Tensor> {
    let found = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let zeros = |var: &Var| var.zeros_like().unwrap();
    variables.iter().map(|var| found.get(var).cloned().unwrap_or_else(|| zeros(var))).collect()
}

/// Compares values and gradients of ragged rows in f32 with those of padded rows in f64. `states`: the inputs and their
/// rows.
fn agree(
    states: &[(&str, &Rows)],
    hidden: usize,
    weights: &Weights,
    fused: impl Fn(&Weights, &[&Var]) -> Result<Tensor>,
    composed: impl Fn(&Weights, &[&Var]) -> Result<Tensor>,
) {
    let gather = |rows: &Rows, x: &Tensor| rows.ragged.gather(&x.to_dtype(DType::F32).unwrap()).unwrap();
    let padded: Vec<Tensor> = states.iter().map(|(name, rows)| rows.states(name, hidden)).collect();
    let ragged: Vec<Var> =
        states.iter().zip(&padded).map(|((_, rows), x)| Var::from_tensor(&gather(rows, x)).unwrap()).collect();
    let padded: Vec<Var> = padded.iter().map(|x| Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap()).collect();
    let (ragged, padded): (Vec<&Var>, Vec<&Var>) = (ragged.iter().collect(), padded.iter().collect());
    let wide = weights.in_f64();
    let (got, want) = (fused(weights, &ragged).unwrap(), composed(&wide, &padded).unwrap());
    let rows = states[0].1;
    let pull = procedural::tensor("pull", got.dims(), -1.0, 1.0, 23).unwrap();
    let padded_pull = rows.ragged.scatter(&pull).unwrap().to_dtype(DType::F64).unwrap();
    let close = |what: &str, got: &Tensor, want: &Tensor| {
        if got.elem_count() > 0 {
            let most = |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            let (far, size) = (most((got - want).unwrap()), most(want.clone()));
            assert!(far <= 2e-5 * (1.0 + size), "{what}: {far:e} of {size}");
        }
    };
    close("values", &got, &gather(rows, &want));
    let by_inputs = gradients(&got, &pull, &ragged).into_iter().zip(gradients(&want, &padded_pull, &padded));
    for ((name, rows), (got, want)) in states.iter().zip(by_inputs) {
        close(name, &got, &gather(rows, &want));
    }
    let by_weights =
        gradients(&got, &pull, &weights.vars()).into_iter().zip(gradients(&want, &padded_pull, &wide.vars()));
    for (weight, (got, want)) in weights.0.iter().zip(by_weights) {
        close(weight.name, &got, &want.to_dtype(DType::F32).unwrap());
    }
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![proptest::collection::vec(1usize..8, 0..5), proptest::collection::vec(1usize..40, 1..4)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn self_attention_equals_its_composition(
        lengths in lengths(), heads in 1usize..4, head_width in prop_oneof![1usize..6, 15usize..18, Just(32)],
        dropout in prop_oneof![Just([0f32, 0.0]), Just([0.2, 0.3])],
    ) {
        let (rows, hidden) = (Rows::new(&lengths), heads * head_width);
        let block = Attention { heads, dropout };
        agree(
            &[("x", &rows)],
            hidden,
            &attention_weights(hidden),
            |w, x| block.fused(w, (x[0], &rows), (x[0], &rows)),
            |w, x| block.composed(w, x[0], x[0], &rows),
        );
    }

    #[test]
    fn cross_attention_equals_its_composition(
        lengths in proptest::collection::vec((1usize..20, 1usize..40), 0..4), heads in 1usize..4,
        head_width in prop_oneof![1usize..6, 15usize..18, Just(32)],
        dropout in prop_oneof![Just([0f32, 0.0]), Just([0.2, 0.3])],
    ) {
        let (queries, keys): (Vec<usize>, Vec<usize>) = lengths.into_iter().unzip();
        let (queries, keys, hidden) = (Rows::new(&queries), Rows::new(&keys), heads * head_width);
        let block = Attention { heads, dropout };
        agree(
            &[("x", &queries), ("context", &keys)],
            hidden,
            &attention_weights(hidden),
            |w, x| block.fused(w, (x[0], &queries), (x[1], &keys)),
            |w, x| block.composed(w, x[0], x[1], &keys),
        );
    }

    #[test]
    fn feed_forward_equals_its_composition(
        lengths in lengths(), hidden in prop_oneof![1usize..6, 31usize..34, Just(96)],
        inner in prop_oneof![1usize..6, 31usize..34, 95usize..98], relu: bool,
        dropout in prop_oneof![Just([0f32, 0.0]), Just([0.2, 0.3])],
    ) {
        let rows = Rows::new(&lengths);
        let activation = if relu { Activation::Relu } else { Activation::Gelu };
        agree(
            &[("x", &rows)],
            hidden,
            &feed_forward_weights(hidden, inner, activation),
            |w, x| feed_forward(w, x[0], &rows, activation, dropout),
            |w, x| composed_feed_forward(w, x[0], activation, dropout),
        );
    }
}

const PADDED: &[usize] = &[5, 2, 3];
const DENSE: &[usize] = &[3, 3];

fn ragged(rows: &Rows, name: &str, width: usize) -> Var {
    Var::from_tensor(&rows.ragged.gather(&rows.states(name, width)).unwrap()).unwrap()
}

#[test]
fn attention_matches_finite_differences_in_every_input_and_weight() {
    let hidden = 12;
    for (lengths, context_lengths) in [(PADDED, &[2, 6, 1][..]), (DENSE, &[4, 4])] {
        let (queries, keys) = (Rows::new(lengths), Rows::new(context_lengths));
        let (x, context) = (ragged(&queries, "x", hidden), ragged(&keys, "context", hidden));
        {
            for dropout in [[0.0, 0.0], [0.25, 0.25]] {
                let weights = attention_weights(hidden);
                let block = Attention { heads: 3, dropout };
                // The keys' bias adds the same number to all scores of a query, and its softmax cancels that.
                let (none, some): (Vec<_>, Vec<_>) = weights.0.iter().partition(|weight| weight.name == "k.bias");
                let some: Vec<&Var> = some.iter().map(|weight| &weight.var).collect();
                let of_itself = || block.fused(&weights, (&x, &queries), (&x, &queries));
                let of_context = || block.fused(&weights, (&x, &queries), (&context, &keys));
                check_gradients(&[&[&x], &some[..]].concat(), of_itself);
                check_gradients(&[&[&x, &context], &some[..]].concat(), of_context);
                for weight in none {
                    let gradients = weigh(&of_context().unwrap()).unwrap().backward().unwrap();
                    let most = gradients.get(&weight.var).unwrap().abs().unwrap().max(0).unwrap();
                    assert!(most.to_scalar::<f32>().unwrap() < 1e-6);
                }
            }
        }
    }
}

#[test]
fn feed_forward_matches_finite_differences_in_every_input_and_weight() {
    for lengths in [PADDED, DENSE] {
        let rows = Rows::new(lengths);
        let x = ragged(&rows, "x", 12);
        for activation in [Activation::Gelu, Activation::Relu] {
            for dropout in [[0.0, 0.0], [0.25, 0.25]] {
                let weights = feed_forward_weights(12, 20, activation);
                let inputs = [&[&x], &weights.vars()[..]].concat();
                check_gradients(&inputs, || feed_forward(&weights, &x, &rows, activation, dropout));
            }
        }
    }
}

#[test]
fn a_weight_gets_the_same_gradient_if_the_others_are_frozen() {
    let rows = Rows::new(PADDED);
    let x = ragged(&rows, "x", 12);
    let still = x.as_tensor().detach();
    let block = Attention { heads: 2, dropout: [0.0, 0.0] };
    let attention = attention_weights(12);
    let feeding = feed_forward_weights(12, 20, Activation::Gelu);
    let attend = |w: &Weights, x: &Tensor| block.fused(w, (x, &rows), (x, &rows)).unwrap();
    let feed = |w: &Weights, x: &Tensor| feed_forward(w, x, &rows, Activation::Gelu, [0.0, 0.0]).unwrap();
    let check = |weights: &Weights, run: &dyn Fn(&Weights, &Tensor) -> Tensor| {
        let all = weigh(&run(weights, &x)).unwrap().backward().unwrap();
        for Weight { name, var, .. } in &weights.0 {
            let gradients = weigh(&run(&weights.frozen_but(name), &still)).unwrap().backward().unwrap();
            assert_eq!(common::kernels::difference(gradients.get(var).unwrap(), all.get(var).unwrap()), 0.0, "{name}");
        }
    };
    check(&attention, &attend);
    check(&feeding, &feed);
}

#[test]
fn kernels_of_other_cpus_pass() {
    for kernels in ["avx2", "plain"] {
        common::kernels::passes_with(kernels, &["kernels_of_other_cpus"]);
    }
}
