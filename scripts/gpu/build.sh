#!/usr/bin/env bash
# build.sh OUT: lxmert-extract and lxmert-train with CUDA, on a machine without a GPU, for one that has one: stripped, into OUT.
# nvcc: CUDA_HOME (or a toolkit on PATH); without one it comes as Python wheels into OUT/toolkit. candle's kernels take it some nine
# minutes on two cores. CUDA's libraries are linked by name alone (empty stand-ins), as they are found where the program runs:
# libcuda in the driver, the rest in a toolkit or in a PyTorch installation (LD_LIBRARY_PATH=…/nvidia/*/lib).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "${1:?usage: build.sh OUT}" && cd "$1" && pwd)
limit=45 # MB, both together
if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-}/bin/nvcc" ]; then
  if [ ! -d "$out/toolkit" ]; then
    python3 -m venv "$out/toolkit"
    "$out/toolkit/bin/pip" -q install "nvidia-cuda-nvcc==13.0.*" "nvidia-nvvm==13.0.*" "nvidia-cuda-crt==13.0.*" \
      "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cccl==13.0.*" "nvidia-curand==10.4.*"
  fi
  CUDA_HOME=$(echo "$out"/toolkit/lib/python3*/site-packages/nvidia/cu13)
fi
export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(command -v nvcc)")")} CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
export CUDA_PATH=$CUDA_HOME CUDA_ROOT=$CUDA_HOME PATH=$CUDA_HOME/bin:$PATH
target=${CARGO_TARGET_DIR:-target}
build() { cargo "$@" --locked --release --features lxmert-extract/cuda,lxmert-train/cuda -p lxmert-extract -p lxmert-train; }

# Libraries first: their undefined symbols say what the stand-ins must have.
build build --lib
stubs=$out/stubs
mkdir -p "$stubs"
nm --undefined-only "$target"/release/deps/lib{cudarc,candle_kernels}-*.rlib 2>/dev/null | awk '$1 == "U" {print $2}' | sort -u >"$stubs/undefined.txt" || true
for entry in "cuda libcuda.so.1 ^cu[A-Z]" "nvrtc libnvrtc.so.13 ^nvrtc" "curand libcurand.so.10 ^curand" \
  "cublasLt libcublasLt.so.13 ^cublasLt" "cublas libcublas.so.13 ^cublas[^L]" "cudnn libcudnn.so.9 ^cudnn" \
  "nccl libnccl.so.2 ^p*nccl" "cudart libcudart.so.13 ^(cuda[A-Z]|__cuda)"; do
  read -r name soname pattern <<<"$entry"
  { grep -E "$pattern" "$stubs/undefined.txt" || true; } | sed 's/.*/void &(void) {}/' >"$stubs/$name.c"
  cc -shared -o "$stubs/lib$name.so" -Wl,-soname,"$soname" "$stubs/$name.c"
done
# The same flags for every crate would build all of them again; only the programs need the stand-ins.
LIBRARY_PATH=$stubs${LIBRARY_PATH:+:$LIBRARY_PATH} build build --bins
for program in lxmert-extract lxmert-train; do
  cp "$target/release/$program" "$out/$program"
  strip "$out/$program"
done
size=$(du -cm "$out"/lxmert-extract "$out"/lxmert-train | awk 'END {print $1}')
echo "$out: lxmert-extract and lxmert-train, $size MB"
[ "$size" -lt "$limit" ] || { echo "over $limit MB" >&2; exit 1; }
