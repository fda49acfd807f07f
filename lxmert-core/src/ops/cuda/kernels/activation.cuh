// `dropout(activation(x + bias))`, element by element, as ops/activation.rs and ops/dropout.rs compute it.
#pragma once
#include "common.cuh"

// 0: none, 1: x Φ(x) (GELU, the exact form), 2: max(x, 0).
__device__ inline float activated(float x, u32 activation) {
    if (activation == 1) return x * (0.5f * erff(x * 0.707106781f) + 0.5f);
    return activation == 2 && x < 0.0f ? 0.0f : x;
}
__device__ inline float slope(float x, u32 activation) {
    if (activation == 1) return x * (0.398942280f * expf(-0.5f * x * x)) + (0.5f * erff(x * 0.707106781f) + 0.5f);
    return activation == 2 ? (x > 0.0f ? 1.0f : 0.0f) : 1.0f;
}

// `bias` and `rows` may be null. One thread an element.
template <class T>
__device__ void activate(const T *x, const float *bias, const u32 *rows, T *y, u64 count, u32 width, u32 activation, Mask mask) {
    const u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const u32 row = u32(i / width), column = u32(i % width);
    const float v = activated(load(x + i) + (bias ? bias[column] : 0.0f), activation);
    store(y + i, v * mask.factor((rows ? rows[row] : row) * width + column));
}

template <class T>
__device__ void activate_backward(const T *grad, const T *x, const float *bias, const u32 *rows, T *dx, u64 count, u32 width,
                                  u32 activation, Mask mask) {
    const u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const u32 row = u32(i / width), column = u32(i % width);
    // Without an activation the slope is 1 and `x` is not read.
    const float s = activation ? slope(load(x + i) + (bias ? bias[column] : 0.0f), activation) : 1.0f;
    store(dx + i, load(grad + i) * s * mask.factor((rows ? rows[row] : row) * width + column));
}

#define ACTIVATION(T, suffix)                                                                                                 \
    extern "C" __global__ void activate_##suffix(const T *x, const float *bias, const u32 *rows, T *y, u64 count, u32 width,  \
                                                 u32 activation, u32 threshold, float scale, u32 key) {                       \
        activate<T>(x, bias, rows, y, count, width, activation, Mask{threshold, scale, key});                                 \
    }                                                                                                                         \
    CPU_KERNEL(activate_##suffix)                                                                                             \
    extern "C" __global__ void activate_backward_##suffix(const T *grad, const T *x, const float *bias, const u32 *rows,      \
                                                          T *dx, u64 count, u32 width, u32 activation, u32 threshold,         \
                                                          float scale, u32 key) {                                             \
        activate_backward<T>(grad, x, bias, rows, dx, count, width, activation, Mask{threshold, scale, key});                 \
    }                                                                                                                         \
    CPU_KERNEL(activate_backward_##suffix)
ACTIVATION(float, f32)
ACTIVATION(bf16, bf16)
