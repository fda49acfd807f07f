// The device's kernels, for two compilers: nvcc makes PTX of them (build.rs, feature `cuda`), and the host's C++ compiler a
// library that the tests hold against the CPU's operations (tests/cuda_kernels.rs).
#include "activation.cuh"
#include "attention.cuh"
#include "norm.cuh"
#include "optimiser.cuh"
#include "proposals.cuh"
#include "regions.cuh"
#include "sums.cuh"
#include "suppression.cuh"
