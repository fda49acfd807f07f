// All parameters' step in three launches, as optim/clip.rs and optim/adamw.rs compute it: squares, norm and clip factor, AdamW.
// Nothing is read back: the factor stays in device memory.
#pragma once
#include "common.cuh"

// A piece of one parameter, up to `values` of it, which one block takes. `table`: [7, parameters], the addresses of gradients (0 for
// none), weights, both moments and bf16 copies (0 for none), then the numbers of values, then of the pieces up to the parameter's last.
struct Piece {
    u32 parameter;
    u64 start, end;
    __device__ Piece(const u64 *table, u32 parameters, u32 values) {
        const u64 *counts = table + 5 * u64(parameters), *pieces = table + 6 * u64(parameters);
        u32 low = 0, high = parameters - 1; // the first parameter whose pieces end after this block's
        while (low < high) {
            const u32 middle = (low + high) / 2;
            if (pieces[middle] > blockIdx.x) high = middle;
            else low = middle + 1;
        }
        parameter = low;
        start = (blockIdx.x - (low ? pieces[low - 1] : 0)) * values;
        end = start + values < counts[low] ? start + values : counts[low];
    }
};

extern "C" __global__ void square_sums(const u64 *table, double *out, u32 parameters, u32 values) {
    __shared__ double sums[256];
    const Piece piece(table, parameters, values);
    const float *gradient = reinterpret_cast<const float *>(table[piece.parameter]);
    double sum = 0.0;
    for (u64 i = piece.start + threadIdx.x; gradient && i < piece.end; i += blockDim.x) sum += double(gradient[i]) * gradient[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}
CPU_KERNEL(square_sums)

// `out`: the global norm, and what clipping to `limit` (0: none) multiplies gradients by: NaN where the norm is not finite. One block.
extern "C" __global__ void clip_factor(const double *squares, float *out, u32 count, float limit) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += squares[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const double norm = sqrt(sums[0]), factor = limit > 0.0f ? limit / (norm + 1e-6) : 1.0;
        out[0] = float(norm);
        out[1] = norm - norm == 0.0 ? float(factor < 1.0 ? factor : 1.0) : NAN;
    }
}
CPU_KERNEL(clip_factor)

// `rates`: [2, parameters], what weight decay leaves of a parameter's weights, and its step size. A step whose clip factor (`norm[1]`)
// is NaN changes nothing.
extern "C" __global__ void adamw(const u64 *table, const float *rates, const float *norm, u32 parameters, u32 values, float beta1,
                                 float beta2, float rest1, float rest2, float root_correction, float epsilon) {
    const Piece piece(table, parameters, values);
    const float scale = norm[1], kept = rates[piece.parameter], step_size = rates[parameters + piece.parameter];
    const u64 *addresses = table + piece.parameter;
    const float *gradient = reinterpret_cast<const float *>(addresses[0]);
    float *weight = reinterpret_cast<float *>(addresses[parameters]);
    float *first = reinterpret_cast<float *>(addresses[2 * u64(parameters)]);
    float *second = reinterpret_cast<float *>(addresses[3 * u64(parameters)]);
    bf16 *copy = reinterpret_cast<bf16 *>(addresses[4 * u64(parameters)]);
    if (!gradient || scale != scale) return;
    for (u64 i = piece.start + threadIdx.x; i < piece.end; i += blockDim.x) {
        const float g = gradient[i] * scale;
        const float m = beta1 * first[i] + rest1 * g, v = beta2 * second[i] + rest2 * g * g;
        const float w = weight[i] * kept - step_size * (m / (sqrtf(v) / root_correction + epsilon));
        first[i] = m;
        second[i] = v;
        weight[i] = w;
        if (copy) store(copy + i, w);
    }
}
CPU_KERNEL(adamw)
