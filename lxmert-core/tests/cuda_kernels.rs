//! The CUDA kernels without a GPU: each is held against the CPU's operation on the same inputs, launched as the device launches it
//! (`ops::cuda::launches`). Every launch runs with its threads in either order and must give the same bits. A detector's are held
//! against `lxmert-extract`'s, in its tests.

#![cfg(unix)]

mod cuda_on_cpu;

use candle_core::{DType, Device, Result, Tensor, Var};
use cuda_on_cpu::Library;
use half::bf16;
use lxmert_core::ops::cuda::launches::{self, Argument, Chunks, Dropout, Element, Launch, PIECE, StepConstants};
use lxmert_core::ops::{self, DropoutRng, Ragged};
use lxmert_core::optim::{self, AdamW, AdamWConfig, Norm};
use lxmert_core::procedural;
use std::collections::BTreeMap;

/// Values as a kernel reads or writes them.
#[derive(Clone)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// Values behind an output that no kernel may touch.
const GUARD: usize = 16;

impl Values {
    fn new(element: Element, values: &[f32]) -> Self {
        match element {
            Element::F32 => Self::F32(values.to_vec()),
            Element::Bf16 => Self::Bf16(values.iter().map(|v| bf16::from_f32(*v)).collect()),
        }
    }

    /// For a kernel to fill: NaN, which shows what it left out.
    fn output(element: Element, count: usize) -> Self {
        Self::new(element, &vec![f32::NAN; count + GUARD])
    }

    fn of(element: Element, name: &str, count: usize) -> Self {
        Self::new(element, &procedural::values(name, count, -1.5, 1.5, 7))
    }

    fn address(&self) -> u64 {
        match self {
            Self::F32(values) => values.as_ptr() as u64,
            Self::Bf16(values) => values.as_ptr() as u64,
        }
    }

    fn read(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.clone(),
            Self::Bf16(values) => values.iter().map(|v| v.to_f32()).collect(),
        }
    }

    /// What a kernel wrote.
    fn written(&self) -> Vec<f32> {
        let mut values = self.read();
        let guard = values.split_off(values.len() - GUARD);
        assert!(guard.iter().all(|v| v.is_nan()), "a kernel wrote past its output");
        values
    }

    fn tensor(&self, shape: (usize, usize)) -> Tensor {
        Tensor::from_vec(self.read(), shape, &Device::Cpu).unwrap()
    }
}

/// Runs the launches with the threads in either order, from the same state; both must leave the same bits in the outputs.
fn run(library: &Library, launches: &[Launch], outputs: &mut [&mut Values]) {
    let before: Vec<Values> = outputs.iter().map(|values| (**values).clone()).collect();
    launches.iter().for_each(|launch| library.launch(launch, false));
    let after: Vec<Vec<u32>> = outputs.iter().map(|v| v.read().iter().map(|v| v.to_bits()).collect()).collect();
    for (output, before) in outputs.iter_mut().zip(before) {
        // In place: the launches hold the addresses.
        match (&mut **output, before) {
            (Values::F32(output), Values::F32(before)) => output.copy_from_slice(&before),
            (Values::Bf16(output), Values::Bf16(before)) => output.copy_from_slice(&before),
            _ => unreachable!(),
        }
    }
    launches.iter().for_each(|launch| library.launch(launch, true));
    for (output, after) in outputs.iter().zip(after) {
        let reversed: Vec<u32> = output.read().iter().map(|v| v.to_bits()).collect();
        assert!(reversed == after, "{}: depends on the order of threads", launches[0].kernel);
    }
}

/// f32: within 1e-5 of the largest value; bf16: within its rounding, 2⁻⁸ of each value, and of the largest for what values before
/// it were rounded to.
fn assert_close(got: &[f32], want: &Tensor, element: Element, what: &str) {
    let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let bound = match element {
            Element::F32 => 1e-5 * largest.max(1e-3),
            Element::Bf16 => (w.abs() + largest) / 256.0,
        };
        assert!((g - w).abs() <= bound, "{what}, {element:?}: value {i} is {g}, not {w} (largest {largest})");
    }
}

