// Runs CUDA kernels as plain C++ on one CPU thread, for tests: each thread of a block is a fiber, and blocks run one after
// another, so that __shared__ is static storage. Deterministic. Barriers are real: a block's needs every thread of the block, a
// warp's (and a shuffle's) every lane of the warp; anything else aborts with a message. A warp runs to the next barrier of its block
// before the next warp starts, and in reverse the last warp and lane come first (cuda_on_cpu_reverse): where a barrier is missing,
// one of the two gives a wrong result. It cannot time anything, run tensor-core instructions,
// or show races between blocks; `compute-sanitizer --tool racecheck` on a GPU does the last.
#pragma once
#include <algorithm>
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__ __restrict

struct Index3 { unsigned x, y, z; };

namespace cpu {
enum class State { ready, at_block, at_warp, done };
struct Fiber { ucontext_t context; jmp_buf jump; std::unique_ptr<char[]> stack; State state; bool started, vote; };

inline Index3 thread_index, block_index, block_dim, grid_dim;
inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline unsigned current;
inline bool reversed;
inline std::function<void()> body;
inline std::vector<char> dynamic_shared;
inline uint64_t lane_slot[32][32]; // [warp][lane]
constexpr size_t kStack = 64 << 10;

[[noreturn]] inline void fail(const char *what) { fprintf(stderr, "cuda_on_cpu: %s\n", what); abort(); }

// Jumps, not swapcontext, which enters the kernel of the operating system at every switch.
inline void wait(State state) {
    Fiber &fiber = fibers[current];
    fiber.state = state;
    if (_setjmp(fiber.jump) == 0) _longjmp(scheduler, 1);
}
inline void entry() { body(); wait(State::done); }
inline void resume(Fiber &fiber) {
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.jump, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}
inline bool all(unsigned from, unsigned to, State state) {
    for (unsigned i = from; i < to; ++i) if (fibers[i].state != state) return false;
    return true;
}
inline void release(unsigned from, unsigned to) { for (unsigned i = from; i < to; ++i) fibers[i].state = State::ready; }

// As far as it goes without the other warps, so that what it should have waited for is missing.
inline void run_warp(unsigned first) {
    do {
        for (unsigned k = 0; k < 32; ++k) {
            current = first + (reversed ? 31 - k : k);
            thread_index = {current, 0, 0};
            if (fibers[current].state == State::ready) resume(fibers[current]);
        }
        if (!all(first, first + 32, State::at_warp)) return;
        release(first, first + 32);
    } while (true);
}

inline void run_block() {
    const unsigned n = block_dim.x;
    std::fill(dynamic_shared.begin(), dynamic_shared.end(), char(0xCD));
    for (unsigned i = 0; i < n; ++i) {
        Fiber &f = fibers[i];
        if (!f.stack) f.stack.reset(new char[kStack]);
        f.state = State::ready;
        f.started = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = kStack;
        f.context.uc_link = nullptr;
        makecontext(&f.context, entry, 0);
    }
    while (!all(0, n, State::done)) {
        for (unsigned w = 0; w < n; w += 32) run_warp(reversed ? n - 32 - w : w);
        if (all(0, n, State::at_block)) release(0, n);
        else if (!all(0, n, State::done)) fail("threads wait at a barrier that others never reach");
    }
}
template <class... A, size_t... I> void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A> *>(args[I])...);
}
template <class... A> void launch(void (*kernel)(A...), const unsigned *grid, unsigned threads, size_t shared, void **args) {
    if (threads == 0 || threads % 32 != 0 || threads > 1024) fail("a block has 32 to 1024 threads, in whole warps");
    if (shared > (48 << 10)) fail("more than 48 KiB of shared memory");
    grid_dim = {grid[0], grid[1], grid[2]};
    block_dim = {threads, 1, 1};
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    dynamic_shared.resize(shared);
    body = [=] { call(kernel, args, std::index_sequence_for<A...>{}); };
    for (unsigned z = 0; z < grid[2]; ++z) for (unsigned y = 0; y < grid[1]; ++y) for (unsigned x = 0; x < grid[0]; ++x) {
        block_index = {x, y, z};
        run_block();
    }
}
template <class T> T shuffle_xor(T value, int mask) {
    const unsigned warp = current / 32, lane = current % 32;
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    lane_slot[warp][lane] = bits;
    wait(State::at_warp);
    bits = lane_slot[warp][lane ^ mask];
    wait(State::at_warp);
    T out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
} // namespace cpu

#define threadIdx cpu::thread_index
#define blockIdx cpu::block_index
#define blockDim cpu::block_dim
#define gridDim cpu::grid_dim
inline void __syncthreads() { cpu::wait(cpu::State::at_block); }
inline void __syncwarp(unsigned = ~0u) { cpu::wait(cpu::State::at_warp); }
inline int __syncthreads_or(int vote) {
    cpu::fibers[cpu::current].vote = vote != 0;
    __syncthreads();
    bool any = false;
    for (unsigned i = 0; i < cpu::block_dim.x; ++i) any |= cpu::fibers[i].vote;
    __syncthreads();
    return any;
}
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return cpu::shuffle_xor(value, mask); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline uint32_t __float_as_uint(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
using std::min;
struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    bits += 0x7fff + ((bits >> 16) & 1);
    return {uint16_t(bits >> 16)};
}
extern "C" inline __attribute__((used, visibility("default"))) void cuda_on_cpu_reverse(int reverse) { cpu::reversed = reverse != 0; }
#define DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(cpu::dynamic_shared.data())
#define CPU_KERNEL(name)                                                                                   \
    extern "C" void cpu_##name(const unsigned *grid, unsigned threads, size_t shared, void **arguments) {  \
        cpu::launch(name, grid, threads, shared, arguments);                                               \
    }
