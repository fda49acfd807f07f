#!/usr/bin/env python3
"""What only a GPU can show, in one run of at most eight minutes: parity, sanitizer, throughput, profile.

    check.py --bin DIR --out DIR [--device cuda] [--size base|tiny] [PART…]

Needs Python 3.9 and nothing else; PyTorch with transformers, compute-sanitizer and nsys are used where they are installed. Each
PART (parity, sanitizer, throughput, profile) runs alone too; one that fails does not stop the next. Writes check.json and
check.md into --out. The exit code is 1 when a part failed. `--device cpu --size tiny` shows that the script works."""
import argparse
import array
import csv
import datetime
import io
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 20  # lxmert-train writes a record every 20 steps
# Largest difference from the CPU that is rounding: features and boxes relative to the largest, losses, gradient norms, and how
# far the weights lie apart after 20 steps relative to how far they went. f32 without TF32 on the device.
BOUNDS = {"features": 1e-3, "boxes": 1e-3, "loss, first step": 1e-5, "loss, 20 steps": 1e-4, "gradient norm": 1e-3, "weights": 2e-2}


class Skipped(Exception):
    pass


class Checks:
    def __init__(self, options):
        self.options, self.bin, self.out = options, pathlib.Path(options.bin).resolve(), pathlib.Path(options.out).resolve()
        self.work = self.out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + options.limit
        self.rows = []

    def row(self, part, what, value, unit="", bound=None):
        ok = None if bound is None else bool(value <= bound)
        self.rows.append({"part": part, "what": what, "value": value, "unit": unit, "bound": bound, "ok": ok})
        print(f"{part}: {what}: {value:.4g} {unit}{'' if bound is None else f' (bound {bound:g})'}", flush=True)
        return ok is not False

    def command(self, words, **environment):
        """Runs a command; gives what it printed. The end of its output is the error."""
        left = self.end - time.monotonic()
        if left < 5:
            raise RuntimeError("no time left")
        words = [str(word) for word in words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=left, cwd=ROOT, env={**os.environ, **environment})
        text = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{text[-2000:]}")
        return text

    def size(self, base, tiny):
        return base if self.options.size == "base" else tiny

    # Inputs: drawn scenes, their regions by the small detector that ships, found on the CPU once.

    def scenes(self):
        images, captions = ROOT / "data/scenes/images", ROOT / "data/scenes/results.csv"
        if not captions.is_file():
            self.command([self.bin / "lxmert-extract", "--device", "cpu", "-q"])
        names = sorted(path.name for path in images.iterdir())[: self.size(512, 24)]
        folder = self.work / "images"
        if not folder.is_dir():
            folder.mkdir()
            for name in names:
                shutil.copy(images / name, folder / name)
        held = max(4, len(names) // 8)
        splits = {"train": names[: -2 * held], "val": names[-2 * held : -held], "test": names[-held:]}
        (self.work / "splits.json").write_text(json.dumps(splits))
        return folder, captions

    def extract(self, device, output, **environment):
        images, _ = self.scenes()
        shutil.rmtree(output, ignore_errors=True)
        words = [self.bin / "lxmert-extract", "--images", images, "--detector", "scenes", "--output", output, "--device", device]
        return self.command(words, **environment)

    def store(self):
        store = self.work / "regions"
        if not (store / "index.json").is_file():
            self.extract("cpu", store)
        return store

    def training(self, device, name, steps, *more, preset=None):
        _, captions = self.scenes()
        output = self.work / name
        words = ["--features", self.store(), "--captions", captions, "--splits", self.work / "splits.json", "--allow-missing-images"]
        words += ["--preset", preset or self.size("base", "tiny"), "--steps", steps, "--device", device, "--output", output, "--overwrite"]
        return [self.bin / "lxmert-train", *words, "-q", *more], output

    def train(self, device, name, steps, *more, **environment):
        words, output = self.training(device, name, steps, *more)
        self.command(words, **environment)
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return records, output

    # (a)

    def parity(self):
        device, fine = self.options.device, True
        other = self.work / "regions-device"
        self.extract(device, other)
        ours, theirs = store_tensors(self.store()), store_tensors(other)
        for kind in ("features", "boxes"):
            fine &= self.row("parity", kind, furthest(ours, theirs, kind), bound=BOUNDS[kind])
        settings = ["--batch-size", "8", "--precision", "f32", "--seed", "0"]
        runs = {"device": {}, "device, composed": {"LXMERT_KERNELS": "reference"}}
        first, start = self.train("cpu", "parity-cpu-1", 1, *settings)
        whole, end = self.train("cpu", "parity-cpu", STEPS, *settings)
        for run, environment in runs.items():
            note = "" if run == "device" else ", kernels off"
            one, _ = self.train(device, "parity-device-1", 1, *settings, **environment)
            all_, weights = self.train(device, "parity-device", STEPS, *settings, **environment)
            differ = lambda key, a, b: abs(find(a, key) - find(b, key)) / max(abs(find(a, key)), 1e-12)
            found = {
                "loss, first step": differ("train_loss", first, one),
                "loss, 20 steps": differ("train_loss", whole, all_),
                "gradient norm": differ("gradient_norm", whole, all_),
                "weights": apart(weights_of(start), weights_of(end), weights_of(weights)),
            }
            for what, value in found.items():
                fine &= self.row("parity", what + note, value, bound=BOUNDS[what])
        if not fine:
            raise RuntimeError("a difference is larger than its bound")

    # (b)

    def sanitizer(self):
        tool = shutil.which("compute-sanitizer")
        if not tool or self.options.device == "cpu":
            raise Skipped("compute-sanitizer is not here" if not tool else "it needs a GPU")
        for check in ("memcheck", "racecheck"):
            words, _ = self.training(self.options.device, f"sanitizer-{check}", 1, "--batch-size", "2", preset="tiny")
            self.command([tool, "--tool", check, "--error-exitcode", "9", *words])
            self.row("sanitizer", check, 0, "errors", bound=0)

    # (c)

    def throughput(self):
        device = self.options.device
        batch, steps = self.size(256, 8), self.size(60, STEPS)
        precisions = ["f32", "bf16"] if device != "cpu" else ["f32"]
        for precision in precisions:
            for task in ("pretraining", "matching"):
                settings = ["--task", task, "--batch-size", batch, "--precision", precision]
                records, _ = self.train(device, f"speed-{task}", steps, *settings)
                speeds = [r["examples_per_second"] for r in records if "examples_per_second" in r]
                self.row("throughput", f"{task}, {precision}, batch {batch}", speeds[-1], "examples/s")
            pairs, seconds = self.evaluation(device, precision, batch)
            self.row("throughput", f"evaluation, {precision}, batch {batch}", pairs / seconds, "pairs/s")
        start = time.monotonic()
        text = self.extract(device, self.work / "regions-speed")
        count = self.size(512, 24)
        self.row("throughput", "extraction, with start", count / (time.monotonic() - start), "images/s")
        print(text.strip().splitlines()[-1])
        peer = [sys.executable, ROOT / "scripts/gpu/peer.py", "--device", device, "--batch", batch, "--size", self.options.size]
        try:
            for line in self.command(peer).splitlines():
                if line.startswith("{"):
                    found = json.loads(line)
                    self.row("throughput", found["what"], found["value"], "examples/s")
        except RuntimeError as error:
            print(f"throughput: no peer: {str(error).strip().splitlines()[-1]}")

    def evaluation(self, device, precision, batch):
        """How many pairs more one split has than another, and how much longer it takes: the program's start is in both times. Every
        caption is there `times` times, so that a fast device has something to do."""
        _, captions = self.scenes()
        header, *lines = captions.read_text().splitlines()
        times, repeated = self.size(20, 4), self.work / "captions-repeated.csv"
        repeated.write_text("\n".join([header, *lines * times]) + "\n")
        found = []
        for split in ("test", "train"):
            words = ["evaluate", self.work / "speed-matching", "--split", split, "--recall-images", "0", "--json", "-q"]
            words += ["--features", self.store(), "--captions", repeated, "--splits", self.work / "splits.json"]
            words += ["--allow-missing-images", "--device", device, "--precision", precision, "--batch-size", batch]
            start = time.monotonic()
            text = self.command([self.bin / "lxmert-train", *words])
            measures = json.loads(text[text.index("{") : text.rindex("}") + 1])["measures"]
            found.append((sum(of["pairs"] for of in measures.values() if "pairs" in of), time.monotonic() - start))
        (few, start), (many, whole) = found
        return many - few, max(whole - start, 1e-3)

    # (d)

    def profile(self):
        tool = shutil.which("nsys")
        if not tool or self.options.device == "cpu":
            raise Skipped("nsys is not here" if not tool else "it needs a GPU")
        words, _ = self.training(self.options.device, "profile", 5, "--batch-size", self.size(256, 8), "--precision", "bf16")
        images, _ = self.scenes()
        detector = [self.bin / "lxmert-extract", "--images", images, "--detector", "scenes", "--device", self.options.device]
        detector += ["--output", self.work / "regions-profile"]
        for name, command in (("step", words), ("detector", detector)):
            shutil.rmtree(self.work / "regions-profile", ignore_errors=True)
            report = self.work / f"profile-{name}"
            self.command([tool, "profile", "--trace", "cuda", "--force-overwrite", "true", "-o", report, *command])
            text = self.command([tool, "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", f"{report}.nsys-rep"])
            table = text[text.index("Time (%)") :]
            for kernel in list(csv.DictReader(io.StringIO(table)))[:15]:
                self.row(f"profile, {name}", kernel["Name"][:80], float(kernel["Time (%)"]), f"% in {kernel['Instances']} launches")

    def run(self, parts):
        outcome = {}
        for part in parts:
            start = time.monotonic()
            try:
                getattr(self, part)()
                outcome[part] = "passed"
            except Skipped as reason:
                outcome[part] = f"skipped: {reason}"
            except Exception as error:  # whatever it is, the next part runs
                outcome[part] = f"FAILED: {error}"
            print(f"{part}: {outcome[part]} ({time.monotonic() - start:.0f} s)", flush=True)
            self.write(outcome)
        return not any(text.startswith("FAILED") for text in outcome.values())

    def write(self, outcome):
        smi = shutil.which("nvidia-smi")
        query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        card = subprocess.run(query, capture_output=True, text=True).stdout.strip() if smi else "no GPU"
        facts = {"date": datetime.date.today().isoformat(), "card": card, "device": self.options.device, "size": self.options.size}
        (self.out / "check.json").write_text(json.dumps({**facts, "parts": outcome, "rows": self.rows}, indent=1))
        lines = [f"{facts['date']}, {card}, --device {facts['device']} --size {facts['size']}", ""]
        lines += [f"- {part}: {' '.join(text.split())[:300]}" for part, text in outcome.items()]
        lines += ["", "| part | what | value | bound |", "| --- | --- | ---: | ---: |"]
        for r in self.rows:
            bound = "" if r["bound"] is None else f"{r['bound']:g}{'' if r['ok'] else ' EXCEEDED'}"
            lines.append(f"| {r['part']} | {r['what']} | {r['value']:.4g} {r['unit']} | {bound} |")
        (self.out / "check.md").write_text("\n".join(lines) + "\n")


def tensors_of(path):
    """The f32 tensors of a safetensors file, as arrays."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = array.array("f", data[start:end])
    return found


def store_tensors(folder):
    return [tensors_of(path) for path in sorted(folder.glob("shard-*.safetensors"))]


def weights_of(run):
    return tensors_of(run / "last" / "model.safetensors")


def furthest(ours, theirs, kind):
    """Largest difference of the tensors of this name, over the largest value."""
    pairs = [(a[kind], b[kind]) for a, b in zip(ours, theirs)]
    if len(ours) != len(theirs) or any(len(a) != len(b) for a, b in pairs):
        return math.inf
    return max(max(abs(x - y) for x, y in zip(a, b)) / max(max(map(abs, a)), 1e-12) for a, b in pairs)


def apart(start, end, other):
    """How far two runs' weights lie apart, over how far the first went."""
    total = lambda a, b: sum((x - y) ** 2 for name in a for x, y in zip(a[name], b[name]))
    return math.sqrt(total(end, other) / max(total(start, end), 1e-30))


def find(records, key):
    return next(record[key] for record in reversed(records) if key in record)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="folder of lxmert-extract and lxmert-train")
    parser.add_argument("--out", required=True, help="folder for check.json, check.md and what the runs leave")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=["base", "tiny"], default="base")
    parser.add_argument("--limit", type=float, default=480, help="seconds in all")
    known = ["parity", "sanitizer", "throughput", "profile"]
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(known))
    options = parser.parse_args()
    unknown = set(options.parts) - set(known)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    sys.exit(0 if Checks(options).run(options.parts or known) else 1)


if __name__ == "__main__":
    main()
