// Regions pooled from the levels of a pyramid, as lxmert-extract's detector/roi_align.rs and roi_pool.rs: one thread a value. A sample's
// place is rounded as on the CPU, without fused multiply-adds; the values may differ in rounding.
#pragma once
#include "common.cuh"

// A row of the table, [levels, 4]: features, [channels, height, width], and the bits of the scale from the regions' unit to its cells.
struct PooledLevel {
    const float *features;
    u32 height, width;
    float scale;
    __device__ PooledLevel(const u64 *table, u32 level, u32 channel) {
        const u64 *row = table + 4 * level;
        height = u32(row[1]), width = u32(row[2]), scale = __uint_as_float(u32(row[3]));
        features = reinterpret_cast<const float *>(row[0]) + size_t(channel) * height * width;
    }
};

// One axis of a sample point: its two neighbours and their weights, none (0) more than a cell outside.
struct SampleAxis {
    u32 low, high;
    float low_weight, high_weight;
    bool inside;
    __device__ SampleAxis(float at, u32 size) : low(0), high(0), low_weight(0.0f), high_weight(0.0f) {
        inside = at >= -1.0f && at <= float(size); // false for NaN
        if (!inside) return;
        at = fmaxf(at, 0.0f);
        low = u32(at);
        if (low >= size - 1) {
            low = high = size - 1;
            low_weight = 1.0f;
            return;
        }
        high = low + 1;
        high_weight = at - float(low);
        low_weight = 1.0f - high_weight;
    }
};

// The samples of one axis of a bin.
struct SampleGrid {
    float start, bin;
    u32 count, size;
    __device__ SampleGrid(float from, float to, float scale, u32 bins, u32 index, u32 ratio, u32 cells) : size(cells) {
        const float first = __fmul_rn(from, scale);
        bin = fmaxf(__fmul_rn(to, scale) - first, 1.0f) / float(bins);
        start = __fadd_rn(first, __fmul_rn(float(index), bin));
        const u32 most = cells * 4 > 1024 ? cells * 4 : 1024; // as on the CPU, for regions of broken files
        count = ratio ? ratio : u32(fminf(ceilf(bin), float(most)));
    }
    __device__ SampleAxis at(u32 i) const { return {__fadd_rn(start, __fmul_rn(float(i) + 0.5f, bin) / float(count)), size}; }
};

// A region in grid.x. `regions`: [regions, 6], of which the first four are x0 y0 x1 y1; `out`: [regions, channels, bins, bins]. A region's
// level is that of its size (RoiPooler::assign).
extern "C" __global__ void roi_align(const u64 *table, const float *regions, float *out, u32 levels, u32 channels, u32 bins, u32 ratio,
                                     float canonical_level, float canonical_size, float finest) {
    const u32 at = blockIdx.y * blockDim.x + threadIdx.x, channel = at / (bins * bins);
    if (channel >= channels) return;
    const float *b = regions + 6 * size_t(blockIdx.x);
    const float area = __fmul_rn(fmaxf(b[2] - b[0], 0.0f), fmaxf(b[3] - b[1], 0.0f));
    const float wanted = floorf(canonical_level + log2f(sqrtf(area) / canonical_size) + 1e-6f) - finest;
    const PooledLevel level(table, u32(fminf(fmaxf(wanted, 0.0f), float(levels - 1))), channel);
    const SampleGrid rows(b[1], b[3], level.scale, bins, at / bins % bins, ratio, level.height);
    const SampleGrid columns(b[0], b[2], level.scale, bins, at % bins, ratio, level.width);
    const float count = fmaxf(float(rows.count * columns.count), 1.0f);
    float sum = 0.0f;
    for (u32 i = 0; i < rows.count; ++i) {
        const SampleAxis y = rows.at(i);
        if (!y.inside) continue;
        const float *low = level.features + size_t(y.low) * level.width, *high = level.features + size_t(y.high) * level.width;
        for (u32 j = 0; j < columns.count; ++j) {
            const SampleAxis x = columns.at(j);
            if (!x.inside) continue;
            sum += y.low_weight * x.low_weight / count * low[x.low] + y.low_weight * x.high_weight / count * low[x.high];
            sum += y.high_weight * x.low_weight / count * high[x.low] + y.high_weight * x.high_weight / count * high[x.high];
        }
    }
    out[size_t(blockIdx.x) * channels * bins * bins + at] = sum;
}
CPU_KERNEL(roi_align)

// The cells of a bin along one side of a region, as `bins` of roi_pool.rs; corners beyond 2^30 cells count as there.
struct PooledCells {
    u32 start, end;
    __device__ PooledCells(float from, float to, float scale, u32 bins, u32 index, u32 cells) {
        const long long first = round_cell(from, scale), last = round_cell(to, scale);
        const long long length = last - first + 1 > 1 ? last - first + 1 : 1;
        const float bin = float(length) / float(bins);
        start = inside(first, floorf(__fmul_rn(float(index), bin)), cells);
        end = inside(first, ceilf(__fmul_rn(float(index + 1), bin)), cells);
    }
    __device__ static long long round_cell(float at, float scale) {
        const float cell = roundf(__fmul_rn(at, scale));
        return cell == cell ? (long long)(fminf(fmaxf(cell, -1073741824.0f), 1073741824.0f)) : 0;
    }
    __device__ static u32 inside(long long first, float edge, u32 cells) {
        const long long at = first + (long long)(edge);
        return at < 0 ? 0 : at > cells ? cells : u32(at);
    }
};

// As `roi_align`, the largest value of each bin of one level; 0 where a bin is outside.
extern "C" __global__ void roi_pool(const u64 *table, const float *regions, float *out, u32 channels, u32 bins) {
    const u32 at = blockIdx.y * blockDim.x + threadIdx.x, channel = at / (bins * bins);
    if (channel >= channels) return;
    const float *b = regions + 6 * size_t(blockIdx.x);
    const PooledLevel level(table, 0, channel);
    const PooledCells rows(b[1], b[3], level.scale, bins, at / bins % bins, level.height);
    const PooledCells columns(b[0], b[2], level.scale, bins, at % bins, level.width);
    const bool empty = rows.start >= rows.end || columns.start >= columns.end;
    float top = empty ? 0.0f : level.features[size_t(rows.start) * level.width + columns.start];
    for (u32 y = rows.start; y < rows.end; ++y)
        for (u32 x = columns.start; x < columns.end; ++x) {
            const float v = level.features[size_t(y) * level.width + x];
            top = v > top || v != v ? v : top;
        }
    out[size_t(blockIdx.x) * channels * bins * bins + at] = top;
}
CPU_KERNEL(roi_pool)
