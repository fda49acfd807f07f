"""Times transformers' LXMERT, and the student project's variant in plain PyTorch; forward passes also by ONNX Runtime and
OpenVINO. Prints JSON lines.

    python lxmert.py [--runs N] [--threads N] [case …]

A step is forward, backward, gradient norm and AdamW, with dropout, as in `lxmert-train/benches/steps.rs`. Cases that
end in bf16 run under autocast.
"""
import pathlib, tempfile
import torch, transformers
from torch import nn
from common import arguments, formula, report

SMALL = dict(hidden_size=256, num_attention_heads=4, intermediate_size=1024, l_layers=2, r_layers=2, x_layers=2, visual_feat_dim=1024)
CASES = {  # config, student, train, batch, words, real words of sentence i
    "base forward, batch 1": ({}, False, False, 1, 20, lambda i: 20),
    "base forward, batch 8": ({}, False, False, 8, 20, lambda i: 20),
    "base forward, batch 32": ({}, False, False, 32, 20, lambda i: 20),
    "base forward, batch 32, real lengths": ({}, False, False, 32, 20, lambda i: 9 + i * 7 % 12),
    "base step, batch 32": ({}, False, True, 32, 20, lambda i: 20),
    "small step, batch 64": (SMALL, False, True, 64, 32, lambda i: 32),
    "student step, batch 32": (SMALL, True, True, 32, 50, lambda i: 16),
}


class Matching(nn.Module):
    """transformers' trunk with the published matching head."""

    def __init__(self, config):
        super().__init__()
        self.trunk = transformers.LxmertModel(config)
        self.head = nn.Linear(config.hidden_size, 2)

    def forward(self, ids, mask, features, boxes):
        pooled = self.trunk(input_ids=ids, attention_mask=mask, visual_feats=features, visual_pos=boxes).pooled_output
        logits = self.head(pooled)
        return logits[:, 1] - logits[:, 0]


class Half(nn.Module):
    """One stream's half of a cross layer of the student's model."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x, other, padding):
        x = self.norms[0](x + self.attention(x, other, other, key_padding_mask=padding, need_weights=False)[0])
        return self.norms[1](x + self.feed(x))


class Student(nn.Module):
    """The student project's model (durakalon/LXMERT_Flickr) as `lxmert_core::model::student` describes it."""

    def __init__(self, width=256):
        super().__init__()
        self.words, self.positions, self.segments = nn.Embedding(30522, width), nn.Embedding(512, width), nn.Embedding(2, width)
        self.text_norm, self.image_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.features, self.boxes = nn.Linear(1024, width), nn.Linear(4, width)
        encoder = lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True), 2)
        self.language, self.vision = encoder(), encoder()
        self.text, self.image = (nn.ModuleList(Half(width) for _ in range(2)) for _ in range(2))
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, ids, mask, features, boxes):
        padding = mask == 0
        places = self.positions(torch.arange(ids.shape[1])) + self.segments.weight[0]
        text = self.language(self.text_norm(self.words(ids) + places), src_key_padding_mask=padding)
        image = self.vision(self.image_norm(self.features(features) + self.boxes(boxes)))
        for text_half, image_half in zip(self.text, self.image):
            text = text_half(text, image, None)
            image = image_half(image, text, padding)
        return self.pooler(text[:, 0]).squeeze(1)


def deployed(case, model, inputs, a):
    """The exported model in the runtimes that a service would use; of these OpenVINO alone has bf16."""
    import onnxruntime, openvino

    names = ["ids", "mask", "features", "boxes"]
    values = dict(zip(names, (x.numpy() for x in inputs)))
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "model.onnx")
        with torch.no_grad():
            torch.onnx.export(model, inputs, path, input_names=names, dynamo=False)
        if not case.endswith("bf16"):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = a.threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            report(case, f"ONNX Runtime {onnxruntime.__version__}", a.runs, lambda: session.run(None, values))
            del session
        precision = "bf16" if case.endswith("bf16") else "f32"
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": a.threads}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        report(case, f"OpenVINO {openvino.__version__.split('-')[0]}", a.runs, lambda: compiled(values))


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    rounded = {f"{name}, bf16": case for name, case in CASES.items()}
    for name, (sizes, student, train, batch, words, real) in (CASES | rounded).items():
        if a.cases and name not in a.cases:
            continue
        precision = lambda: torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16"))
        torch.manual_seed(0)
        config = transformers.LxmertConfig(**sizes)
        model = Student() if student else Matching(config)
        width = config.visual_feat_dim
        ids = torch.from_numpy(formula("ids", (batch, words), 1000.0, 20000.0, 0)).long()
        mask = torch.tensor([[1.0 if j < real(i) else 0.0 for j in range(words)] for i in range(batch)])
        features = torch.from_numpy(formula("features", (batch, 36, width), 0.0, 2.0, 0))
        boxes = torch.from_numpy(formula("boxes", (batch, 36, 4), 0.0, 1.0, 0))
        peer = f"PyTorch {torch.__version__}" if student else f"transformers {transformers.__version__}, PyTorch {torch.__version__}"
        if train:
            model.train()
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
            target = torch.ones(batch)

            def run():
                optimiser.zero_grad()
                with precision():
                    logits = model(ids, mask, features, boxes).float()
                nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
        else:
            model.eval()

            def run():
                with torch.inference_mode(), precision():
                    model(ids, mask, features, boxes)
        report(name, peer, a.runs, run)
        if not train:
            deployed(name, model, (ids, mask, features, boxes), a)


main()
