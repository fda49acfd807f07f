#!/usr/bin/env python3
"""Trains the scenes' recipes with several seeds and prints the mean and the worst of each measure as a Markdown table.

    python scripts/recipe_table.py [--seeds 5] [--only ROW …] [--program 'cargo run -p lxmert-train --'] [--output runs/table]

Each row starts either from random weights or from another row's checkpoint of the same seed; those runs are made first. Finished
runs are kept and read again, so the script goes on where it was stopped.
"""
import argparse, json, pathlib, shlex, statistics, subprocess, sys

# Retrieval over the test split takes as long as an epoch and is not in the table.
NO_RECALL = ["--recall-images", "0"]
MATCHING = {"random/accuracy": "accuracy, captions of other scenes", "hard/accuracy": "accuracy, captions false by one word"}
QUESTIONS = {
    "all/accuracy": "accuracy",
    "other/accuracy": "accuracy: colour, shape, where",
    "number/accuracy": "accuracy: number",
    "yes-no/accuracy": "accuracy: yes/no",
}
STATEMENTS = {"all/accuracy": "accuracy", "all/consistency": "right on both pairs of a sentence"}
# Row: what it starts from, its options, the measures shown.
ROWS = {
    "matching": (None, NO_RECALL, MATCHING),
    "matching-3": (None, ["--epochs", "3", *NO_RECALL], MATCHING),
    "pretraining": (None, ["--task", "pretraining", "--epochs", "5"], {}),
    "matching-3-from-pretraining": ("pretraining", ["--epochs", "3", *NO_RECALL], MATCHING),
    "questions": (None, ["--task", "questions", "--epochs", "4"], QUESTIONS),
    "questions-from-pretraining": ("pretraining", ["--task", "questions", "--epochs", "4"], QUESTIONS),
    "statements": (None, ["--task", "statements", "--epochs", "6"], STATEMENTS),
    "statements-from-pretraining": ("pretraining", ["--task", "statements", "--epochs", "6"], STATEMENTS),
}


def train(a, row, seed):
    """The test measures of a row's run; trains it first if it is not finished."""
    start, options, _ = ROWS[row]
    folder = a.output / f"{row}-{seed}"
    report = folder / "report.json"
    if not report.exists():
        if start:
            train(a, start, seed)
            options = ["--init", str(a.output / f"{start}-{seed}" / "best"), *options]
        command = [*shlex.split(a.program), "--seed", str(seed), "--output", str(folder), "--quiet", *options]
        print(" ".join(command), file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--program", default="cargo run -q -p lxmert-train --")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/table"))
    a = parser.parse_args()
    results = {row: [] for row in a.only}
    for seed in range(a.seeds):
        for row in a.only:
            results[row].append(train(a, row, seed))
    print(f"| run | measure | mean of {a.seeds} seeds | worst |\n| --- | --- | ---: | ---: |")
    for row in a.only:
        for key, name in ROWS[row][2].items():
            part, measure = key.split("/")
            values = [report["test"][part][measure] for report in results[row]]
            print(f"| {row} | {name} | {statistics.mean(values):.3f} | {min(values):.3f} |")


if __name__ == "__main__":
    main()
