"""Code shared by the peers' scripts: arguments, timing, the formula of `lxmert_core::procedural`."""
import argparse, json, time
import numpy as np


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("cases", nargs="*")
    return p.parse_args()


def report(case, peer, runs, run):
    """Prints a JSON line with the seconds of each of `runs` runs, after one warm-up run."""
    seconds = []
    for i in range(runs + 1):
        start = time.perf_counter()
        run()
        if i > 0:
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"case": case, "peer": peer, "seconds": seconds}), flush=True)


def formula(name, shape, low, high, seed):
    """Element i of tensor `name`; see `procedural.rs`."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) % 2**64
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(key ^ seed) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float64) / 2**24
    return (low + (high - low) * u).astype(np.float32).reshape(shape)
