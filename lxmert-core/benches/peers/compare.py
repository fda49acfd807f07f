"""Runs both sides in turns in one sitting, and prints the table of `docs/speed.md`.

    python lxmert-core/benches/peers/compare.py [--rounds N] [--runs N] [--threads N] [--profile dev] [--only WORD] [--skip WORD]
        [--avx2] [--images N] [--folder DIR] [--scaling]

Builds our benches with cargo, then in each round runs our bench and the peers' script of every row; prints medians over all
rounds, and ratios. The last rows, which have no peer, are about a feature store of Flickr30k's size (`--images` changes it),
written once into a temporary folder in DIR: 9.4 GB. `--avx2` holds our kernels and PyTorch to AVX2, which most CPUs have; ONNX Runtime and
OpenVINO cannot be held and are marked. `--scaling` instead prints how our speed depends on threads, batch size and
image size; it takes a few minutes.
"""
import argparse, collections, datetime, functools, json, os, pathlib, platform, statistics, subprocess, sys, tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# Case, our variants of it, goal in seconds if there is one.
ROWS = [
    ("detector", "detector network", [""], 1.0),
    ("detector", "detector network, bf16", [""], 0.7),
    ("detector", "whole image", [""], 1.3),
    ("detector", "whole image, bf16", [""], None),
    ("visual genome", "visual genome image", [""], 7.5),
    ("visual genome", "visual genome image, bf16", [""], 4.5),
    ("steps", "base forward, batch 1", ["", ", pooled output"], 0.08),
    ("steps", "base forward, batch 8", ["", ", pooled output"], None),
    ("steps", "base forward, batch 32", ["", ", pooled output"], 1.6),
    ("steps", "base forward, batch 32, real lengths", ["", ", pooled output"], 1.2),
    ("steps", "base step, batch 32", [""], 5.5),
    ("steps", "small step, batch 64", [""], 0.55),
    ("steps", "student step, batch 32", [""], 0.2),
    ("steps", "base forward, batch 1, bf16", [""], None),
    ("steps", "base forward, batch 8, bf16", [""], None),
    ("steps", "base forward, batch 32, bf16", [""], None),
    ("steps", "base forward, batch 32, real lengths, bf16", [""], None),
    ("steps", "base step, batch 32, bf16", [""], None),
    ("steps", "small step, batch 64, bf16", [""], None),
    ("steps", "student step, batch 32, bf16", [""], None),
]
# Case, its key in the line of the bench `store`, goal in seconds or MB.
STORE_ROWS = [
    ("feature store, opening", "open_seconds", 0.05),
    ("feature store, first batch of 32", "first_batch_seconds", 0.2),
    ("feature store, peak resident memory", "resident_megabytes", 1000),
]
# Holds our kernels, and PyTorch's libraries, to AVX2.
AVX2 = dict(LXMERT_KERNELS="avx2", ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2", MKL_ENABLE_INSTRUCTIONS="AVX2")
# The crate and the bench that run the rows of a kind, and the peers' script.
KINDS = {
    "detector": ("lxmert-extract", "detector", "detector.py"),
    "visual genome": ("lxmert-extract", "detector", "visual_genome.py"),
    "steps": ("lxmert-train", "steps", "lxmert.py"),
    "store": ("lxmert-core", "store", None),
}


@functools.cache
def build(kind, profile):
    """The path of a bench's executable."""
    crate, bench, _ = KINDS[kind]
    command = ["cargo", "bench", "-p", crate, "--bench", bench, "--profile", profile, "--no-run", "--message-format=json"]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    artifacts = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return next(a["executable"] for a in artifacts if a.get("executable") and a["target"]["name"] == bench)


def lines(command, threads):
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def show(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def judged(ours, goal, show=show):
    return "" if goal is None else f"{show(goal)} {'reached' if ours <= goal else 'not reached'}"


def table(a):
    wanted = lambda case: (not a.only or a.only in case) and not (a.skip and a.skip in case)
    rows = [row for row in ROWS if wanted(row[1])]
    store_rows = [row for row in STORE_ROWS if wanted(row[0])]
    for kind in {row[0] for row in rows} | ({"store"} if store_rows else set()):
        build(kind, a.profile)
    print(f"{datetime.date.today()}, {cpu()}, {a.threads} threads, load {os.getloadavg()[0]:.1f} at the start\n")
    print("| work | ours | peer | its time | peer / ours | goal |\n| --- | --- | --- | --- | --- | --- |")
    for kind, case, variants, goal in rows:
        ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
        for _ in range(a.rounds):
            for line in lines([build(kind, a.profile), "--runs", str(a.runs), *(case + v for v in variants)], a.threads):
                ours[line["case"]] += line["seconds"]
            script = [sys.executable, str(HERE / KINDS[kind][2]), "--runs", str(a.runs), "--threads", str(a.threads), case]
            for line in lines(script, a.threads):
                theirs[line["peer"]] += line["seconds"]
        for name, seconds in ours.items():
            mine = statistics.median(seconds)
            for peer, seconds in theirs.items():
                other = statistics.median(seconds)
                if a.avx2 and peer.startswith(("ONNX", "OpenVINO")):
                    peer += " (not held to AVX2)"
                print(f"| {name} | {show(mine)} | {peer} | {show(other)} | {other / mine:.2f} | {judged(mine, goal)} |", flush=True)
    if store_rows:
        store(a, store_rows)


def store(a, rows):
    program = build("store", a.profile)
    with tempfile.TemporaryDirectory(prefix="lxmert-store-", dir=a.folder) as folder:
        lines([program, "--write", folder, "--images", str(a.images)], a.threads)
        read = [line for _ in range(a.rounds) for line in lines([program, "--read", folder], a.threads)]
    for case, key, goal in rows:
        measured = [line[key] for line in read if line[key] is not None]
        if measured:  # memory is known only on Linux
            unit = (lambda megabytes: f"{megabytes:.0f} MB") if key.endswith("megabytes") else show
            ours = statistics.median(measured)
            print(f"| {case}, {a.images:,} images | {unit(ours)} |  |  |  | {judged(ours, goal, unit)} |", flush=True)


def scaling(a):
    steps, detector = build("steps", a.profile), build("detector", a.profile)
    print(f"{datetime.date.today()}, {cpu()}, load {os.getloadavg()[0]:.1f} at the start; a second's worth of work, medians of {a.runs} runs\n")
    print("| work | per second, 1 thread | 2 threads | ratio |\n| --- | --- | --- | --- |")

    def row(binary, arguments, count, label):
        rates = []
        for threads in [1, 2]:
            line, = lines([binary, "--runs", str(a.runs), *arguments], threads)
            rates.append(count / statistics.median(line["seconds"]))
        one, two = rates
        print(f"| {label} | {one:.2f} | {two:.2f} | {two / one:.2f} |", flush=True)

    for height, width in [(416, 544), (608, 832), (800, 1088)]:
        size = ["--height", str(height), "--width", str(width)]
        row(detector, [*size, "detector network"], 1, f"detector network, images of {height} x {width}")
    for batch in [1, 8, 32]:
        row(steps, ["--batch", str(batch), "base forward, batch 32"], batch, f"base forward, pairs in batches of {batch}")
    for batch in [16, 64, 128]:
        row(steps, ["--batch", str(batch), "small step, batch 64"], batch, f"small step, pairs in batches of {batch}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--profile", default="bench")
    p.add_argument("--only", help="only rows with this text in their name")
    p.add_argument("--skip", help="no rows with this text in their name")
    p.add_argument("--avx2", action="store_true", help="hold our kernels and PyTorch to AVX2")
    p.add_argument("--images", type=int, default=31_783, help="images of the feature store")
    p.add_argument("--folder", help="where to write the feature store [default: the system's folder for temporary files]")
    p.add_argument("--scaling", action="store_true")
    a = p.parse_args()
    if a.avx2:
        os.environ |= AVX2
    (scaling if a.scaling else table)(a)


main()
