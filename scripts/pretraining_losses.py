"""The pre-training losses of transformers' LxmertForPreTraining on a small fixed batch.

    python scripts/pretraining_losses.py [OUT_DIR]

Writes model.safetensors (random weights), config.json and expected.json (inputs, labels, losses, norms of
gradients) to OUT_DIR, lxmert-train/tests/fixtures/pretraining_losses by default. The README.md there says what each
field means. The losses are checked here against what the model itself returns before anything is written.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import LxmertConfig, LxmertForPreTraining

PAIRS, WORDS, REGIONS = 4, 6, 5
SIZES = dict(
    vocab_size=100,
    hidden_size=24,
    num_attention_heads=3,
    intermediate_size=32,
    max_position_embeddings=8,
    l_layers=2,
    r_layers=1,
    x_layers=2,
    visual_feat_dim=8,
    num_object_labels=7,
    num_attr_labels=5,
    num_qa_labels=11,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
NONE = -1  # "no label" in expected.json, as in the original; transformers' own is -100
TERMS = ("words", "matching", "object", "attribute", "feature", "answer")


def make_model(seed):
    """Every parameter random, norms and biases too, so that none could be left out unnoticed."""
    model = LxmertForPreTraining(LxmertConfig(**SIZES))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if name.endswith("LayerNorm.weight") or name.endswith("logit_fc.2.weight") else 0.0
            parameter.copy_(centre + noise * (0.1 if parameter.dim() == 1 else 0.2))
    return model.eval()


def make_batch(seed):
    """Four pairs; two sentences end in padding; a mismatched pair has no answer. Every image has all its regions, as in
    the original, so that a mean over the batch's regions is over pairs * regions."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZES["vocab_size"], (PAIRS, WORDS), generator=generator)
    ids[:, 0] = 1
    word_mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    ids = ids * word_mask

    word_labels = torch.full((PAIRS, WORDS), NONE)
    for pair, word in [(0, 2), (0, 4), (1, 1), (3, 3)]:
        word_labels[pair, word] = ids[pair, word]
    ids[0, 2] = ids[1, 1] = 3  # [MASK]
    ids[3, 3] = 42  # a random word; (0, 4) is kept

    targets = torch.randn(PAIRS, REGIONS, SIZES["visual_feat_dim"], generator=generator) * 1.5
    region_masked = torch.zeros(PAIRS, REGIONS)
    for pair, region in [(0, 1), (1, 0), (1, 4), (2, 2)]:
        region_masked[pair, region] = 1.0
    features = targets.clone()
    features[0, 1] = features[1, 0] = 0.0  # zeroed
    features[1, 4] = targets[3, 3]  # another region's; (2, 2) is kept
    low = torch.rand(PAIRS, REGIONS, 2, generator=generator) * 0.5
    boxes = torch.cat([low, low + 0.1 + torch.rand(PAIRS, REGIONS, 2, generator=generator) * 0.4], -1)
    return {
        "input_ids": ids,
        "attention_mask": word_mask,
        "visual_feats": features,
        "visual_boxes": boxes,
        "word_labels": word_labels,
        "matched": torch.tensor([1, 0, 1, 1]),
        "region_masked": region_masked,
        "object_labels": torch.randint(0, SIZES["num_object_labels"], (PAIRS, REGIONS), generator=generator),
        "object_confidence": torch.rand(PAIRS, REGIONS, generator=generator),
        "attribute_labels": torch.randint(0, SIZES["num_attr_labels"], (PAIRS, REGIONS), generator=generator),
        "attribute_confidence": torch.rand(PAIRS, REGIONS, generator=generator),
        "feature_targets": targets,
        "answer": torch.tensor([3, NONE, 10, NONE]),
    }


def inputs_of(batch):
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "visual_feats": batch["visual_feats"],
        "visual_pos": batch["visual_boxes"],
        "token_type_ids": torch.zeros_like(batch["input_ids"]),
    }


def labels_of(batch):
    """The model's own arguments, in the original code's sense: confidence for classes, the mask for features."""
    hidden = lambda labels: labels.masked_fill(labels == NONE, -100)
    return {
        "labels": hidden(batch["word_labels"]),
        "matched_label": batch["matched"],
        "obj_labels": {
            "obj": (batch["object_labels"], batch["object_confidence"]),
            "attr": (batch["attribute_labels"], batch["attribute_confidence"]),
            "feat": (batch["feature_targets"], batch["region_masked"]),
        },
        "ans": hidden(batch["answer"]),
    }


