// Proposals of one image, as lxmert-extract's detector/rpn.rs and nms.rs choose them: keys of all anchors, the best of each level,
// their boxes, their order, who suppresses whom, and who is left. Where the choice depends on a product and a sum, each is rounded by
// itself, as on the CPU. A key orders as its logit does; 0 is no candidate, and the largest a value that is not finite.
#pragma once
#include "common.cuh"

constexpr u32 kNotFinite = 0xffffffffu, kNone = 0xffffffffu, kLevelColumns = 11;

// A row of the table. `anchors`: [shapes, 4], of the cell at the origin; `first`: its first anchor among all levels'; `slot`, `most`:
// where its candidates lie, and how many there may be.
struct ProposalLevel {
    const float *logits, *deltas, *anchors;
    u32 shapes, columns, cells, stride_x, stride_y, first, slot, most;
    __device__ ProposalLevel(const u64 *table, u32 level) {
        const u64 *row = table + kLevelColumns * level;
        logits = reinterpret_cast<const float *>(row[0]), deltas = reinterpret_cast<const float *>(row[1]);
        anchors = reinterpret_cast<const float *>(row[2]);
        shapes = u32(row[3]), columns = u32(row[4]), cells = u32(row[5]), stride_x = u32(row[6]), stride_y = u32(row[7]);
        first = u32(row[8]), slot = u32(row[9]), most = u32(row[10]);
    }
    __device__ float logit(u32 anchor) const { return logits[size_t(anchor % shapes) * cells + anchor / shapes]; }
    __device__ float delta(u32 anchor, u32 i) const {
        return deltas[size_t(anchor % shapes * 4 + i) * cells + anchor / shapes];
    }
};

struct BoxRule {
    float wx, wy, ww, wh, least_side, right, bottom;
    u32 inclusive;
    __device__ float extra() const { return inclusive ? 1.0f : 0.0f; }
    __device__ bool large(const float *b) const {
        return b[2] - b[0] + extra() >= least_side && b[3] - b[1] + extra() >= least_side;
    }
};
__device__ inline float clamp(float v, float top) { return v < 0.0f ? 0.0f : v > top ? top : v; }

// BoxCoder::decode and clip of detector/box_coder.rs.
__device__ inline void proposal(const ProposalLevel &level, u32 anchor, const BoxRule &rule, float *b) {
    const u32 cell = anchor / level.shapes;
    const float *base = level.anchors + anchor % level.shapes * 4;
    const float left = float(cell % level.columns * level.stride_x), top = float(cell / level.columns * level.stride_y);
    const float x0 = left + base[0], y0 = top + base[1], x1 = left + base[2], y1 = top + base[3];
    const float limit = rule.inclusive ? INFINITY : 4.1351666f; // ln(1000 / 16)
    const float width = x1 - x0 + rule.extra(), height = y1 - y0 + rule.extra();
    const float dw = fminf(level.delta(anchor, 2) / rule.ww, limit), dh = fminf(level.delta(anchor, 3) / rule.wh, limit);
    const float x = __fadd_rn(__fmul_rn(level.delta(anchor, 0) / rule.wx, width), __fadd_rn(x0, __fmul_rn(0.5f, width)));
    const float y = __fadd_rn(__fmul_rn(level.delta(anchor, 1) / rule.wy, height), __fadd_rn(y0, __fmul_rn(0.5f, height)));
    const float half_width = __fmul_rn(0.5f, __fmul_rn(expf(dw), width));
    const float half_height = __fmul_rn(0.5f, __fmul_rn(expf(dh), height));
    b[0] = clamp(x - half_width, rule.right), b[1] = clamp(y - half_height, rule.bottom);
    b[2] = clamp(x + half_width, rule.right), b[3] = clamp(y + half_height, rule.bottom);
}

#define BOX_RULE float wx, float wy, float ww, float wh, float least_side, float right, float bottom, u32 inclusive
#define BOX_RULE_VALUES BoxRule{wx, wy, ww, wh, least_side, right, bottom, inclusive}

