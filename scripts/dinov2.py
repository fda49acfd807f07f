"""Last hidden states of transformers' Dinov2Model for a small network with weights and pixels from a formula.

Writes lxmert-extract/tests/fixtures/dinov2/{config.json,reference.safetensors}, which a test of lxmert-extract compares
with its own. Weights and pixels come from the formula of lxmert_core::procedural, so neither is stored. `python scripts/dinov2.py`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

FOLDER = Path(__file__).parent.parent / "lxmert-extract/tests/fixtures/dinov2"
SEED = 11


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def formula(name, shape, low, high):
    with np.errstate(over="ignore"):
        x = np.uint64(fnv1a64(name) ^ SEED) + np.arange(int(np.prod(shape)), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    u = (x >> np.uint64(40)).astype(np.float64) / float(1 << 24)
    return torch.from_numpy((low + (high - low) * u).astype(np.float32).reshape(shape))


def hub_name(name):
    """The name in the hub's checkpoints; in memory, transformers 5 has other names for the layers of an attention."""
    for new, old in [("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")]:
        name = name.replace(f"attention.{new}", f"attention.{old}")
    return name.replace("attention.o_proj", "attention.output.dense")


def bounds(name, shape):
    """Norm weights and layer scales are around 1, all others uniform with variance 1 / fan-in."""
    if "lambda1" in name or ("norm" in name and name.endswith("weight")):
        return 0.5, 1.5
    fan_in = int(np.prod(shape[1:])) if len(shape) in (2, 4) else 3
    bound = (3.0 / fan_in) ** 0.5
    return -bound, bound


settings = dict(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=4, image_size=70, patch_size=14, use_mask_token=True
)
config = Dinov2Config(**settings, attn_implementation="eager")
model = Dinov2Model(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        parameter.copy_(formula(hub_name(name), tuple(parameter.shape), *bounds(name, parameter.shape)))
    out = {}
    for height, width in [(70, 70), (56, 98)]:
        pixels = formula(f"pixels {height}x{width}", (1, 3, height, width), -2.0, 2.0)
        states = model(pixels).last_hidden_state[:, 1:]
        out[f"{height}x{width}"] = states.contiguous()
settings.update(model_type="dinov2", layer_norm_eps=config.layer_norm_eps, hidden_act=config.hidden_act, use_swiglu_ffn=False)
(FOLDER / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
save_file(out, FOLDER / "reference.safetensors")
print({name: (tuple(t.shape), t.abs().mean().item()) for name, t in out.items()})
