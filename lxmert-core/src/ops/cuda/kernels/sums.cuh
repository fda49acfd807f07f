// Sums down columns (the gradients of biases and norms) and the gradient of an embedding table (ops/embedding.rs).
#pragma once
#include "common.cuh"

// `out[chunk, c]`: the sum over the chunk's rows of `a[r, c]`, times `b[r, c]` unless that is null. 32 columns a block, 8 rows at a
// time. A long matrix goes in chunks (grid.y), whose sums the same kernel adds.
template <class T>
__device__ void column_sums(const T *a, const T *b, float *out, u32 rows, u32 width, u32 rows_per_chunk) {
    __shared__ float sums[8][33];
    const u32 c = blockIdx.x * 32 + threadIdx.x % 32, lane_row = threadIdx.x / 32;
    const u32 start = blockIdx.y * rows_per_chunk, end = min(rows, start + rows_per_chunk);
    float sum = 0.0f;
    for (u32 r = start + lane_row; c < width && r < end; r += 8) {
        const size_t at = size_t(r) * width + c;
        sum += b ? load(a + at) * load(b + at) : load(a + at);
    }
    sums[lane_row][threadIdx.x % 32] = sum;
    __syncthreads();
    if (lane_row == 0 && c < width) {
        for (u32 r = 1; r < 8; ++r) sum += sums[r][threadIdx.x];
        out[size_t(blockIdx.y) * width + c] = sum;
    }
}

// One block for each row of the table (grid.x) and chunk of the ids (grid.y): it looks through the ids and adds the gradients of
// those that are its row, in their order. `out`: [chunks, rows, width]. Dynamic shared memory: a row, and a flag a thread.
template <class T>
__device__ void embedding_backward(const u32 *ids, const T *grad, float *out, u32 count, u32 width, u32 ids_per_chunk) {
    DYNAMIC_SHARED(float, sums);
    u32 *matches = reinterpret_cast<u32 *>(sums + width);
    const u32 start = blockIdx.y * ids_per_chunk, end = min(count, start + ids_per_chunk);
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) sums[c] = 0.0f;
    for (u32 base = start; base < end; base += blockDim.x) {
        const u32 at = base + threadIdx.x;
        const bool match = at < end && ids[at] == blockIdx.x;
        matches[threadIdx.x] = match;
        if (!__syncthreads_or(match)) continue;
        for (u32 i = 0; i < blockDim.x; ++i) {
            if (!matches[i]) continue;
            for (u32 c = threadIdx.x; c < width; c += blockDim.x) sums[c] += load(grad + size_t(base + i) * width + c);
        }
        __syncthreads();
    }
    const size_t row = size_t(blockIdx.y) * gridDim.x + blockIdx.x;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) out[row * width + c] = sums[c];
}

#define SUMS(T, suffix)                                                                                                         \
    extern "C" __global__ void column_sums_##suffix(const T *a, const T *b, float *out, u32 rows, u32 width,                    \
                                                    u32 rows_per_chunk) {                                                       \
        column_sums<T>(a, b, out, rows, width, rows_per_chunk);                                                                 \
    }                                                                                                                           \
    CPU_KERNEL(column_sums_##suffix)                                                                                            \
    extern "C" __global__ void embedding_backward_##suffix(const u32 *ids, const T *grad, float *out, u32 count, u32 width,     \
                                                           u32 ids_per_chunk) {                                                 \
        embedding_backward<T>(ids, grad, out, count, width, ids_per_chunk);                                                     \
    }                                                                                                                           \
    CPU_KERNEL(embedding_backward_##suffix)
SUMS(float, f32)
SUMS(bf16, bf16)