/// The gradients of `Σ y · grad`.
fn gradients(y: &Tensor, grad: &Tensor, of: &[&Var]) -> Vec<Tensor> {
    let store = (y * grad).unwrap().sum_all().unwrap().backward().unwrap();
    of.iter().map(|var| store.get(var).unwrap().clone()).collect()
}

fn var(values: &Values, shape: (usize, usize)) -> Var {
    Var::from_tensor(&values.tensor(shape)).unwrap()
}

fn flat(values: &Values) -> Var {
    Var::from_tensor(&Tensor::from_vec(values.read(), values.read().len(), &Device::Cpu).unwrap()).unwrap()
}

/// Ragged rows of items of these lengths; an item of length 0 is all padding, and keeps its rows.
fn ragged(lengths: &[usize], length: usize) -> Ragged {
    let mask: Vec<u32> = lengths.iter().flat_map(|n| (0..length).map(move |i| u32::from(i < *n))).collect();
    Ragged::of_mask(&Tensor::from_vec(mask, (lengths.len(), length), &Device::Cpu).unwrap()).unwrap()
}

/// A dropout call as the CPU draws it and as the device is told of it.
fn dropout(probability: f32, step: u64) -> (DropoutRng, Dropout) {
    let key = DropoutRng::new(3, step).next_key();
    (DropoutRng::new(3, step), if probability > 0.0 { Dropout::new(probability, key) } else { Dropout::NONE })
}

const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];
const WIDTHS: [usize; 4] = [128, 256, 768, 1024];

#[test]
fn a_missing_barrier_shows_in_reverse_order() {
    let Some((library, _lock)) = Library::get() else { return };
    let out = vec![0.0f32; 64];
    let arguments = vec![Argument::Address(out.as_ptr() as u64)];
    let launch = Launch { kernel: "missing_barrier".into(), grid: [1, 1, 1], threads: 64, shared: 0, arguments };
    library.launch(&launch, false);
    let forward = out.clone();
    library.launch(&launch, true);
    assert_ne!(forward, out);
}

#[test]
fn dropout_masks_are_the_cpu_s_bit_for_bit() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    for (lengths, width) in [(&[3usize, 0, 1, 2][..], 128), (&[5], 1), (&[36; 9], 768)] {
        let rows = ragged(lengths, *lengths.iter().max().unwrap());
        let (rng, dropout) = dropout(0.1, 11);
        let x = Tensor::ones((rows.count(), width), DType::F32, &Device::Cpu)?;
        let want: Vec<f32> = ops::dropout_rows(&x, &rows, 0.1, Some(&rng))?.flatten_all()?.to_vec1()?;
        let ones = Values::new(Element::F32, &vec![1.0; rows.count() * width]);
        let mut y = Values::output(Element::F32, want.len());
        let launch = launches::Activate {
            x: ones.address(),
            bias: 0,
            rows: rows.rows().as_ptr() as u64,
            count: want.len() as u64,
            width: width as u32,
            activation: 0,
            dropout,
        };
        run(library, &[launch.forward(Element::F32, y.address())], &mut [&mut y]);
        assert!(y.written() == want, "{lengths:?} of {width}");
    }
    Ok(())
}

