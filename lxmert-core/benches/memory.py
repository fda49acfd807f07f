"""Peak resident memory against the size of the data set: extraction from pictures, training from a store.

    python lxmert-core/benches/memory.py [--images N,N,…] [--preset NAME] [--steps N] [--folder DIR] [--profile dev]

Draws scenes and extracts them with the shipped detector; writes stores of random features (36 regions of 2048 numbers in
f32, five captions per image) with the bench `store`, and trains on them for the same number of steps whatever their size.
Everything is in a temporary folder in DIR, which is removed: 3 GB for 10,000 images. Needs only Python, on Linux or macOS.
"""
import argparse, json, os, pathlib, random, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "a the two young old man woman dog child people in on near with and red blue green standing running holding looks at street beach water field ball bike".split()


def build(profile):
    """Paths of the programs and of the bench, by name."""
    commands = [
        ["cargo", "build", "--profile", profile, "-p", "lxmert-extract", "-p", "lxmert-train", "--bins"],
        ["cargo", "bench", "--profile", profile, "-p", "lxmert-core", "--bench", "store", "--no-run"],
    ]
    paths = {}
    for command in commands:
        out = subprocess.run([*command, "--message-format=json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        artifacts = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        paths |= {a["target"]["name"]: a["executable"] for a in artifacts if a.get("executable")}
    return paths


def peak(command):
    """Runs a command; returns its peak resident memory in MB."""
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}:\n{errors}")
    # Linux counts in KiB, macOS in bytes.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def extraction(programs, folder, images):
    scenes, store = folder / "scenes", folder / "store"
    peak([programs["lxmert-extract"], "scenes", "--count", images, "--output", scenes, "-q"])
    return peak([programs["lxmert-extract"], "--images", scenes, "--detector", "scenes", "--output", store, "-q"]), size(store)


def training(programs, folder, images, preset, steps):
    store, captions = folder / "store", folder / "results.csv"
    peak([programs["store"], "--write", store, "--images", images])
    draw = random.Random(0)
    with captions.open("w") as file:
        file.write("image_name| comment_number| comment\n")
        for image in range(images):
            for number in range(5):
                file.write(f"{image:07}.jpg| {number}| {' '.join(draw.choices(WORDS, k=draw.randint(7, 18)))} .\n")
    command = [programs["lxmert-train"], "--captions", captions, "--features", store, "--output", folder / "run", "-q"]
    command += ["--preset", preset, "--batch-size", 32, "--steps", steps, "--recall-images", 0]
    return peak(command), size(store)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--images", default="100,1000,10000", type=lambda text: [int(n) for n in text.split(",")])
    p.add_argument("--preset", default="tiny")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--folder", default=tempfile.gettempdir())
    p.add_argument("--profile", default="bench")
    p.add_argument("--only", choices=["extraction", "training"])
    a = p.parse_args()
    programs = build(a.profile)
    print("| work | images | store | peak resident memory |\n| --- | --- | --- | --- |")
    works = {
        "extraction": lambda folder, images: extraction(programs, folder, images),
        "training": lambda folder, images: training(programs, folder, images, a.preset, a.steps),
    }
    for name, work in works.items():
        for images in a.images if a.only in (None, name) else []:
            with tempfile.TemporaryDirectory(prefix="lxmert-memory-", dir=a.folder) as folder:
                megabytes, stored = work(pathlib.Path(folder), images)
            print(f"| {name} | {images:,} | {stored:,.0f} MB | {megabytes:,.0f} MB |", flush=True)


main()