// A level in grid.y, an anchor a thread. Caffe drops small boxes before it ranks them.
extern "C" __global__ void proposal_keys(const u64 *table, u32 *keys, BOX_RULE) {
    const ProposalLevel level(table, blockIdx.y);
    const BoxRule rule = BOX_RULE_VALUES;
    const u32 anchor = blockIdx.x * blockDim.x + threadIdx.x;
    if (anchor >= level.shapes * level.cells) return;
    const float logit = level.logit(anchor);
    bool finite = logit - logit == 0.0f;
    for (u32 i = 0; i < 4; ++i) finite = finite && level.delta(anchor, i) - level.delta(anchor, i) == 0.0f;
    const u32 bits = __float_as_uint(logit);
    u32 key = finite ? bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u) : kNotFinite;
    if (finite && rule.inclusive) {
        float b[4];
        proposal(level, anchor, rule, b);
        if (!rule.large(b)) key = 0;
    }
    keys[level.first + anchor] = key;
}
CPU_KERNEL(proposal_keys)

// One block a level: the anchors with the `most` largest keys, in their own order; of equal keys the first. What is left is `kNone`.
extern "C" __global__ void proposal_top(const u64 *table, const u32 *all, u32 *chosen) {
    __shared__ u32 sums[2][1024];
    const ProposalLevel level(table, blockIdx.x);
    const u32 *keys = all + level.first, count = level.shapes * level.cells, most = level.most;
    u32 least = 0; // the largest bound that `most` keys reach; 0 where there are fewer candidates
    for (u32 bit = 1u << 31; bit; bit >>= 1) {
        const u32 bound = least | bit;
        float found = 0.0f;
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) found += keys[i] >= bound;
        if (block_sum(found) >= float(most)) least = bound; // whole numbers below 2^24 are exact
    }
    const u32 piece = (count + blockDim.x - 1) / blockDim.x, start = min(count, threadIdx.x * piece);
    const u32 end = min(count, start + piece);
    u32 above = 0, equal = 0;
    for (u32 i = start; i < end; ++i) above += keys[i] > least, equal += keys[i] == least;
    sums[0][threadIdx.x] = above, sums[1][threadIdx.x] = equal;
    __syncthreads();
    for (u32 step = 1; step < blockDim.x; step *= 2) {
        const bool adds = threadIdx.x >= step;
        const u32 a = adds ? sums[0][threadIdx.x - step] : 0, e = adds ? sums[1][threadIdx.x - step] : 0;
        __syncthreads();
        sums[0][threadIdx.x] += a, sums[1][threadIdx.x] += e;
        __syncthreads();
    }
    const u32 all_above = sums[0][blockDim.x - 1], ties = least ? most - min(most, all_above) : 0;
    above = sums[0][threadIdx.x] - above, equal = sums[1][threadIdx.x] - equal;
    for (u32 i = start; i < end; ++i) {
        const bool more = keys[i] > least, tie = keys[i] == least && equal < ties;
        if (more || tie) chosen[level.slot + above + min(equal, ties)] = i;
        above += more, equal += keys[i] == least;
    }
    for (u32 j = all_above + min(ties, sums[1][blockDim.x - 1]) + threadIdx.x; j < most; j += blockDim.x) chosen[level.slot + j] = kNone;
}
CPU_KERNEL(proposal_top)

// The box, score and level of each chosen anchor. A score of -1 is none, one of infinity a value that is not finite.
extern "C" __global__ void proposal_candidates(const u64 *table, const u32 *chosen, float *boxes, float *scores, u32 *levels, u32 *keys,
                                               const u32 *all, u32 count, u32 level_count, float least_score, BOX_RULE) {
    const u32 slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= count) return;
    const BoxRule rule = BOX_RULE_VALUES;
    u32 at = 0;
    while (at + 1 < level_count && slot >= u32(table[kLevelColumns * (at + 1) + 9])) ++at;
    const ProposalLevel level(table, at);
    const u32 anchor = chosen[slot];
    float score = -1.0f, *b = boxes + 4 * size_t(slot);
    b[0] = b[1] = b[2] = b[3] = 0.0f;
    keys[slot] = anchor == kNone ? 0 : all[level.first + anchor];
    levels[slot] = at;
    if (keys[slot] == kNotFinite) {
        score = INFINITY;
    } else if (anchor != kNone) {
        proposal(level, anchor, rule, b);
        const float sigmoid = 1.0f / (1.0f + expf(-level.logit(anchor)));
        if (rule.large(b) && sigmoid >= least_score) score = sigmoid;
    }
    scores[slot] = score;
}
CPU_KERNEL(proposal_candidates)
