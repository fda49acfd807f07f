#!/usr/bin/env bash
# A training step on 2 ranks of one thread beside one process of two threads, at the same global batch: docs/scale.md,
# "Efficiency, measured". Needs an MPI, two idle cores, and five minutes after the build. `--quick` compares the small model alone.
set -euo pipefail
cd "$(dirname "$0")/.."
cases=("small step, batch 64" "base step, batch 32")
[ "${1:-}" = --quick ] && cases=("small step, batch 64")

built=$(cargo test --workspace --features lxmert-train/mpi --bench steps --no-run --message-format json |
  python3 -c 'import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable") and made["target"]["name"] == "steps": print(made["executable"])')
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

{
  "$built" --runs 4 --threads 2 "${cases[@]}"
  "$built" --runs 4 --threads 1 "${cases[@]}"
  mpirun -n 2 --oversubscribe --bind-to none "$built" --runs 4 --threads 1 "${cases[@]}"
} | python3 -c 'import json, statistics, sys
runs = [json.loads(line) for line in sys.stdin]
median = lambda run, of: statistics.median(run[of])
names = list(dict.fromkeys(run["case"] for run in runs))
print("| step | 1 process, 1 thread | 1 process, 2 threads | 2 ranks of 1 thread | of it the exchange | efficiency of the ranks |")
print("| --- | ---: | ---: | ---: | ---: | ---: |")
for name in names:
    two, one, ranks = [run for run in runs if run["case"] == name]
    two, one, step, exchange = median(two, "seconds"), median(one, "seconds"), median(ranks, "seconds"), median(ranks, "exchange_seconds")
    print(f"| {name} | {one:.2f} s | {two:.2f} s | {step:.2f} s | {1000 * exchange:.0f} ms | {100 * two / step:.0f} % |")'
