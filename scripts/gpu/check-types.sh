#!/usr/bin/env bash
# check-types.sh [CARGO ARGUMENTS]: type-checks the feature `cuda` on a machine without CUDA, in a minute or two. candle's own
# kernels take nvcc nine minutes and are not what is checked, so a stand-in writes an empty file for each of them; this
# workspace's kernels go through the real nvcc where there is one ($NVCC, $CUDA_HOME/bin, PATH). Without arguments it checks
# lxmert-core. Nothing that it builds can run.
set -euo pipefail
cd "$(dirname "$0")/../.."
real=${NVCC:-$(command -v nvcc || true)}
[ -n "$real" ] || { [ -x "${CUDA_HOME:-}/bin/nvcc" ] && real=$CUDA_HOME/bin/nvcc; } || true
root=${CARGO_TARGET_DIR:-target}/cuda-types
mkdir -p "$root/toolkit/bin" "$root/toolkit/include" "$root/toolkit/lib64"
root=$(cd "$root" && pwd)
touch "$root/toolkit/include/cuda.h"
cat >"$root/toolkit/bin/nvcc" <<'STUB'
#!/usr/bin/env bash
[ "${1:-}" != --version ] || { printf '\n\n\nCuda compilation tools, release 13.0, V13.0.0\n'; exit; }
args=("$@")
for ((i = 0; i < ${#args[@]}; i++)); do
  case ${args[i]} in
  --output-directory) folder=${args[i + 1]} ;;
  -o) out=${args[i + 1]} ;;
  --lib) library=1 ;;
  esac
done
name=$(basename "${args[-1]%.cu}")
if [ -n "${library:-}" ]; then ar rc "$out"; elif [ -n "${out:-}" ]; then : >"$out"; else : >"$folder/$name.ptx"; fi
STUB
chmod +x "$root/toolkit/bin/nvcc"
if [ -n "$real" ]; then
  echo "kernels compiled by $real"
  export LXMERT_NVCC=$real
else
  echo "no nvcc: the kernels are type-checked by the host's compiler alone (tests/cuda_kernels.rs), not by CUDA's"
fi
unset NVCC
export CUDA_HOME=$root/toolkit CUDA_PATH=$root/toolkit CUDA_ROOT=$root/toolkit CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
PATH=$root/toolkit/bin:$PATH
[ $# -gt 0 ] || set -- -p lxmert-core
CARGO_TARGET_DIR=$root cargo check --locked --features cuda "$@"
