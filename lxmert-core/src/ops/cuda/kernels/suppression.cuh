// Non-maximum suppression of the candidates of proposals.cuh, as lxmert-extract's detector/nms.rs: in each level the best box stays and
// drops those that overlap it much.
#pragma once
#include "common.cuh"

// `order[rank]`: the candidates by score. Of equal scores the lower level comes first, in a level the larger key, then the lower slot.
extern "C" __global__ void suppression_order(const float *scores, const u32 *levels, const u32 *keys, u32 *order, u32 count) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float score = scores[i];
    u32 rank = 0;
    for (u32 j = 0; j < count; ++j) {
        const bool by_key = levels[i] == levels[j] && keys[i] != keys[j];
        rank += scores[j] > score || (scores[j] == score && (by_key ? keys[j] > keys[i] : j < i));
    }
    order[rank] = i;
}
CPU_KERNEL(suppression_order)

// `out`: how far levels are shifted apart (torchvision's rule for up to 1000 boxes), and the number of candidates. One block.
extern "C" __global__ void suppression_shift(const float *boxes, const float *scores, float *out, u32 count) {
    __shared__ float largest[1024];
    float top = -INFINITY, found = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        if (scores[i] < 0.0f) continue;
        found += 1.0f;
        for (u32 c = 0; c < 4; ++c) top = fmaxf(top, boxes[4 * size_t(i) + c]);
    }
    largest[threadIdx.x] = top;
    found = block_sum(found);
    for (u32 half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) largest[threadIdx.x] = fmaxf(largest[threadIdx.x], largest[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = found * 4.0f <= 4000.0f && found > 0.0f ? largest[0] + 1.0f : 0.0f, out[1] = found;
}
CPU_KERNEL(suppression_shift)

struct Shifted {
    float box[4], area;
    u32 level;
};
__device__ inline float area_of(float x0, float y0, float x1, float y1, float extra) {
    return __fmul_rn(fmaxf(x1 - x0 + extra, 0.0f), fmaxf(y1 - y0 + extra, 0.0f));
}

// `masks`: [count, words], bit b of a row: whether the box of its rank suppresses that of rank b. Ranks in blocks of 64 rows (grid.y) by
// 64 bits (grid.x); 64 threads.
extern "C" __global__ void suppression_masks(const float *boxes, const u32 *levels, const u32 *order, const float *summary, u64 *masks,
                                             u32 words, double threshold, u32 inclusive) {
    __shared__ Shifted columns[64];
    const u32 count = u32(summary[1]);
    if (blockIdx.x < blockIdx.y || blockIdx.y * 64 >= count) return;
    const float extra = inclusive ? 1.0f : 0.0f;
    const auto shifted = [&](u32 rank) {
        Shifted s = {{}, 0.0f, 0};
        if (rank >= count) return s;
        const u32 slot = order[rank];
        s.level = levels[slot];
        const float offset = __fmul_rn(float(s.level), summary[0]);
        for (u32 c = 0; c < 4; ++c) s.box[c] = __fadd_rn(boxes[4 * size_t(slot) + c], offset);
        s.area = area_of(s.box[0], s.box[1], s.box[2], s.box[3], extra);
        return s;
    };
    const u32 row = blockIdx.y * 64 + threadIdx.x, first = blockIdx.x * 64;
    columns[threadIdx.x] = shifted(first + threadIdx.x);
    const Shifted own = shifted(row);
    __syncthreads();
    if (row >= count) return;
    u64 mask = 0;
    for (u32 b = 0; b < 64; ++b) {
        const Shifted &other = columns[b];
        if (first + b <= row || first + b >= count || other.level != own.level) continue;
        const float *a = own.box, *o = other.box;
        const float both = area_of(fmaxf(a[0], o[0]), fmaxf(a[1], o[1]), fminf(a[2], o[2]), fminf(a[3], o[3]), extra);
        const double iou = double(both / (own.area + other.area - both));
        if (inclusive ? iou >= threshold : iou > threshold) mask |= u64(1) << b;
    }
    masks[size_t(row) * words + blockIdx.x] = mask;
}
CPU_KERNEL(suppression_masks)

// The first `limit` boxes that nothing better suppresses, best first. `out`: [limit, 6], box, score and 1; zeros where there are no more.
// One block. Dynamic shared memory: `words` of 64 bits.
__device__ inline void sweep(const float *boxes, const float *scores, const u32 *order, const float *summary, const u64 *masks,
                             float *out, u32 words, u32 limit) {
    DYNAMIC_SHARED(u64, removed);
    const u32 count = u32(summary[1]);
    u32 kept = 0;
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) removed[i] = 0;
    __syncthreads();
    for (u32 rank = 0; rank < count && kept < limit; ++rank) {
        if (removed[rank / 64] >> (rank % 64) & 1) continue;
        const u32 slot = order[rank];
        if (threadIdx.x < 6) {
            const float *values = threadIdx.x < 4 ? boxes + 4 * size_t(slot) + threadIdx.x : scores + slot;
            out[6 * size_t(kept) + threadIdx.x] = threadIdx.x == 5 ? 1.0f : *values;
        }
        __syncthreads(); // all have read `removed` for this rank
        for (u32 i = rank / 64 + threadIdx.x; i < (count + 63) / 64; i += blockDim.x) removed[i] |= masks[size_t(rank) * words + i];
        __syncthreads();
        ++kept;
    }
    for (u32 i = 6 * kept + threadIdx.x; i < 6 * limit; i += blockDim.x) out[i] = 0.0f;
}
extern "C" __global__ void suppression_sweep(const float *boxes, const float *scores, const u32 *order, const float *summary,
                                             const u64 *masks, float *out, u32 words, u32 limit) {
    sweep(boxes, scores, order, summary, masks, out, words, limit);
}
CPU_KERNEL(suppression_sweep)
