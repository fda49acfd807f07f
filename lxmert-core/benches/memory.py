"""Resident memory against the size of the data set and over time: extraction from pictures, training from a store.

    python lxmert-core/benches/memory.py [--images N,N,…] [--preset NAME] [--steps N] [--folder DIR] [--profile dev]
    python lxmert-core/benches/memory.py --long --images 20000 --steps 20000    # over time, with open files; Linux only

Draws scenes and extracts them with the shipped detector; writes stores of random features (36 regions of 2048 numbers in
f32, five captions per image) with the bench `store`, and trains on them for the same number of steps whatever their size.
Everything is in a temporary folder in DIR, which is removed: 3 GB for 10,000 images. Needs only Python, on Linux or macOS.
"""
import argparse, json, os, pathlib, random, subprocess, sys, tempfile, time

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


def watch(command):
    """Runs a command; returns (seconds, resident MB, open files) about once a second."""
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL)
    start, samples = time.time(), []
    while process.poll() is None:
        try:
            pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            samples.append((time.time() - start, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files))
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass  # it has just ended
        time.sleep(1)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return samples


def over_time(name, work, samples):
    """A row: memory and open files in the middle of each quarter of the run, and the most of both."""
    of = [samples[len(samples) * eighth // 8] for eighth in (1, 3, 5, 7)]
    memory, files = " · ".join(f"{mb:,.0f}" for _, mb, _ in of), " · ".join(str(files) for _, _, files in of)
    most = f"{max(mb for _, mb, _ in samples):,.0f} MB, {max(files for _, _, files in samples)}"
    print(f"| {name} | {work} | {samples[-1][0]:,.0f} s | {memory} | {files} | {most} |", flush=True)


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def extraction(programs, folder, images, run=peak):
    scenes, store = folder / "scenes", folder / "store"
    peak([programs["lxmert-extract"], "scenes", "--count", images, "--output", scenes, "-q"])
    return run([programs["lxmert-extract"], "--images", scenes, "--detector", "scenes", "--output", store, "-q"]), size(store)


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


def long(programs, a):
    print("| work | | time | MB in each quarter | open files | most |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="lxmert-memory-", dir=a.folder) as folder:
        folder, images = pathlib.Path(folder), a.images[-1]
        over_time("extraction", f"{images:,} images", extraction(programs, folder, images, watch)[0])
        command = [programs["lxmert-train"], "--captions", folder / "scenes/results.csv", "--features", folder / "store", "-q"]
        command += ["--output", folder / "run", "--preset", a.preset, "--batch-size", 4, "--steps", a.steps, "--recall-images", 0]
        over_time("training", f"{a.steps:,} steps", watch(command))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--images", default="100,1000,10000", type=lambda text: [int(n) for n in text.split(",")])
    p.add_argument("--preset", default="tiny")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--folder", default=tempfile.gettempdir())
    p.add_argument("--profile", default="bench")
    p.add_argument("--only", choices=["extraction", "training"])
    p.add_argument("--long", action="store_true", help="memory and open files over one long run of each")
    a = p.parse_args()
    programs = build(a.profile)
    if a.long:
        return long(programs, a)
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