#[test]
fn bias_activation_and_dropout_equal_the_cpu_s() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    for element in ELEMENTS {
        for (case, width) in WIDTHS.into_iter().enumerate() {
            let rows = match case % 3 {
                0 => ragged(&[1], 1),
                1 => ragged(&[3, 0, 2], 4),
                _ => Ragged::dense(1, 5),
            };
            let count = rows.count() * width;
            let activation = [1u32, 2, 1, 0][case];
            let (rng, dropout) = dropout([0.1f32, 0.5, 0.0, 0.1][case], case as u64);
            let [x, grad] = ["x", "grad"].map(|name| Values::of(element, name, count));
            let bias = Values::of(Element::F32, "bias", width);
            let (x_var, bias_var) = (var(&x, (rows.count(), width)), flat(&bias));
            let inner = x_var.as_tensor().broadcast_add(bias_var.as_tensor())?;
            let inner = match activation {
                1 => ops::gelu(&inner)?,
                2 => inner.relu()?,
                _ => inner,
            };
            let want = ops::dropout_rows(&inner, &rows, [0.1, 0.5, 0.0, 0.1][case], Some(&rng))?;
            let [dx, db] = &gradients(&want, &grad.tensor((rows.count(), width)), &[&x_var, &bias_var])[..] else {
                unreachable!()
            };

            let launch = launches::Activate {
                x: x.address(),
                bias: bias.address(),
                rows: rows.rows().as_ptr() as u64,
                count: count as u64,
                width: width as u32,
                activation,
                dropout,
            };
            let (mut y, mut back) = (Values::output(element, count), Values::output(element, count));
            run(library, &[launch.forward(element, y.address())], &mut [&mut y]);
            assert_close(&y.written(), &want, element, "y");
            run(library, &[launch.backward(element, [grad.address(), back.address()])], &mut [&mut back]);
            assert_close(&back.written(), dx, element, "dx");
            let sums = column_sums(library, element, &back, None, rows.count(), width);
            assert_close(&sums, db, element, "dbias");
        }
        let empty =
            launches::Activate { x: 0, bias: 0, rows: 0, count: 0, width: 8, activation: 1, dropout: Dropout::NONE };
        assert!(empty.forward(element, 0).is_empty());
    }
    Ok(())
}

/// The sums of `a`'s columns, times `b` if there is one.
fn column_sums(
    library: &Library,
    element: Element,
    a: &Values,
    b: Option<&Values>,
    rows: usize,
    width: usize,
) -> Vec<f32> {
    let chunks = Chunks::of_columns(rows as u32, width as u32);
    let mut partial = Values::output(Element::F32, chunks.count as usize * width);
    let mut sums = Values::output(Element::F32, width);
    let addresses = [a.address(), b.map_or(0, Values::address), partial.address()];
    let first = launches::column_sums(element, addresses, rows as u32, width as u32, chunks);
    let whole = Chunks { count: 1, size: chunks.count };
    let addresses = [partial.address(), 0, sums.address()];
    let second = launches::column_sums(Element::F32, addresses, chunks.count, width as u32, whole);
    run(library, &[first, second], &mut [&mut partial, &mut sums]);
    sums.written()
}

