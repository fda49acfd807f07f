#!/usr/bin/env python3
"""PyTorch's pre-training step on random inputs, eager and compiled: transformers' LxmertForPreTraining of the same size, batch and
lengths (20 words, 36 regions) under bf16 autocast on a GPU, with fused AdamW and clipping. One JSON line each."""
import argparse
import json
import time

import torch
from transformers import LxmertConfig, LxmertForPreTraining

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")
parser.add_argument("--batch", type=int, default=256)
parser.add_argument("--size", default="base")
options = parser.parse_args()
gpu = options.device.startswith("cuda")
small = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, l_layers=2, x_layers=2, r_layers=1, vocab_size=2000)
model = LxmertForPreTraining(LxmertConfig(**({} if options.size == "base" else small))).to(options.device).train()
config, batch, words, regions = model.config, options.batch, 20, 36
integers = lambda top, *shape: torch.randint(0, top, shape, device=options.device)
inputs = dict(
    input_ids=integers(config.vocab_size, batch, words),
    visual_feats=torch.randn(batch, regions, config.visual_feat_dim, device=options.device),
    visual_pos=torch.rand(batch, regions, 4, device=options.device),
    labels=integers(config.vocab_size, batch, words),
    matched_label=integers(2, batch),
    ans=integers(config.num_qa_labels, batch),
    obj_labels={
        "obj": (integers(config.num_object_labels, batch, regions), torch.ones(batch, regions, device=options.device)),
        "attr": (integers(config.num_attr_labels, batch, regions), torch.ones(batch, regions, device=options.device)),
        "feat": (torch.randn(batch, regions, config.visual_feat_dim, device=options.device), torch.ones(batch, regions, device=options.device)),
    },
)
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=gpu)


def speed(network, steps):
    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
            loss = network(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if gpu:
        torch.cuda.synchronize()
    return steps * batch / (time.perf_counter() - start)


precision = "bf16" if gpu else "f32"
for name, make in (("eager", lambda: model), ("compiled", lambda: torch.compile(model))):
    if name == "compiled" and not gpu:
        continue
    value = speed(make(), 20 if gpu else 2)
    what = f"PyTorch {torch.__version__} {name}, pretraining, {precision}, batch {batch}"
    print(json.dumps({"what": what, "value": value}), flush=True)
