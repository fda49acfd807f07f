// What the kernels share. Values are f32 or bf16 in memory and f32 in registers. No kernel adds atomically: every sum has one order,
// so that the same step gives the same bits.
#pragma once
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include <cuda_bf16.h>
#define DYNAMIC_SHARED(T, name)                                      \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];  \
    T *name = reinterpret_cast<T *>(dynamic_shared)
#define CPU_KERNEL(name)
#else
#include "cuda_on_cpu.hpp"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef __nv_bfloat16 bf16;

__device__ inline float load(const float *p) { return *p; }
__device__ inline float load(const bf16 *p) { return __bfloat162float(*p); }
__device__ inline void store(float *p, float v) { *p = v; }
__device__ inline void store(bf16 *p, float v) { *p = __float2bfloat16(v); }

// Mask::factor of ops/dropout.rs, bit for bit: a function of the index and the call's key, so that the backward pass draws the
// same mask again. `threshold` 0 and `scale` 1 drop nothing.
struct Mask {
    u32 threshold;
    float scale;
    u32 key;
    __device__ float factor(u32 index) const {
        u32 x = index * 0x9E3779B9u ^ key;
        x ^= x >> 16;
        x *= 0x7FEB352Du;
        x ^= x >> 15;
        x *= 0x846CA68Bu;
        x ^= x >> 16;
        return x >= threshold ? scale : 0.0f;
    }
};

__device__ inline float warp_sum(float v) {
    for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(0xffffffffu, v, m);
    return v;
}

__device__ inline float warp_max(float v) {
    for (int m = 16; m; m >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, v, m);
        v = other > v ? other : v;
    }
    return v;
}

// The sum over a block's threads, for each of them.
__device__ inline float block_sum(float v) {
    __shared__ float of_warp[33];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = warp_sum(threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) of_warp[32] = v;
    }
    __syncthreads();
    return of_warp[32];
}
