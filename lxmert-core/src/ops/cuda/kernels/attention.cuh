// Attention over ragged rows for up to 64 keys, as ops/attention.rs computes it: one block for each (item of the
// batch, head); keys and values of the head lie in shared memory, a warp takes a query, a lane two keys. The backward pass
// computes the probabilities again.
#pragma once
#include "common.cuh"

// Where an item's rows lie, and the sizes of a head. `q_stride`, `kv_stride`: from one row of q (or of k and v) to the next, so that
// the three may be columns of one product.
struct Heads {
    const u32 *q_starts, *k_starts, *q_rows, *k_rows;
    u32 q_stride, kv_stride, d, q_length, k_length;
    Mask mask;
    __device__ u32 first_query() const { return q_starts[blockIdx.x]; }
    __device__ u32 queries() const { return q_starts[blockIdx.x + 1] - q_starts[blockIdx.x]; }
    __device__ u32 first_key() const { return k_starts[blockIdx.x]; }
    __device__ u32 keys() const { return k_starts[blockIdx.x + 1] - k_starts[blockIdx.x]; }
    __device__ size_t query(u32 i) const { return size_t(first_query() + i) * q_stride + blockIdx.y * d; }
    __device__ size_t key(u32 j) const { return size_t(first_key() + j) * kv_stride + blockIdx.y * d; }
    __device__ size_t result(u32 i) const { return (size_t(first_query() + i) * gridDim.y + blockIdx.y) * d; }
    // Of the padded [batch, heads, queries, keys].
    __device__ float factor(u32 i, u32 j) const {
        const u32 query = q_rows[first_query() + i] - blockIdx.x * q_length, key = k_rows[first_key() + j] - blockIdx.x * k_length;
        return mask.factor(((blockIdx.x * gridDim.y + blockIdx.y) * q_length + query) * k_length + key);
    }
};

// A head's rows into shared memory, `d + 1` apart: lanes that read down a column hit different banks.
template <class T> __device__ void copy_keys(const T *from, float *to, const Heads &heads) {
    for (u32 e = threadIdx.x; e < heads.keys() * heads.d; e += blockDim.x) {
        const u32 j = e / heads.d, c = e % heads.d;
        to[j * (heads.d + 1) + c] = load(from + heads.key(j) + c);
    }
}
template <class T> __device__ void copy_query(const T *from, float factor, float *to, u32 d) {
    for (u32 c = threadIdx.x % 32; c < d; c += 32) to[c] = load(from + c) * factor;
}
__device__ inline float dot(const float *a, const float *b, u32 d) {
    float sum = 0.0f;
    for (u32 c = 0; c < d; ++c) sum += a[c] * b[c];
    return sum;
}
// This lane's two probabilities of a query (scaled by 1 / sqrt(d) before), keys `lane` and `lane + 32`.
__device__ inline void probabilities(const float *query, const float *k, u32 keys, u32 d, float p[2]) {
    const u32 lane = threadIdx.x % 32;
    float top = -INFINITY;
    for (u32 s = 0; s < 2; ++s) {
        p[s] = lane + 32 * s < keys ? dot(query, k + (lane + 32 * s) * (d + 1), d) : -INFINITY;
        top = p[s] > top ? p[s] : top;
    }
    top = warp_max(top);
    for (u32 s = 0; s < 2; ++s) p[s] = lane + 32 * s < keys ? expf(p[s] - top) : 0.0f;
    const float inverse = 1.0f / warp_sum(p[0] + p[1]);
    p[0] *= inverse;
    p[1] *= inverse;
}

// Dynamic shared memory: k and v, `k_length * (d + 1)` each; for each warp a query, `d`, and its probabilities, 64.
template <class T> __device__ void attention(const T *q, const T *k, const T *v, T *out, const Heads &heads) {
    DYNAMIC_SHARED(float, shared_k);
    const u32 d = heads.d, lane = threadIdx.x % 32, warp = threadIdx.x / 32, keys = heads.keys();
    float *shared_v = shared_k + heads.k_length * (d + 1);
    float *query = shared_v + heads.k_length * (d + 1) + warp * (d + 64), *weights = query + d;
    copy_keys(k, shared_k, heads);
    copy_keys(v, shared_v, heads);
    __syncthreads();
    for (u32 i = warp; i < heads.queries(); i += blockDim.x / 32) {
        copy_query(q + heads.query(i), 1.0f / sqrtf(float(d)), query, d);
        __syncwarp();
        float p[2];
        probabilities(query, shared_k, keys, d, p);
        for (u32 s = 0; s < 2; ++s) {
            const u32 j = lane + 32 * s;
            if (j < keys) weights[j] = p[s] * heads.factor(i, j);
        }
        __syncwarp();
        for (u32 c = lane; c < d; c += 32) {
            float sum = 0.0f;
            for (u32 j = 0; j < keys; ++j) sum += weights[j] * shared_v[j * (d + 1) + c];
            store(out + heads.result(i) + c, sum);
        }
        __syncwarp();
    }
}

