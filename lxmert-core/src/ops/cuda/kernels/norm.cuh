// The end of a sub-layer, `norm(dropout(x + bias) + residual)`, as ops/layer_norm.rs computes it: one block a row.
#pragma once
#include "common.cuh"

// `bias`, `residual` and `rows` may be null; `normed` and `scales` are, where no backward pass follows. `rows`: the padded row of each,
// whose mask it takes. Dynamic shared memory: one row.
template <class T>
__device__ void norm(const T *x, const float *bias, const T *residual, const float *weight, const float *shift, const u32 *rows,
                     T *y, T *normed, float *scales, u32 width, float eps, Mask mask) {
    DYNAMIC_SHARED(float, row);
    const size_t base = size_t(blockIdx.x) * width;
    const u32 first = (rows ? rows[blockIdx.x] : blockIdx.x) * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float v = load(x + base + i) + (bias ? bias[i] : 0.0f);
        v = v * mask.factor(first + i) + (residual ? load(residual + base + i) : 0.0f);
        row[i] = v;
        sum += v;
    }
    const float mean = block_sum(sum) / width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    const float scale = 1.0f / sqrtf(block_sum(squares) / width + eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float n = (row[i] - mean) * scale;
        store(y + base + i, n * weight[i] + shift[i]);
        if (normed) store(normed + base + i, n);
    }
    if (scales && threadIdx.x == 0) scales[blockIdx.x] = scale;
}

// `dx`: the gradient by the residual; `dropped`: by `x` and `bias`. Those by `weight`, `shift` and `bias` are column sums.
template <class T>
__device__ void norm_backward(const T *grad, const T *normed, const float *scales, const float *weight, const u32 *rows, T *dx,
                              T *dropped, u32 width, Mask mask) {
    const size_t base = size_t(blockIdx.x) * width;
    const u32 first = (rows ? rows[blockIdx.x] : blockIdx.x) * width;
    float sum = 0.0f, product = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float g = load(grad + base + i) * weight[i];
        sum += g;
        product += g * load(normed + base + i);
    }
    const float a = block_sum(sum) / width, b = block_sum(product) / width, scale = scales[blockIdx.x];
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float v = scale * (load(grad + base + i) * weight[i] - a - load(normed + base + i) * b);
        store(dx + base + i, v);
        store(dropped + base + i, v * mask.factor(first + i));
    }
}

#define NORM(T, suffix)                                                                                                            \
    extern "C" __global__ void norm_##suffix(const T *x, const float *bias, const T *residual, const float *weight,                \
                                             const float *shift, const u32 *rows, T *y, T *normed, float *scales, u32 width,       \
                                             float eps, u32 threshold, float scale, u32 key) {                                     \
        norm<T>(x, bias, residual, weight, shift, rows, y, normed, scales, width, eps, Mask{threshold, scale, key});               \
    }                                                                                                                              \
    CPU_KERNEL(norm_##suffix)                                                                                                      \
    extern "C" __global__ void norm_backward_##suffix(const T *grad, const T *normed, const float *scales, const float *weight,    \
                                                      const u32 *rows, T *dx, T *dropped, u32 width, u32 threshold, float scale,   \
                                                      u32 key) {                                                                   \
        norm_backward<T>(grad, normed, scales, weight, rows, dx, dropped, width, Mask{threshold, scale, key});                     \
    }                                                                                                                              \
    CPU_KERNEL(norm_backward_##suffix)
NORM(float, f32)
NORM(bf16, bf16)