#[test]
fn norm_after_bias_dropout_and_residual_equals_the_cpu_s() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    for element in ELEMENTS {
        for (case, width) in WIDTHS.into_iter().enumerate() {
            let rows = match case % 3 {
                0 => ragged(&[1], 1),
                1 => ragged(&[3, 0, 2], 4),
                _ => Ragged::dense(1, 5),
            };
            let (height, count) = (rows.count(), rows.count() * width);
            let probability = [0.1f32, 0.5, 0.0, 0.1][case];
            let (rng, dropout) = dropout(probability, case as u64);
            let [x, residual, grad] = ["x", "residual", "grad"].map(|name| Values::of(element, name, count));
            let [bias, weight, shift] = ["bias", "weight", "shift"].map(|name| Values::of(Element::F32, name, width));
            let (x_var, residual_var) = (var(&x, (height, width)), var(&residual, (height, width)));
            let [bias_var, weight_var, shift_var] = [&bias, &weight, &shift].map(flat);
            let inner = x_var.as_tensor().broadcast_add(bias_var.as_tensor())?;
            let inner = (ops::dropout_rows(&inner, &rows, probability, Some(&rng))? + residual_var.as_tensor())?;
            let want = ops::layer_norm(&inner, weight_var.as_tensor(), shift_var.as_tensor(), 1e-12)?;
            let vars = [&x_var, &residual_var, &bias_var, &weight_var, &shift_var];
            let wanted = gradients(&want, &grad.tensor((height, width)), &vars);

            let [mut y, mut normed, mut dx, mut dropped] = std::array::from_fn(|_| Values::output(element, count));
            let mut scales = Values::output(Element::F32, height);
            let norm = launches::Norm {
                weight: weight.address(),
                rows: rows.rows().as_ptr() as u64,
                normed: normed.address(),
                scales: scales.address(),
                height: height as u32,
                width: width as u32,
                dropout,
            };
            let addresses = [x.address(), bias.address(), residual.address(), shift.address(), y.address()];
            run(library, &[norm.forward(element, addresses, 1e-12)], &mut [&mut y, &mut normed, &mut scales]);
            assert_close(&y.written(), &want, element, "y");
            let backward = norm.backward(element, [grad.address(), dx.address(), dropped.address()]);
            run(library, &[backward], &mut [&mut dx, &mut dropped]);
            let sums = |a: &Values, b: Option<&Values>| column_sums(library, element, a, b, height, width);
            assert_close(&dropped.written(), &wanted[0], element, "dx");
            assert_close(&dx.written(), &wanted[1], element, "dresidual");
            assert_close(&sums(&dropped, None), &wanted[2], element, "dbias");
            assert_close(&sums(&grad, Some(&normed)), &wanted[3], element, "dweight");
            assert_close(&sums(&grad, None), &wanted[4], element, "dshift");

            // Without a backward pass, bias and residual: the plain layer norm, which touches nothing else.
            let plain = launches::Norm { normed: 0, scales: 0, rows: 0, dropout: Dropout::NONE, ..norm };
            let mut y = Values::output(element, count);
            let addresses = [x.address(), 0, 0, shift.address(), y.address()];
            run(library, &[plain.forward(element, addresses, 1e-12)], &mut [&mut y]);
            let want = ops::layer_norm(x_var.as_tensor(), weight_var.as_tensor(), shift_var.as_tensor(), 1e-12)?;
            assert_close(&y.written(), &want, element, "plain norm");
            assert!(launches::Norm { height: 0, ..norm }.backward(element, [0; 3]).is_empty());
        }
    }
    Ok(())
}

