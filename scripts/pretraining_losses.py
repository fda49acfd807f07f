"""Pre-training losses of a tiny LXMERT on fixed inputs, computed with transformers.

Writes lxmert-train/tests/fixtures/pretraining_losses/{config.json,case.safetensors,losses.json}, which a
test of lxmert-train compares with its own losses. `python scripts/pretraining_losses.py`.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import LxmertConfig, LxmertForPreTraining

FOLDER = Path(__file__).parent.parent / "lxmert-train/tests/fixtures/pretraining_losses"
IGNORED = -1  # as the original marks positions without a label; transformers' mark is -100
GRADIENTS = [
    "lxmert.encoder.visn_fc.visn_fc.weight",
    "lxmert.encoder.layer.0.attention.self.value.weight",
    "lxmert.encoder.x_layers.0.visual_attention.att.query.weight",
    "lxmert.embeddings.word_embeddings.weight",
]
BATCH, WORDS, REGIONS = 3, 7, 5


def configuration():
    return LxmertConfig(
        vocab_size=100, hidden_size=24, num_attention_heads=3, intermediate_size=32,
        l_layers=1, r_layers=1, x_layers=1, visual_feat_dim=16, max_position_embeddings=12,
        num_object_labels=7, num_attr_labels=5, num_qa_labels=11,
    )  # fmt: skip


def inputs():
    """Words, regions and labels; the first pair matches, the second does not, the third has no answer."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 100, (BATCH, WORDS), generator=random)
    mask = torch.ones(BATCH, WORDS)
    mask[1, 5:] = 0
    ids[1, 5:] = 0
    word_labels = torch.full((BATCH, WORDS), IGNORED)
    for row, word, label in [(0, 2, 17), (0, 4, 63), (1, 1, 40), (2, 5, 8)]:
        word_labels[row, word] = label
    ids[0, 2] = ids[1, 1] = ids[2, 5] = 4  # [MASK]; the word of (0, 4) was kept
    ids[0, 4] = 63
    features = torch.rand(BATCH, REGIONS, 16, generator=random) * 2
    region_mask = torch.zeros(BATCH, REGIONS)
    target_features = features.clone()
    for row, region in [(0, 1), (0, 3), (1, 0), (2, 4)]:
        region_mask[row, region] = 1
    features[0, 1] = features[1, 0] = 0
    corner = torch.rand(BATCH, REGIONS, 2, generator=random) * 0.5
    size = torch.rand(BATCH, REGIONS, 2, generator=random) * 0.5
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "visual_feats": features,
        "visual_pos": torch.cat([corner, corner + size], -1),
        "word_labels": word_labels,
        "matched": torch.tensor([1, 0, 1]),
        "region_mask": region_mask,
        "object_labels": torch.randint(0, 7, (BATCH, REGIONS), generator=random),
        "object_confidence": torch.rand(BATCH, REGIONS, generator=random),
        "attribute_labels": torch.randint(0, 5, (BATCH, REGIONS), generator=random),
        "attribute_confidence": torch.rand(BATCH, REGIONS, generator=random),
        "target_features": target_features,
        "answers": torch.tensor([6, IGNORED, 2]),
    }


def forward(model, case, **labels):
    names = ["input_ids", "attention_mask", "visual_feats", "visual_pos"]
    return model(**{name: case[name] for name in names}, **labels)


def hub(labels):
    return torch.where(labels == IGNORED, torch.full_like(labels, -100), labels)


def total_of_transformers(model, case):
    visual = {
        "obj": (case["object_labels"], case["object_confidence"]),
        "attr": (case["attribute_labels"], case["attribute_confidence"]),
        "feat": (case["target_features"], case["region_mask"]),
    }
    # transformers takes one answer per row and requires all of them: rows without one are marked -100.
    output = forward(
        model, case, labels=hub(case["word_labels"]), matched_label=case["matched"], obj_labels=visual,
        ans=hub(case["answers"]),
    )  # fmt: skip
    return output.loss.sum()


def region_heads(model, case):
    vision = forward_trunk(model, case).vision_output
    return model.obj_predict_head(vision)


def forward_trunk(model, case):
    names = ["input_ids", "attention_mask", "visual_feats", "visual_pos"]
    return model.lxmert(**{name: case[name] for name in names})


def losses(model, case, choice, normaliser):
    """Each task's loss from the logits. `choice`, of those over regions: `original`, all of them by their detector's
    confidence (the released code); `masked_regions`, the masked ones only; `per_masked_region`, the masked ones'
    mean without confidence or normaliser (volta)."""
    output, regions = forward(model, case), region_heads(model, case)
    words, answers = hub(case["word_labels"]), hub(case["answers"])

    mask = case["region_mask"]

    def weighted(loss, weight):
        if choice == "per_masked_region":
            return (loss * mask).sum() / mask.sum().clamp(min=1)
        return (loss * weight).mean() * normaliser

    def classes(logits, labels, confidence):
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(BATCH, REGIONS)
        return weighted(loss, confidence if choice == "original" else confidence * mask)

    feature = F.smooth_l1_loss(regions["feat"], case["target_features"], reduction="none").mean(-1)
    none = (words != -100).sum() == 0
    return {
        "masked_words": torch.zeros(()) if none else F.cross_entropy(output.prediction_logits.flatten(0, 1), words.flatten()),
        "matching": F.cross_entropy(output.cross_relationship_score, case["matched"]),
        "objects": classes(regions["obj"], case["object_labels"], case["object_confidence"]),
        "attributes": classes(regions["attr"], case["attribute_labels"], case["attribute_confidence"]),
        "features": weighted(feature, mask),
        "answers": F.cross_entropy(output.question_answering_score, answers),
    }


def record(model, case, choice, normaliser):
    model.zero_grad()
    parts = losses(model, case, choice, normaliser)
    total = sum(parts.values())
    total.backward()
    parameters = dict(model.named_parameters())
    return {
        "normaliser": normaliser,
        **{name: loss.item() for name, loss in parts.items()},
        "total": total.item(),
        "gradient_norms": {name: parameters[name].grad.norm().item() for name in GRADIENTS},
    }


def main():
    torch.manual_seed(7)
    config = configuration()
    model = LxmertForPreTraining(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            elif "norm" not in name.lower() and not name.endswith("logit_fc.2.weight"):
                parameter.normal_(0, 0.1)
    case = inputs()
    # The published files use 6.67 for the paper's 1 / 0.15.
    expected = {
        "original": record(model, case, "original", 6.67),
        "masked_regions": record(model, case, "masked_regions", 1 / 0.15),
        "per_masked_region": record(model, case, "per_masked_region", 1),
    }
    # transformers' own sum shows that the parts above are its parts.
    theirs = total_of_transformers(model, case).item()
    assert abs(theirs - expected["original"]["total"]) < 1e-5, (theirs, expected["original"]["total"])
    unmasked = dict(case, word_labels=torch.full_like(case["word_labels"], IGNORED), region_mask=torch.zeros(BATCH, REGIONS))
    expected["nothing_masked"] = record(model, unmasked, "masked_regions", 1 / 0.15)

    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "losses.json").write_text(json.dumps(expected, indent=2) + "\n")
    (FOLDER / "config.json").write_text(config.to_json_string(use_diff=True))
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("cls.predictions.decoder.")}
    wanted = {f"inputs.{name}": value for name, value in case.items()}
    tensors = {f"weights.{name}": value for name, value in weights.items()} | wanted
    save_file({name: value.contiguous() for name, value in tensors.items()}, FOLDER / "case.safetensors")
    print(json.dumps(expected, indent=2))


if __name__ == "__main__":
    main()
