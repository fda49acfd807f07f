"""Times the Visual Genome detector (ResNet-101 C4, 300 regions through the last residual stage) by PyTorch, ONNX Runtime and
OpenVINO, with the reference run's formula weights on data/photos/coffee.png, as JSON lines.

    python visual_genome.py [--runs N] [--threads N] [--check] [case …]

The network is written here with torchvision's operations and the original's conventions; `--check` compares its regions with the
reference run and times nothing. The two runtimes take the trunk and the stage on regions, which are 99 % of the work;
proposals and pooling between them stay torchvision's.
"""
import json, math, pathlib, sys, tempfile
import numpy as np, torch, torch.nn.functional as F, torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from common import arguments, formula, report

ROOT = pathlib.Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "lxmert-extract/tests/fixtures/frcnn_vg"
MEAN = torch.tensor([102.9801, 115.9465, 122.7717]).view(3, 1, 1)  # blue, green, red
STRIDE, PROPOSALS, CLAMP = 16, 300, math.log(1000 / 16)


class Norm(torchvision.ops.misc.FrozenBatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-5)


def convolution(inputs, outputs, kernel, stride=1, padding=0, dilation=1):
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    layer.norm = Norm(outputs)
    return layer


def normed(layer, x):
    return layer.norm(F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation))


class Block(nn.Module):
    """A bottleneck with its stride in the first 1×1."""

    def __init__(self, inputs, width, outputs, stride, dilation):
        super().__init__()
        self.conv1 = convolution(inputs, width, 1, stride)
        self.conv2 = convolution(width, width, 3, 1, dilation, dilation)
        self.conv3 = convolution(width, outputs, 1)
        self.shortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        y = F.relu(normed(self.conv1, x))
        y = F.relu(normed(self.conv2, y))
        return F.relu(normed(self.conv3, y) + (x if self.shortcut is None else normed(self.shortcut, x)))


def stage(blocks, inputs, width, stride, dilation=1):
    outputs = 4 * width
    return nn.Sequential(*(Block(inputs if i == 0 else outputs, width, outputs, stride if i == 0 else 1, dilation) for i in range(blocks)))


class Trunk(nn.Module):
    """Body to the fourth stage, and the proposals' head: map, logits and deltas."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.conv1 = convolution(3, 64, 7, 2, 3)
        self.backbone.res2, self.backbone.res3, self.backbone.res4 = stage(3, 64, 64, 1), stage(4, 256, 128, 2), stage(23, 512, 256, 2)
        head = nn.Module()
        head.conv = nn.Conv2d(1024, 512, 3, padding=1)
        head.objectness_logits, head.anchor_deltas = nn.Conv2d(512, 12, 1), nn.Conv2d(512, 48, 1)
        self.proposal_generator = nn.Module()
        self.proposal_generator.rpn_head = head

    def forward(self, x):
        x = F.relu(normed(self.backbone.stem.conv1, x))
        x = F.max_pool2d(x, 3, 2, 0, ceil_mode=True)
        x = self.backbone.res4(self.backbone.res3(self.backbone.res2(x)))
        head = self.proposal_generator.rpn_head
        hidden = F.relu(head.conv(x))
        return x, head.objectness_logits(hidden), head.anchor_deltas(hidden)


class Regions(nn.Module):
    """The stage on regions and the heads: features, class logits, box deltas and attribute logits."""

    def __init__(self):
        super().__init__()
        self.roi_heads = nn.Module()
        self.roi_heads.res5 = stage(3, 1024, 512, 1, dilation=2)
        box = self.roi_heads.box_predictor = nn.Module()
        box.cls_score, box.bbox_pred = nn.Linear(2048, 1601), nn.Linear(2048, 6400)
        box.cls_embedding = nn.Embedding(1601, 256)
        box.fc_attr, box.attr_score = nn.Linear(2304, 512), nn.Linear(512, 401)

    def forward(self, pooled):
        features = self.roi_heads.res5(pooled).mean((2, 3))
        box = self.roi_heads.box_predictor
        logits = box.cls_score(features)
        embedded = box.cls_embedding(logits.argmax(1))
        attributes = box.attr_score(F.relu(box.fc_attr(torch.cat([features, embedded], 1))))
        return features, logits, box.bbox_pred(features), attributes


def anchors(height, width):
    shapes = [(math.sqrt(s * s / r), r * math.sqrt(s * s / r)) for s in [64, 128, 256, 512] for r in [0.5, 1.0, 2.0]]
    cells = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes])
    y, x = torch.meshgrid(torch.arange(height) * STRIDE, torch.arange(width) * STRIDE, indexing="ij")
    return (torch.stack([x, y, x, y], -1).view(-1, 1, 4) + cells).view(-1, 4)


def decoded(boxes, deltas, size):
    """Boxes moved by their deltas, within the image of `size` (height, width)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sides / 2 + deltas[:, :2] * sides
    half = sides * deltas[:, 2:].clamp(max=CLAMP).exp() / 2
    limit = torch.tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(torch.cat([centres - half, centres + half], 1).clamp(min=0), limit)


