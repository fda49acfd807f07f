"""Exchanges checkpoints between transformers and this project, in both directions.

    cargo build -p lxmert-core --example 03_outputs_of_a_checkpoint
    python scripts/transformers_roundtrip.py [--base] [--program PATH] [--folder CHECKPOINT ...]

1. transformers writes a model with every pre-training head, one without answers and attributes, and one for questions, in
   four formats: a safetensors folder, `pytorch_model.bin`, an original snapshot (legacy `.pth`, `module.bert.…`, with the
   tied decoder, `gamma` and `beta`), and a task's snapshot (`lxrt_encoder.model.bert.…`, `logit_fc.…`). Our program opens
   each and must give the same outputs.
2. Our program saves each again as a folder; `from_pretrained` must find every key and no other, and give the same outputs.
3. The same for NLVR2's head over two images, for which transformers has no class: our program opens the original's snapshot,
   and `LxmertModel` opens what it saves, where it must find all its keys and report only the head's as unexpected.
4. `--folder`: opens checkpoints that lxmert-train wrote in the class that their `architectures` names, and compares the
   outputs. Reports the heads that the checkpoint's task does not have.

`--base` uses the published size (768 wide, 9/5/5 layers) instead of a small one. Largest allowed difference: 1e-4.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LxmertConfig, LxmertForPreTraining, LxmertForQuestionAnswering, LxmertModel

TOLERANCE = 1e-4
SMALL = dict(
    vocab_size=300, hidden_size=48, num_attention_heads=4, intermediate_size=96, max_position_embeddings=24,
    l_layers=2, r_layers=1, x_layers=2, visual_feat_dim=32, num_object_labels=20, num_attr_labels=10,
)  # fmt: skip
REPOSITORY = Path(__file__).resolve().parent.parent


def parameters():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", action="store_true", help="the published size")
    parser.add_argument("--program", type=Path, help="the built example; found in cargo's target folder otherwise")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="a checkpoint from lxmert-train")
    return parser.parse_args()


def program(given):
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    path = given or target / "debug/examples/03_outputs_of_a_checkpoint"
    if not path.is_file():
        sys.exit(f"{path} does not exist; build it with cargo build -p lxmert-core --example 03_outputs_of_a_checkpoint")
    return path


def make(kind, base, seed, **fields):
    """A model with random biases and norms too, so that no two weights are equal."""
    config = LxmertConfig(**({} if base else SMALL) | fields)
    if not config.task_qa:
        config.num_qa_labels = 0  # our words for a head that is switched off
    if not config.visual_attr_loss:
        config.num_attr_labels = 0
    model = kind(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(noise * 0.1)
    return model.eval()


def inputs(config, seed, rows=3):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, config.vocab_size, (rows, 12), generator=generator)
    mask = torch.ones(rows, 12)
    mask[1, 8:] = 0
    low = torch.rand(rows, 10, 2, generator=generator) * 0.5
    return {
        "input_ids": ids * mask.long(),
        "attention_mask": mask,
        "visual_feats": torch.randn(rows, 10, config.visual_feat_dim, generator=generator).abs(),
        "visual_pos": torch.cat([low, low + torch.rand(rows, 10, 2, generator=generator) * 0.5], -1),
    }


@torch.no_grad()
def outputs(model, given):
    trunk = (model if isinstance(model, LxmertModel) else model.lxmert)(**given)
    found = {"language": trunk.language_output, "vision": trunk.vision_output, "pooled": trunk.pooled_output}
    if isinstance(model, LxmertForPreTraining):
        words, matching = model.cls(trunk.language_output, trunk.pooled_output)
        regions = model.obj_predict_head(trunk.vision_output)
        found |= {"words": words, "matching": matching}
        kinds = {"obj": "objects", "attr": "attributes", "feat": "features"}
        found |= {kinds[kind]: logits for kind, logits in regions.items()}
    if hasattr(model, "answer_head"):
        found["answers"] = model.answer_head(trunk.pooled_output)
    return found


def difference(ours, theirs, mask):
    """The largest absolute difference. Rows of padding words are meaningless (ours are not computed) and are left out."""
    assert ours.keys() == theirs.keys(), (sorted(ours), sorted(theirs))
    real = lambda name, tensor: tensor[mask > 0] if name in ("language", "words") else tensor
    return max((real(name, ours[name]) - real(name, theirs[name])).abs().max().item() for name in theirs)


def old_names(state, prefix, tied):
    """Translates the hub's names to those of the original's snapshots."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("cls.predictions.decoder.") and not tied:
            continue
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if name.startswith("lxmert."):
            name = prefix + "bert." + name.removeprefix("lxmert.")
        elif prefix.startswith("lxrt_encoder"):
            name = name.removeprefix("answer_head.")
        else:
            name = prefix + name
        renamed[name] = tensor.clone()
    return renamed


