//! Convolutions of a ResNet-50 with feature pyramid at 800 × 1088: ours against Candle's, and against the speed of the
//! matrix product itself.
//!
//! `cargo bench -p lxmert-extract --bench conv`: compare only figures of one sitting. Work is counted as the direct
//! convolution's multiplications and additions, for Winograd too.

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lxmert_core::ops::{
    BufferPool, FeatureMap, Matrix, MatrixMut, Precision, PrepackedConv2d, Residual, Threads, Write, gemm,
};
use lxmert_extract::detector::ops::conv2d;
use std::hint::black_box;

/// Name, channels in and out, size of the input, kernel, stride.
type Layer = (&'static str, usize, usize, (usize, usize), usize, usize);

const LAYERS: [Layer; 9] = [
    ("stem 7x7/2", 3, 64, (800, 1088), 7, 2),
    ("layer1 3x3", 64, 64, (200, 272), 3, 1),
    ("layer1 1x1 64-256", 64, 256, (200, 272), 1, 1),
    ("layer1 1x1 256-64", 256, 64, (200, 272), 1, 1),
    ("layer2 3x3/2", 128, 128, (200, 272), 3, 2),
    ("layer3 3x3", 256, 256, (50, 68), 3, 1),
    ("layer4 3x3", 512, 512, (25, 34), 3, 1),
    ("layer4 1x1 2048-512", 2048, 512, (25, 34), 1, 1),
    ("pyramid 3x3", 256, 256, (200, 272), 3, 1),
];

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap()
}

fn layers(c: &mut Criterion) {
    for (name, channels, out, (height, width), kernel, stride) in LAYERS {
        let (x, w, b) =
            (random(&[1, channels, height, width]), random(&[out, channels, kernel, kernel]), random(&[out]));
        let padding = kernel / 2;
        let work = 2 * channels * kernel * kernel * out * (height / stride) * (width / stride);
        let mut group = c.benchmark_group(name);
        group.sample_size(10).throughput(Throughput::Elements(work as u64));
        let packed = PrepackedConv2d::new(&w, Some(&b), stride, padding, true, Precision::F32).unwrap();
        let map = FeatureMap::from_tensor(&x, &BufferPool::new()).unwrap();
        group.bench_function("packed", |bench| bench.iter(|| packed.forward(black_box(&map), Residual::None).unwrap()));
        group.bench_function("conv2d", |bench| bench.iter(|| conv2d(black_box(&x), &w, Some(&b), stride, padding)));
        group.bench_function("candle", |bench| bench.iter(|| black_box(&x).conv2d(&w, padding, stride, 1, 1)));
        group.finish();
    }
}

fn product(c: &mut Criterion) {
    let mut group = c.benchmark_group("product");
    group.sample_size(10);
    for size in [512usize, 2048] {
        let a = vec![1.0f32; size * size];
        let mut out = vec![0.0f32; size * size];
        group.throughput(Throughput::Elements(2 * (size * size * size) as u64));
        group.bench_function(BenchmarkId::new("gemm", size), |bench| {
            bench.iter(|| {
                let view = || Matrix::new(black_box(&a), size, size);
                gemm(MatrixMut::new(&mut out, size, size), Write::Replace, view(), view(), Threads::Pool);
            });
        });
    }
    group.finish();
}

/// A training step of one layer: forward and both gradients, on a batch of small images.
fn training(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward and backward, 8 x 64 x 32 x 32");
    group.sample_size(10);
    let x = candle_core::Var::from_tensor(&random(&[8, 64, 32, 32])).unwrap();
    let w = candle_core::Var::from_tensor(&random(&[64, 64, 3, 3])).unwrap();
    let step = |y: Tensor| y.sum_all().unwrap().backward().unwrap();
    group.bench_function("conv2d", |bench| bench.iter(|| step(conv2d(&x, &w, None, 1, 1).unwrap())));
    group.bench_function("candle", |bench| bench.iter(|| step(x.conv2d(&w, 1, 1, 1, 1).unwrap())));
    group.finish();
}

criterion_group!(benches, product, layers, training);
criterion_main!(benches);