def proposals(logits, deltas, size):
    height, width = logits.shape[2:]
    scores = logits.permute(0, 2, 3, 1).flatten()
    deltas = deltas.view(12, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    scores, best = scores.topk(min(6000, len(scores)))
    boxes = decoded(anchors(height, width)[best], deltas[best], size)
    kept = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[:, 0]
    kept = kept[torchvision.ops.nms(boxes[kept], scores[kept], 0.7)][:PROPOSALS]
    return boxes[kept]


def chosen(boxes, logits, deltas, size):
    """The 36 regions by Hugging Face's rule: indices and classes."""
    scores, classes = logits.softmax(1)[:, :-1].max(1)
    rows = torch.arange(len(boxes))
    moved = decoded(boxes, deltas.view(len(boxes), -1, 4)[rows, classes] / torch.tensor([10.0, 10.0, 5.0, 5.0]), size)
    for threshold in [0.5, 0.6, 0.7]:
        kept = torchvision.ops.nms(moved, scores, threshold)[:36]
        if len(kept) == 36:
            break
    return kept, classes[kept]


def detect(image, trunk, regions):
    """Everything from the resized picture on; `trunk` and `regions` may be another runtime's."""
    size = image.shape[1:]
    levels, logits, deltas = trunk((image - MEAN)[None])
    boxes = proposals(logits.float(), deltas.float(), size)
    pooled = torchvision.ops.roi_pool(levels.float(), [boxes], 14, 1 / STRIDE)
    features, logits, deltas, _ = regions(pooled)
    return features[chosen(boxes, logits.float(), deltas.float(), size)[0]]


def picture():
    """The photo as the reference resizes it: 0 to 255, blue first, the shorter side 800."""
    rgb = np.asarray(Image.open(ROOT / "data/photos/coffee.png").convert("RGB"), np.float32)
    bgr = torch.from_numpy(rgb[:, :, ::-1].copy()).permute(2, 0, 1)
    scale = 800 / min(bgr.shape[1:])
    size = [round(side * scale) for side in bgr.shape[1:]]
    return F.interpolate(bgr[None], size, mode="bilinear", align_corners=False)[0].clamp(0, 255)


def build():
    weights = load_file(FIXTURES / "calibration.safetensors")
    for t in json.loads((FIXTURES / "manifest.json").read_text())["tensors"]:
        weights[t["name"]] = torch.from_numpy(formula(t["name"], t["shape"], t["low"], t["high"], 0))
    parts = Trunk().eval(), Regions().eval()
    for part in parts:
        part.load_state_dict({name: weights[name] for name in part.state_dict()})
    return parts


def check():
    trunk, regions = build()
    expected = load_file(FIXTURES / "coffee.safetensors")
    with torch.inference_mode():
        features = detect(picture(), trunk, regions)
    error = (features - expected["hf.features"]).abs().max() / expected["hf.features"].mean()
    print(f"the 36 regions' features differ from the reference's by {error:.1e} of their mean")
    sys.exit(int(error > 1e-3))


def exported(module, given, path):
    torch.onnx.export(module, (given,), path, input_names=["x"], dynamo=False)
    return path


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    cases = [(case, precision) for case, precision in [("visual genome image", "f32"), ("visual genome image, bf16", "bf16")] if not a.cases or case in a.cases]
    image = picture()
    for case, precision in cases:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            trunk, regions = build()
            report(case, versions, a.runs, lambda: detect(image, trunk, regions))
            if precision == "f32":
                trunk, regions = (part.to(memory_format=torch.channels_last) for part in (trunk, regions))
                last = lambda part: lambda x: part(x.contiguous(memory_format=torch.channels_last))
                report(case, f"{versions}, channels last", a.runs, lambda: detect(image, last(trunk), last(regions)))
    if not cases:
        return
    import onnxruntime, openvino

    with tempfile.TemporaryDirectory() as folder:
        trunk, regions = build()  # what ran in inference mode cannot be exported
        given = [(image - MEAN)[None], torch.zeros(PROPOSALS, 1024, 14, 14)]
        with torch.no_grad():
            paths = [exported(*part, f"{folder}/{i}.onnx") for i, part in enumerate(zip((trunk, regions), given))]
        tensors = lambda arrays: [torch.from_numpy(np.array(array, copy=False)) for array in arrays]
        for case, precision in cases:
            if precision == "f32":
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = a.threads
                sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in paths]
                run = [lambda x, s=session: tensors(s.run(None, {"x": x.numpy()})) for session in sessions]
                report(case, f"ONNX Runtime {onnxruntime.__version__}", a.runs, lambda: detect(image, *run))
                del sessions, run
            settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": a.threads}
            compiled = [openvino.Core().compile_model(path, "CPU", settings) for path in paths]
            run = [lambda x, c=c: tensors(c({"x": x.numpy()}).to_tuple()) for c in compiled]
            report(case, f"OpenVINO {openvino.__version__.split('-')[0]}", a.runs, lambda: detect(image, *run))


if __name__ == "__main__":
    check() if "--check" in sys.argv else main()