def write(model, folder):
    """Writes the same model in every format; returns the place of each."""
    state = model.state_dict()
    places = {"safetensors folder": folder / "safetensors"}
    model.save_pretrained(places["safetensors folder"])
    config = places["safetensors folder"] / "config.json"

    def beside(name, file):
        (folder / name).mkdir()
        shutil.copy(config, folder / name)
        return folder / name / file

    torch.save(state, beside("bin", "pytorch_model.bin"))
    places["bin folder"] = folder / "bin"
    if isinstance(model, LxmertForPreTraining):
        places["original .pth, legacy"] = beside("original", "Epoch20_LXRT.pth")
        old = old_names(state, "module.", tied=True)
        torch.save(old, places["original .pth, legacy"], _use_new_zipfile_serialization=False)
    else:
        places["task snapshot .pth, zip"] = beside("snapshot", "BEST.pth")
        torch.save(old_names(state, "lxrt_encoder.model.", tied=False), places["task snapshot .pth, zip"])
    return places


def run(executable, place, given, folder, save):
    save_file(given, folder / "inputs.safetensors")
    command = [executable, place, folder / "inputs.safetensors", folder / "outputs.safetensors", save]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.split("\n\nStack backtrace")[0].strip())
    return load_file(folder / "outputs.safetensors")


def check(label, found, allowed=TOLERANCE):
    print(f"  {label:34} {found:.1e}", flush=True)
    if not found <= allowed:
        sys.exit(f"{label}: {found:.1e} is more than {allowed:.0e}")


def unfit(information):
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return {kind: sorted(information[kind]) for kind in kinds if information[kind]}


def both_ways(kind, base, executable, **fields):
    print(f"{kind.__name__}, {'base' if base else 'small'}, {fields}")
    model = make(kind, base, seed=5, **fields)
    given = inputs(model.config, seed=9)
    theirs, mask = outputs(model, given), given["attention_mask"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for i, (label, place) in enumerate(write(model, folder).items()):
            saved = folder / f"saved-{i}"
            check(f"opened by us: {label}", difference(run(executable, place, given, folder, saved), theirs, mask))
            again, information = kind.from_pretrained(saved, output_loading_info=True)
            assert not unfit(information), unfit(information)
            check("saved by us, opened by transformers", difference(outputs(again.eval(), given), theirs, mask))
            shutil.rmtree(saved)


def pair_head(weights, pooled):
    """NLVR2's head (airsplay/lxmert, `nlvr2_model.py`): two rows of `pooled` per statement, concatenated."""
    first, norm, last = (
        [weights[f"answer_head.logit_fc.{i}.{kind}"] for kind in ("weight", "bias")] for i in (0, 2, 3)
    )
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(pooled.reshape(-1, 2 * pooled.shape[-1]), *first))
    hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], *norm, eps=1e-12)
    return torch.nn.functional.linear(hidden, *last)