#[test]
fn attention_equals_the_cpu_s() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    // Query and key lengths of each item, padded lengths, heads and their width: 1, 36 and 64 keys, items that are all padding,
    // more queries than a tile has, and heads that are no multiple of a warp; the last is of rows to themselves.
    type Case<'a> = (&'a [usize], usize, &'a [usize], usize, usize, usize);
    let cases: [Case; 6] = [
        (&[1], 1, &[1], 1, 2, 64),
        (&[3, 0, 11], 12, &[36, 5, 0], 36, 2, 64),
        (&[2, 9], 9, &[64, 33], 64, 1, 64),
        (&[4, 0], 4, &[2, 3], 4, 4, 20),
        (&[7], 8, &[31], 32, 2, 128),
        (&[3, 0, 11], 12, &[3, 0, 11], 12, 3, 64),
    ];
    for element in ELEMENTS {
        for (case, (queries, q_length, keys, k_length, heads, d)) in cases.into_iter().enumerate() {
            assert!(launches::Attention::fits(k_length, d));
            let itself = queries == keys;
            let (queries, keys, width) = (ragged(queries, q_length), ragged(keys, k_length), heads * d);
            let probability = [0.1f32, 0.1, 0.0, 0.5, 0.1, 0.1][case];
            let (rng, dropout) = dropout(probability, case as u64);
            let [q, grad] = ["q", "grad"].map(|name| Values::of(element, name, queries.count() * width));
            // k and v as columns of one product, with q where rows attend to themselves.
            let wide = if itself { 3 } else { 2 };
            let kv = Values::of(element, "kv", keys.count() * wide * width);
            let (q_var, kv_var) = (var(&q, (queries.count(), width)), var(&kv, (keys.count(), wide * width)));
            let columns = |i: usize| kv_var.as_tensor().narrow(1, i * width, width)?.contiguous();
            let half = |i: usize| keys.scatter(&columns(wide - 2 + i)?);
            let q_rows = if itself { columns(0)? } else { q_var.as_tensor().clone() };
            let map = ops::attention_probabilities(&queries.scatter(&q_rows)?, &half(0)?, heads, &keys)?;
            let map = ops::dropout(&map, probability, Some(&rng))?;
            let want = queries.gather(&ops::attention_weigh(&map, &half(1)?)?)?;
            let vars = [&kv_var, &q_var];
            let wanted = gradients(&want, &grad.tensor((queries.count(), width)), &vars[..if itself { 1 } else { 2 }]);

            let starts = |rows: &Ragged| rows.starts().iter().map(|s| *s as u32).collect::<Vec<u32>>();
            let (q_starts, k_starts) = (starts(&queries), starts(&keys));
            let size = if element == Element::F32 { 4 } else { 2 };
            let step = (size * width) as u64;
            let first_key = if itself { step } else { 0 };
            let attention = launches::Attention {
                q: if itself { kv.address() } else { q.address() },
                k: kv.address() + first_key,
                v: kv.address() + first_key + step,
                q_starts: q_starts.as_ptr() as u64,
                k_starts: k_starts.as_ptr() as u64,
                q_rows: queries.rows().as_ptr() as u64,
                k_rows: keys.rows().as_ptr() as u64,
                q_stride: if itself { 3 * width } else { width } as u32,
                kv_stride: (wide * width) as u32,
                batch: queries.batch() as u32,
                heads: heads as u32,
                d: d as u32,
                q_length: q_length as u32,
                k_length: k_length as u32,
                dropout,
            };
            let [mut out, mut dq] = std::array::from_fn(|_| Values::output(element, queries.count() * width));
            let mut dkv = Values::output(element, keys.count() * wide * width);
            run(library, &[attention.forward(element, out.address())], &mut [&mut out]);
            assert_close(&out.written(), &want, element, &format!("attention {case}"));
            let dk = dkv.address() + first_key;
            let dq_place = if itself { dkv.address() } else { dq.address() };
            let backward = attention.backward(element, [grad.address(), dq_place, dk, dk + step]);
            run(library, &[backward], &mut [&mut dq, &mut dkv]);
            if !itself {
                assert_close(&dq.written(), &wanted[1], element, &format!("dq {case}"));
            }
            assert_close(&dkv.written(), &wanted[0], element, &format!("dk and dv {case}"));
            assert!(launches::Attention { batch: 0, ..attention }.forward(element, 0).is_empty());
        }
    }
    assert!(
        !launches::Attention::fits(65, 64) && !launches::Attention::fits(64, 96) && !launches::Attention::fits(0, 64)
    );
    Ok(())
}