// The gradients lie as q, k and v do. Queries go in tiles of one a warp; the block sums dk and dv over them, each thread up to
// 16 values of each: `k_length * d` is at most 16 times the block. Dynamic shared memory as above, and for each warp a row of the
// gradient, `d`, and one of scores' gradients, 64.
template <class T>
__device__ void attention_backward(const T *grad, const T *q, const T *k, const T *v, T *dq, T *dk, T *dv, const Heads &heads) {
    DYNAMIC_SHARED(float, shared_k);
    const u32 d = heads.d, lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, keys = heads.keys();
    const u32 row = 2 * (d + 64); // of a warp: query, gradient, dropped probabilities, scores' gradients
    const float root = 1.0f / sqrtf(float(d));
    float *shared_v = shared_k + heads.k_length * (d + 1), *tile = shared_v + heads.k_length * (d + 1);
    float *query = tile + warp * row, *g = query + d, *dropped = g + d, *dscores = dropped + 64;
    float sum_k[16] = {}, sum_v[16] = {};
    copy_keys(k, shared_k, heads);
    copy_keys(v, shared_v, heads);
    __syncthreads();
    for (u32 start = 0; start < heads.queries(); start += warps) {
        const u32 i = start + warp, count = min(warps, heads.queries() - start);
        if (warp < count) {
            copy_query(q + heads.query(i), root, query, d);
            copy_query(grad + heads.result(i), 1.0f, g, d);
            __syncwarp();
            float p[2], dp[2] = {}, factor[2] = {};
            probabilities(query, shared_k, keys, d, p);
            for (u32 s = 0; s < 2; ++s) {
                const u32 j = lane + 32 * s;
                if (j >= keys) continue;
                factor[s] = heads.factor(i, j);
                dp[s] = dot(g, shared_v + j * (d + 1), d) * factor[s];
            }
            const float mean = warp_sum(p[0] * dp[0] + p[1] * dp[1]);
            for (u32 s = 0; s < 2; ++s) {
                dropped[lane + 32 * s] = p[s] * factor[s];
                dscores[lane + 32 * s] = p[s] * (dp[s] - mean);
            }
            __syncwarp();
            for (u32 c = lane; c < d; c += 32) {
                float sum = 0.0f;
                for (u32 j = 0; j < keys; ++j) sum += dscores[j] * shared_k[j * (d + 1) + c];
                store(dq + heads.query(i) + c, sum * root);
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 a = 0; a < 16; ++a) {
            const u32 e = threadIdx.x + a * blockDim.x, j = e / d, c = e % d;
            for (u32 w = 0; w < count && j < keys; ++w) {
                const float *of = tile + w * row;
                sum_k[a] += of[2 * d + 64 + j] * of[c];
                sum_v[a] += of[2 * d + j] * of[d + c];
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 a = 0; a < 16; ++a) {
        const u32 e = threadIdx.x + a * blockDim.x, j = e / d, c = e % d;
        if (j >= keys) continue;
        store(dk + heads.key(j) + c, sum_k[a]);
        store(dv + heads.key(j) + c, sum_v[a]);
    }
}

#define ATTENTION(T, suffix)                                                                                                  \
    extern "C" __global__ void attention_##suffix(                                                                            \
        const T *q, const T *k, const T *v, T *out, const u32 *q_starts, const u32 *k_starts, const u32 *q_rows,              \
        const u32 *k_rows, u32 q_stride, u32 kv_stride, u32 d, u32 q_length, u32 k_length, u32 threshold, float scale,        \
        u32 key) {                                                                                                            \
        attention<T>(q, k, v, out, Heads{q_starts, k_starts, q_rows, k_rows, q_stride, kv_stride, d, q_length, k_length,      \
                                         Mask{threshold, scale, key}});                                                       \
    }                                                                                                                         \
    CPU_KERNEL(attention_##suffix)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_##suffix(                                            \
        const T *grad, const T *q, const T *k, const T *v, T *dq, T *dk, T *dv, const u32 *q_starts, const u32 *k_starts,     \
        const u32 *q_rows, const u32 *k_rows, u32 q_stride, u32 kv_stride, u32 d, u32 q_length, u32 k_length, u32 threshold,  \
        float scale, u32 key) {                                                                                               \
        attention_backward<T>(grad, q, k, v, dq, dk, dv,                                                                      \
                              Heads{q_starts, k_starts, q_rows, k_rows, q_stride, kv_stride, d, q_length, k_length,           \
                                    Mask{threshold, scale, key}});                                                            \
    }                                                                                                                         \
    CPU_KERNEL(attention_backward_##suffix)
ATTENTION(float, f32)
ATTENTION(bf16, bf16)