def check_pairs(place, executable, label):
    """Compares a folder with NLVR2's head: transformers' trunk and `pair_head` against our program."""
    model, information = LxmertModel.from_pretrained(place, output_loading_info=True)
    head = {f"answer_head.logit_fc.{i}.{kind}" for i in (0, 2, 3) for kind in ("weight", "bias")}
    assert unfit(information) == {"unexpected_keys": sorted(head)}, unfit(information)
    given = inputs(model.config, seed=9, rows=4)
    theirs = outputs(model.eval(), given)
    theirs["statements"] = pair_head(load_file(place / "model.safetensors"), theirs["pooled"])
    with tempfile.TemporaryDirectory() as folder:
        ours = run(executable, place, given, Path(folder), Path(folder) / "saved")
    check(label, difference(ours, theirs, given["attention_mask"]))
    return theirs["statements"]


def pairs(base, executable):
    print(f"NLVR2's head over two images, {'base' if base else 'small'}")
    model = make(LxmertModel, base, seed=5)
    width = 2 * model.config.hidden_size
    generator = torch.Generator().manual_seed(6)
    shapes = {0: [(width, width), (width,)], 2: [(width,), (width,)], 3: [(2, width), (2,)]}
    head = {
        f"answer_head.logit_fc.{i}.{kind}": torch.randn(shape, generator=generator) * width**-0.5 + (i == 2 and kind == "weight")
        for i, both in shapes.items()
        for kind, shape in zip(("weight", "bias"), both)
    }
    given = inputs(model.config, seed=9, rows=4)
    theirs = outputs(model, given)
    theirs["statements"] = pair_head(head, theirs["pooled"])
    state = {f"lxmert.{name}": tensor for name, tensor in model.state_dict().items()} | head
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.config.save_pretrained(folder / "snapshot")
        place = folder / "snapshot" / "BEST.pth"
        torch.save(old_names(state, "lxrt_encoder.model.", tied=False), place)
        ours = run(executable, place, given, folder, folder / "saved")
        check("opened by us: task snapshot .pth, zip", difference(ours, theirs, given["attention_mask"]))
        again = check_pairs(folder / "saved", executable, "saved by us, opened by transformers")
        assert torch.equal(again, theirs["statements"])


def trained(place, executable):
    config = json.loads((place / "config.json").read_text())
    name = config["architectures"][0]
    if name == "LxmertModel":
        print(f"{place.name}: {name}, and NLVR2's head beside it")
        check_pairs(place, executable, "outputs language, pooled, statements, vision")
        return
    model, information = getattr(transformers, name).from_pretrained(place, output_loading_info=True)
    missing = sorted({key.split(".")[0] + "." + key.split(".")[1] for key in information["missing_keys"]})
    print(f"{place.name}: {name}; heads that it lacks: {', '.join(missing) or 'none'}")
    assert not information["unexpected_keys"] and not information["mismatched_keys"], unfit(information)
    assert not any(key.startswith("lxmert.") for key in information["missing_keys"]), information["missing_keys"]
    given = inputs(model.config, seed=9)
    theirs = outputs(model.eval(), given)
    if "matching" in theirs:
        theirs["match"] = theirs["matching"][:, 1] - theirs["matching"][:, 0]
    with tempfile.TemporaryDirectory() as folder:
        ours = run(executable, place, given, Path(folder), Path(folder) / "saved")
    check(f"outputs {', '.join(sorted(ours))}", difference(ours, {key: theirs[key] for key in ours}, given["attention_mask"]))


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    arguments = parameters()
    executable = program(arguments.program)
    both_ways(LxmertForPreTraining, arguments.base, executable, num_qa_labels=9500 if arguments.base else 30)
    if not arguments.base:
        both_ways(LxmertForPreTraining, False, executable, task_qa=False, visual_attr_loss=False)
    both_ways(LxmertForQuestionAnswering, arguments.base, executable, num_qa_labels=3129 if arguments.base else 30)
    pairs(arguments.base, executable)
    for place in arguments.folder:
        trained(place, executable)


if __name__ == "__main__":
    main()
