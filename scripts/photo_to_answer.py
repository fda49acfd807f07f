"""From a photo to the answer logits: transformers' LXMERT on the regions of Hugging Face's detector, beside `lxmert-train ask`.

    cargo build --release -p lxmert-train
    python scripts/photo_to_answer.py --program target/release/lxmert-train [--keep DIR]
    python scripts/photo_to_answer.py --fixture

Nothing published is needed: every weight is a formula's. The detector's regions in Python are those of the reference run in
lxmert-extract/tests/fixtures/frcnn_vg, which Hugging Face's own code made with these weights; ours are found from the photo.

1. Writes the detector as a `pytorch_model.bin` of 640 entries, and `LxmertForQuestionAnswering` at the published size with
   3129 answers as a folder, as the hub has them (260 and 860 MB).
2. Runs three questions on both reference photos in transformers, and the same photos, questions and files through
   `lxmert-train ask --json`.
3. The five best answers must be the same in the same order, and all logits within 1e-3.

`--fixture` writes what a small model (2/2/2 layers, 256 wide) gives, for the test `vg_parity` of lxmert-extract.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import BertTokenizer, LxmertConfig, LxmertForQuestionAnswering

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "lxmert-extract/tests/fixtures"
VOCABULARY = REPOSITORY / "lxmert-core/assets/bert-base-uncased-vocab.txt"
ANSWERS = json.loads((REPOSITORY / "lxmert-core/assets/answers/vqa.json").read_text())
PHOTOS = ["chelsea", "coffee"]
QUESTIONS = ["What animal is this?", "What color is the cup on the table?", "How many eyes can you see?"]
TOLERANCE = 1e-3
SMALL = dict(hidden_size=256, num_attention_heads=4, intermediate_size=1024, l_layers=2, r_layers=2, x_layers=2)


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def formula(name, shape, low, high):
    """The tensor of lxmert_core::procedural, seed 0."""
    with np.errstate(over="ignore"):
        count = int(np.prod(shape))
        x = np.uint64(fnv1a64(name)) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    u = (x >> np.uint64(40)).astype(np.float64) / float(1 << 24)
    return torch.from_numpy((low + (high - low) * u).astype(np.float32).reshape(shape))


def ranges(name, shape):
    if "LayerNorm" in name or "layer_norm" in name or "logit_fc.2" in name:
        return (0.8, 1.2) if name.endswith("weight") else (-0.1, 0.1)
    if "embeddings" in name or name.endswith("bias"):
        return (-0.05, 0.05)
    bound = 1.2 * math.sqrt(3.0 / shape[-1])
    return (-bound, bound)


def question_model(**sizes):
    model = LxmertForQuestionAnswering(LxmertConfig(num_qa_labels=len(ANSWERS), **sizes)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(formula(name, tuple(value.shape), *ranges(name, tuple(value.shape))))
    return model


def detector_weights():
    """The entries of Hugging Face's file: formula tensors, calibrated norms, counters, anchors."""
    manifest = json.loads((FIXTURES / "frcnn_vg/manifest.json").read_text())["tensors"]
    weights = {t["name"]: formula(t["name"], t["shape"], t["low"], t["high"]) for t in manifest}
    calibration = load_file(FIXTURES / "frcnn_vg/calibration.safetensors")
    weights |= {name: torch.from_numpy(value) for name, value in calibration.items() if not name.startswith("caffe.")}
    norms = [name.removesuffix("running_var") for name in weights if name.endswith("running_var")]
    weights |= {norm + "num_batches_tracked": torch.tensor(0) for norm in norms}
    anchors = []
    for size in [64, 128, 256, 512]:
        for ratio in [0.5, 1.0, 2.0]:
            w = math.sqrt(size**2 / ratio)
            anchors.append([-w / 2, -ratio * w / 2, w / 2, ratio * w / 2])
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = torch.tensor(anchors)
    assert len(weights) == 640, len(weights)
    return weights


def expected(model):
    """Logits by photo and question, each `[answers]`; the WordPiece ids of the questions."""
    tokenizer = BertTokenizer(str(VOCABULARY))
    ids = [torch.tensor([tokenizer(question)["input_ids"]]) for question in QUESTIONS]
    logits = {}
    for photo in PHOTOS:
        run = load_file(FIXTURES / f"frcnn_vg/{photo}.safetensors")
        features, boxes = (torch.from_numpy(run[f"hf.{name}"])[None] for name in ["features", "normalized_boxes"])
        with torch.no_grad():
            answers = [model(i, features, boxes).question_answering_score[0].numpy() for i in ids]
        logits |= {(photo, question): values for question, values in zip(QUESTIONS, answers)}
    return logits, ids


def write_fixture():
    logits, ids = expected(question_model(**SMALL))
    tensors = {f"{photo}.{QUESTIONS.index(question)}": values for (photo, question), values in logits.items()}
    tensors |= {f"ids.{i}": of[0].numpy().astype(np.int64) for i, of in enumerate(ids)}
    path = FIXTURES / "photo_to_answer.safetensors"
    save_file(tensors, path)
    print(path, {name: (values.shape, float(values.max())) for name, values in tensors.items()})


def compare(program, folder):
    torch.save(detector_weights(), folder / "detector.bin")
    model = question_model()
    model.save_pretrained(folder / "lxmert")
    (folder / "lxmert/vocab.txt").write_bytes(VOCABULARY.read_bytes())
    command = [program, "ask", "--json", "--checkpoint", folder / "lxmert", "--detector", "visual-genome"]
    command += ["--weights", folder / "detector.bin", "--no-cache", "--top", str(len(ANSWERS)), "--rests-on", "0"]
    for photo in PHOTOS:
        command += ["--image", REPOSITORY / f"data/photos/{photo}.png"]
    for question in QUESTIONS:
        command += ["--question", question]
    ours = json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE).stdout)
    logits, _ = expected(model)
    wrong = 0
    for asked in ours:
        photo = Path(asked["image"]).stem
        theirs = logits[photo, asked["question"]]
        got = np.zeros_like(theirs)
        order = [ANSWERS.index(answer["answer"]) for answer in asked["answers"]]
        got[order] = [answer["logit"] for answer in asked["answers"]]
        largest = float(np.abs(got - theirs).max())
        best = np.argsort(-theirs, kind="stable")[:5].tolist()
        same = order[:5] == best
        wrong += not (same and largest <= TOLERANCE)
        named = ", ".join(f"{ANSWERS[label]} {theirs[label]:.3f}" for label in best)
        print(f"{photo}, {asked['question']} {named}; the same five: {same}; logits within {largest:.1e}")
    sys.exit(f"{wrong} of {len(ours)} differ" if wrong else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=REPOSITORY / "target/release/lxmert-train")
    parser.add_argument("--keep", type=Path, help="write the weights here and leave them")
    parser.add_argument("--fixture", action="store_true", help="write the small model's logits for the test")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    if given.fixture:
        write_fixture()
    elif given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        compare(given.program, given.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(given.program, Path(folder))


if __name__ == "__main__":
    main()