def zero_if_none(loss, labels):
    """The mean over labelled places; transformers gives NaN where there is none, here it is 0."""
    return loss if bool((labels != NONE).any()) else loss.new_zeros(())


def terms(model, batch, choice):
    """Each task's loss. `choice`: which regions the visual losses are over.

    original: weight = confidence on all regions (object, attribute), the mask (feature); mean over B*N, times 6.67.
    masked:   weight = confidence * mask (object, attribute), the mask (feature); mean over B*N, times 6.67.
    volta:    weight = the mask; sum over masked regions / max(their number, 1), no factor.
    """
    outputs = model.lxmert(**inputs_of(batch))
    words, matching = model.cls(outputs.language_output, outputs.pooled_output)
    regions = model.obj_predict_head(outputs.vision_output)
    answers = model.answer_head(outputs.pooled_output)
    mask = batch["region_masked"]

    def visual(loss, confidence):
        if choice == "volta":
            return (loss * mask).sum() / mask.sum().clamp(min=1.0)
        weight = {"original": confidence, "masked": confidence * mask}[choice]
        return (loss * weight).mean() * model.visual_loss_normalizer

    def classes(logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    distance = F.smooth_l1_loss(regions["feat"], batch["feature_targets"], reduction="none").mean(-1)
    word_loss = F.cross_entropy(words.flatten(0, 1), batch["word_labels"].flatten(), ignore_index=NONE)
    return {
        "words": zero_if_none(word_loss, batch["word_labels"]),
        "matching": F.cross_entropy(matching, batch["matched"]),
        "object": visual(classes(regions["obj"], batch["object_labels"]), batch["object_confidence"]),
        "attribute": visual(classes(regions["attr"], batch["attribute_labels"]), batch["attribute_confidence"]),
        "feature": visual(distance, mask),
        "answer": zero_if_none(F.cross_entropy(answers, batch["answer"], ignore_index=NONE), batch["answer"]),
    }


def numbers(losses):
    values = {name: losses[name].item() for name in TERMS}
    return values | {"total": sum(losses.values()).item()}


def main():
    here = Path(__file__).resolve().parent
    default = here.parent / "lxmert-train/tests/fixtures/pretraining_losses"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)
    model, batch = make_model(seed=7), make_batch(seed=11)

    own = model(**inputs_of(batch), **labels_of(batch)).loss
    own.backward()
    gradient_norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        losses = {choice: numbers(terms(model, batch, choice)) for choice in ("original", "masked", "volta")}
        difference = abs(losses["original"]["total"] - own.item())
        assert difference < 1e-5, f"this script's losses are not the model's: {difference}"

        # A batch in which nothing was masked and nothing has an answer.
        bare = dict(batch, word_labels=torch.full_like(batch["word_labels"], NONE))
        bare["region_masked"] = torch.zeros_like(batch["region_masked"])
        bare["answer"] = torch.full_like(batch["answer"], NONE)
        assert model(**inputs_of(bare), **labels_of(bare)).loss.isnan(), "transformers no longer gives NaN here"
        nothing = {choice: numbers(terms(model, bare, choice)) for choice in ("original", "masked", "volta")}

    tied = "cls.predictions.decoder.weight"
    weights = {name: t.contiguous() for name, t in model.state_dict().items() if name != tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = {"architectures": ["LxmertForPreTraining"], "model_type": "lxmert", **SIZES}
    config |= {"visual_loss_normalizer": model.visual_loss_normalizer}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    expected = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}",
        "visual_loss_normalizer": model.visual_loss_normalizer,
        "batch": {name: tensor.tolist() for name, tensor in batch.items()},
        "losses": losses,
        "losses_of_nothing_masked": nothing,
        "gradient_norms": gradient_norms,
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items()]
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{folder}: model's own total {own.item():.6f}, difference {difference:.1e}")
    for choice, values in losses.items():
        print(f"  {choice:9}" + "".join(f"  {name} {value:.5f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
