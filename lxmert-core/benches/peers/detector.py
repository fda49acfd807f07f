"""Times torchvision's Faster R-CNN R50-FPN by PyTorch, ONNX Runtime and OpenVINO, with the reference run's formula weights, as
JSON lines.

    python detector.py [--runs N] [--threads N] [case …]
"""
import json, pathlib, tempfile
import torch, torchvision
from PIL import Image
from safetensors.torch import load_file
from common import arguments, formula, report

ROOT = pathlib.Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "lxmert-extract/tests/fixtures/frcnn"


def build():
    frozen = torchvision.ops.misc.FrozenBatchNorm2d
    body = torchvision.models.resnet50(weights=None, norm_layer=frozen)
    backbone = torchvision.models.detection.backbone_utils._resnet_fpn_extractor(body, 5)
    model = torchvision.models.detection.FasterRCNN(backbone, num_classes=91)
    for m in model.modules():
        if isinstance(m, frozen):
            m.eps = 0.0
    state = load_file(FIXTURES / "batchnorm-seed-0.safetensors")
    for t in json.loads((FIXTURES / "manifest.json").read_text())["tensors"]:
        state[t["name"]] = torch.from_numpy(formula(t["name"], t["shape"], t["low"], t["high"], 0))
    model.load_state_dict(state)
    return model.eval()


class Network(torch.nn.Module):
    """Backbone, pyramid and the region proposals' head."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.head = model.backbone, model.rpn.head

    def forward(self, x):
        levels = list(self.backbone(x).values())
        logits, deltas = self.head(levels)
        return (*levels, *logits, *deltas)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    model = build()
    wanted = lambda case: not a.cases or case in a.cases
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    with torch.inference_mode():
        x = torch.from_numpy(formula("images", (1, 3, 800, 1088), -2.0, 2.0, 1))
        network = Network(model).eval()
        image = torchvision.transforms.functional.to_tensor(Image.open(ROOT / "data/photos/coffee.png").convert("RGB"))
        if wanted("detector network"):
            report("detector network", versions, a.runs, lambda: network(x))
        if wanted("detector network, bf16"):
            with torch.autocast("cpu", torch.bfloat16):
                report("detector network, bf16", versions, a.runs, lambda: network(x))
        if wanted("whole image, bf16"):
            with torch.autocast("cpu", torch.bfloat16):
                report("whole image, bf16", versions, a.runs, lambda: model([image]))
        if wanted("whole image"):
            report("whole image", versions, a.runs, lambda: model([image]))
        last = model.to(memory_format=torch.channels_last)
        if wanted("detector network"):
            x_last = x.to(memory_format=torch.channels_last)
            report("detector network", f"{versions}, channels last", a.runs, lambda: network(x_last))
        if wanted("whole image"):
            report("whole image", f"{versions}, channels last", a.runs, lambda: last([image]))
    if not wanted("detector network") and not wanted("detector network, bf16"):
        return
    import onnxruntime, openvino

    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "network.onnx")
        # A separate model and input, because what ran in inference mode cannot be exported.
        x = torch.from_numpy(formula("images", (1, 3, 800, 1088), -2.0, 2.0, 1))
        with torch.no_grad():
            torch.onnx.export(Network(build()).eval(), (x,), path, input_names=["x"], dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = a.threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        values = {"x": x.numpy()}
        if wanted("detector network"):
            report("detector network", f"ONNX Runtime {onnxruntime.__version__}", a.runs, lambda: session.run(None, values))
        for case, precision in [("detector network", "f32"), ("detector network, bf16", "bf16")]:
            if not wanted(case):
                continue
            settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": a.threads}
            compiled = openvino.Core().compile_model(path, "CPU", settings)
            version = openvino.__version__.split("-")[0]
            report(case, f"OpenVINO {version}", a.runs, lambda: compiled(values))


main()