#[test]
fn embedding_gradients_equal_the_cpu_s() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    // A vocabulary, where one row takes most ids, and a table of two rows, which the ids' chunks share; no id, and one.
    for (table, count, width) in [(40usize, 300usize, 128usize), (2, 700, 256), (3, 0, 128), (5, 1, 1024)] {
        let ids: Vec<u32> =
            (0..count as u32).map(|i| if i % 3 == 0 { 1 } else { i.wrapping_mul(7919) % table as u32 }).collect();
        for element in ELEMENTS {
            let grad = Values::of(element, "grad", count * width);
            let weights = Var::zeros((table, width), DType::F32, &Device::Cpu)?;
            let want = if count == 0 {
                weights.as_tensor().clone()
            } else {
                let ids = Tensor::from_slice(&ids, count, &Device::Cpu)?;
                let y = ops::embedding(weights.as_tensor(), &ids)?;
                gradients(&y, &grad.tensor((count, width)), &[&weights]).remove(0)
            };
            let chunks = Chunks::of_table(count as u32, table as u32);
            let mut partial = Values::output(Element::F32, chunks.count as usize * table * width);
            let mut sums = Values::output(Element::F32, table * width);
            let addresses = [ids.as_ptr() as u64, grad.address(), partial.address()];
            let sizes = (table as u32, width as u32);
            let first = launches::embedding_backward(element, addresses, count as u32, sizes, chunks);
            let whole = Chunks { count: 1, size: chunks.count };
            let addresses = [partial.address(), 0, sums.address()];
            let columns = (table * width) as u32;
            let second = launches::column_sums(Element::F32, addresses, chunks.count, columns, whole);
            run(library, &[first, second], &mut [&mut partial, &mut sums]);
            // The same values summed, in f32: no rounding of bf16's.
            assert_close(&sums.written(), &want, Element::F32, &format!("{count} ids of {table}"));
        }
    }
    assert_eq!(Chunks::of_table(5120, 30_522).count, 1);
    assert!(Chunks::of_table(5120, 2).count > 64);
    Ok(())
}

#[test]
fn column_sums_hold_for_no_row_and_for_many() -> Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    for (rows, width) in [(0usize, 128usize), (1, 1), (1000, 33), (130, 1024)] {
        for element in ELEMENTS {
            let [a, b] = ["a", "b"].map(|name| Values::of(element, name, rows * width));
            let want = match rows {
                0 => Tensor::zeros(width, DType::F32, &Device::Cpu)?,
                _ => (a.tensor((rows, width)) * b.tensor((rows, width)))?.sum(0)?,
            };
            let got = column_sums(library, element, &a, Some(&b), rows, width);
            assert_close(&got, &want, Element::F32, &format!("{rows} rows of {width}"));
        }
    }
    Ok(())
}

