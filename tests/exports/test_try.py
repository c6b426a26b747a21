import pytest

CASES = [
    ("mae", "safetensors", "a.safetensors"),
    ("jepa", "safetensors", "a.safetensors"),
    ("mae", "timm", "a.safetensors"),
    ("jepa", "timm", "a.safetensors"),
    ("jepa2", "timm", "a.safetensors"),
    ("mae", "hub", "h"),
    ("jepa2", "hub", "h"),
    ("mae", "transformers-videomae", "h"),
    ("jepa2", "transformers-vjepa2", "h"),
    ("mae", "videomae", "a.pth"),
    ("jepa", "vjepa", "a.pth"),
    ("jepa2", "vjepa", "a.pth"),
    ("mae", "torch-export", "a.pt2"),
    ("jepa2", "torch-export", "a.pt2"),
    ("mae", "onnx", "a.onnx"),
    ("jepa2", "onnx", "a.onnx"),
]


@pytest.mark.parametrize("c", CASES, ids=str)
def test_x(c, runs, convert):
    p = convert(runs[c[0]].path, c[1], c[2])
    print(sorted(x.name for x in p.parent.iterdir()))
    if c[1] == "hub":
        print((p / "README.md").read_text())
        print((p / "config.json").read_text())
