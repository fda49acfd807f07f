"""Checkpoints both ways between transformers and this project: the same outputs within 1e-4.

Transformers' models are saved as safetensors, as .bin, and as the original's snapshots were (`module.bert.`,
torch's legacy pickle); our code reads each, writes its outputs, and saves a folder, which from_pretrained
must open without a missing or unexpected name.

    cargo build -p lxmert-core --example 03_outputs_of_a_checkpoint
    python scripts/transformers_roundtrip.py target/debug/examples/03_outputs_of_a_checkpoint [--base]
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LxmertConfig, LxmertForPreTraining, LxmertForQuestionAnswering

TOLERANCE = 1e-4


def configuration(base, **fields):
    if base:
        return LxmertConfig(**fields)
    return LxmertConfig(
        vocab_size=120, hidden_size=48, num_attention_heads=4, intermediate_size=96, l_layers=3, r_layers=2,
        x_layers=2, visual_feat_dim=32, num_qa_labels=11, num_object_labels=7, num_attr_labels=5, **fields,
    )  # fmt: skip


def inputs(config):
    random = torch.Generator().manual_seed(5)
    mask = torch.ones(2, 9)
    mask[1, 6:] = 0
    return {
        "input_ids": torch.randint(1, config.vocab_size, (2, 9), generator=random),
        "attention_mask": mask,
        "visual_feats": torch.rand(2, 6, config.visual_feat_dim, generator=random) * 2,
        "visual_pos": torch.rand(2, 6, 4, generator=random),
    }


@torch.no_grad()
def outputs(model, case):
    trunk = model.lxmert(**case)
    said = {"language": trunk.language_output, "vision": trunk.vision_output, "pooled": trunk.pooled_output}
    output = model(**case)
    if not isinstance(model, LxmertForPreTraining):
        return said | {"answers": output.question_answering_score}
    regions = model.obj_predict_head(trunk.vision_output)
    names = {"objects": "obj", "attributes": "attr", "features": "feat"}
    said |= {name: regions[key] for name, key in names.items() if key in regions}
    if model.config.task_qa:
        said["answers"] = output.question_answering_score
    return said | {"words": output.prediction_logits, "matching": output.cross_relationship_score}


def largest_difference(ours, theirs, what):
    assert ours.keys() == theirs.keys(), f"{what}: {ours.keys()} and {theirs.keys()}"
    largest = max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
    print(f"{what}: {largest:.1e}", flush=True)
    assert largest <= TOLERANCE, f"{what} differs"


def snapshot(model):
    """The model's weights under the original's names."""
    decoder = "cls.predictions.decoder.weight"
    names = {name: f"module.{name.replace('lxmert.', 'bert.', 1)}" for name in model.state_dict() if name != decoder}
    return {names[name]: value for name, value in model.state_dict().items() if name in names}


def check(binary, folder, model, case, what):
    theirs = outputs(model, case)
    hub = folder / "hub"
    model.save_pretrained(hub)
    torch.save(model.state_dict(), hub / "pytorch_model.bin")
    torch.save(snapshot(model), hub / "LXRT.pth", _use_new_zipfile_serialization=False)
    save_file(case, folder / "inputs.safetensors")
    for file in ["model.safetensors", "pytorch_model.bin", "LXRT.pth"]:
        out, saved = folder / "outputs.safetensors", folder / "saved"
        subprocess.run([binary, hub / file, folder / "inputs.safetensors", out, saved], check=True, stdout=subprocess.DEVNULL)
        largest_difference(load_file(out), theirs, f"{what}, our outputs from {file}")
    again, report = type(model).from_pretrained(saved, output_loading_info=True)
    wrong = {kind: names for kind, names in report.items() if names}
    assert not wrong, f"{what}: from_pretrained finds {wrong}"
    assert again.config.architectures == [type(model).__name__]
    largest_difference(outputs(again.eval(), case), theirs, f"{what}, our folder opened by from_pretrained")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("binary", type=Path, help="the built example 03_outputs_of_a_checkpoint")
    arguments.add_argument("--base", action="store_true", help="at the published size (3 GB on the disk, 4 GB of memory)")
    arguments = arguments.parse_args()
    models = [
        (LxmertForPreTraining, {}),
        (LxmertForPreTraining, {"visual_attr_loss": False, "task_qa": False}),
        (LxmertForQuestionAnswering, {}),
    ]
    for kind, fields in models[:1] if arguments.base else models:
        torch.manual_seed(11)
        config = configuration(arguments.base, **fields)
        if fields:
            config.num_attr_labels = config.num_qa_labels = 0
        model = kind(config).eval()
        with tempfile.TemporaryDirectory() as folder:
            check(arguments.binary, Path(folder), model, inputs(config), f"{kind.__name__} {fields or ''}".strip())


if __name__ == "__main__":
    main()