/// Three steps of the kernels over all parameters, beside the CPU's optimiser: with and without clipping, with a parameter that
/// has no gradient, and a fourth step whose norm is infinite and which must change nothing.
#[test]
fn the_optimiser_s_step_equals_the_cpu_s() -> lxmert_core::Result<()> {
    let Some((library, _lock)) = Library::get() else { return Ok(()) };
    let sizes = [1usize, PIECE as usize, 2 * PIECE as usize + 37, 300];
    let names = ["a.bias", "b.weight", "c.weight", "d.weight"];
    for (config, limit) in [(AdamWConfig::default(), 0.5f64), (AdamWConfig::bert_adam(), 0.0)] {
        let start: Vec<Vec<f32>> =
            names.iter().zip(sizes).map(|(n, s)| procedural::values(n, s, -1.0, 1.0, 5)).collect();
        let vars: BTreeMap<String, Var> = names
            .iter()
            .zip(&start)
            .map(|(name, values)| Ok((name.to_string(), Var::new(values.as_slice(), &Device::Cpu)?)))
            .collect::<Result<_>>()?;
        let mut cpu = AdamW::new(config, vars.clone())?;
        let mut weights: Vec<Values> = start.iter().map(|values| Values::new(Element::F32, values)).collect();
        let mut firsts: Vec<Values> = sizes.iter().map(|s| Values::new(Element::F32, &vec![0.0; *s])).collect();
        let mut seconds = firsts.clone();
        let mut copies: Vec<Values> = sizes.iter().map(|s| Values::new(Element::Bf16, &vec![0.0; *s])).collect();
        let decays = |name: &str| config.decay_all || lxmert_core::optim::adamw::decays_by_default(name);
        let factor = |name: &str| if name.starts_with('c') { 0.25 } else { 1.0 };
        cpu.scale_rates(factor);
        for step in 1..=4i32 {
            let rate = 1e-2 / f64::from(step);
            let mut grads: Vec<Vec<f32>> =
                names.iter().zip(sizes).map(|(n, s)| procedural::values(n, s, -1.0, 1.0, 50 + step as u64)).collect();
            if step == 4 {
                grads[2][PIECE as usize + 3] = f32::INFINITY;
            }
            let mut table: Vec<u64> = grads.iter().map(|g| g.as_ptr() as u64).collect();
            table[3] = 0;
            for part in [&weights, &firsts, &seconds, &copies] {
                table.extend(part.iter().map(Values::address));
            }
            table[4 * names.len()] = 0; // one parameter without a bf16 copy
            table.extend(launches::Optimiser::sizes_and_pieces(&sizes));
            let squares = vec![f64::NAN; table[table.len() - 1] as usize];
            let norm = Values::new(Element::F32, &[0.0; 2]);
            let correction = |beta: f64| if config.bias_correction { 1.0 - beta.powi(step) } else { 1.0 };
            let rates: Vec<f32> = names
                .map(|n| (1.0 - rate * factor(n) * if decays(n) { config.weight_decay } else { 0.0 }) as f32)
                .into_iter()
                .chain(names.map(|n| (rate * factor(n) / correction(config.beta1)) as f32))
                .collect();
            let device = launches::Optimiser {
                table: table.as_ptr() as u64,
                squares: squares.as_ptr() as u64,
                norm: norm.address(),
                rates: rates.as_ptr() as u64,
                parameters: names.len() as u32,
                piece_count: squares.len() as u32,
            };
            let constants = StepConstants {
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                rest1: (1.0 - config.beta1) as f32,
                rest2: (1.0 - config.beta2) as f32,
                root_correction: correction(config.beta2).sqrt() as f32,
                epsilon: config.epsilon as f32,
            };
            let before = weights.iter().map(Values::read).collect::<Vec<_>>();
            let [sum, clip] = device.clip(limit as f32);
            let mut outputs: Vec<&mut Values> =
                weights.iter_mut().chain(&mut firsts).chain(&mut seconds).chain(&mut copies).collect();
            run(library, &[sum, clip, device.step(&constants)], &mut outputs);
            if step == 4 {
                assert!(weights.iter().map(Values::read).eq(before), "a step of infinite norm moved a weight");
                assert!(norm.read()[0].is_infinite() && norm.read()[1].is_nan());
                break;
            }
            let tensors: Vec<Option<Tensor>> = grads
                .iter()
                .enumerate()
                .map(|(i, g)| if i == 3 { Ok(None) } else { Tensor::new(g.as_slice(), &Device::Cpu).map(Some) })
                .collect::<Result<_>>()?;
            let limit = (limit > 0.0).then_some(limit);
            let cpu_norm = match cpu.clipped_step(&tensors, rate, limit)? {
                Norm::Known(norm) => norm,
                Norm::OnDevice(_) => unreachable!("on the CPU"),
            };
            let cpu_factor = optim::clip::clip_factor(cpu_norm, limit);
            assert!((f64::from(norm.read()[0]) - cpu_norm).abs() < 1e-6 * cpu_norm);
            assert!((f64::from(norm.read()[1]) - cpu_factor).abs() < 1e-6 * cpu_factor);
        }
        let state: BTreeMap<String, Tensor> = cpu.state()?.into_iter().collect();
        for (i, name) in names.iter().enumerate() {
            assert_close(&weights[i].read(), vars[*name].as_tensor(), Element::F32, name);
            assert_close(&firsts[i].read(), &state[&format!("exp_avg.{name}")], Element::F32, name);
            assert_close(&seconds[i].read(), &state[&format!("exp_avg_sq.{name}")], Element::F32, name);
            let copied: Vec<f32> = weights[i].read().iter().map(|w| bf16::from_f32(*w).to_f32()).collect();
            let has_copy = i != 0 && i != 3;
            assert!(copies[i].read() == if has_copy { copied } else { vec![0.0; sizes[i]] }, "copy of {name}");
        }
    }
    Ok(())
}
