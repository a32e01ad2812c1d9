"""`python -m dlv3p_kernels explain MODEL`, with packages that stand in for the peers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlv3p_kernels import model_names
from dlv3p_kernels.__main__ import main

_NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, *args, **kwargs):
        super().__init__(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 5, 1), nn.ReLU())
        self.made_with = (args, kwargs)
"""
_FACTORIES = """
from beside import Net

def make():
    return Net()

ready, number = Net(), 3
"""
# What the peers' own entry points take, and the calls expected of them.
_PEERS = {
    "segmentation_models_pytorch": "from beside import Net as DeepLabV3Plus",
    "timm": "from beside import Net as create_model",
    "transformers": "from beside import Net as Model\nModel.config_class = lambda: 'defaults'",
    "torchvision/__init__": "",
    "torchvision/models": (
        "from beside import Net\ndef list_models(): return ['net', 'seg']\n"
        "def get_model_builder(name):\n"
        "    return (lambda *, weights: 0) if name == 'net' else"
        " (lambda *, weights, weights_backbone: 0)\n"
        "def get_model(name, **options): return Net(name, **options)"
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with packages in it that are imported before those installed."""
    (tmp_path / "beside.py").write_text(_NET)
    (tmp_path / "my_models.py").write_text(_FACTORIES)
    (tmp_path / "torchvision").mkdir()
    for name, text in _PEERS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    ours = {"beside", "my_models", "torchvision", *_PEERS}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "args", "options"),
    (
        ("smp:DeepLabV3Plus:resnet50", ("resnet50",), {"encoder_weights": None}),
        ("timm:xception65", ("xception65",), {"pretrained": False}),
        ("torchvision:net", ("net",), {"weights": None}),
        ("torchvision:seg", ("seg",), {"weights": None, "weights_backbone": None}),
        ("transformers:Model", ("defaults",), {}),
    ),
)
def test_names_of_peers(text: str, args: object, options: object, folder: Path) -> None:
    assert model_names.build(text).made_with == (args, options)


def test_output_stride_is_smps(folder: Path) -> None:
    _, options = model_names.build("smp:DeepLabV3Plus:resnet50", 8).made_with
    assert options["encoder_output_stride"] == 8
    with pytest.raises(ValueError, match="an output stride is for smp: models, got one for timm:x"):
        model_names.build("timm:x", 8)


@pytest.mark.parametrize("name", ("make", "ready", "Net"))
@pytest.mark.parametrize("home", ("my_models", "my_models.py"))
def test_factories(home: str, name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{home}:{name}"]) == 0
    assert "1 separable_conv2d" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    (
        ("nonsense", "expected smp:CLASS:ENCODER, timm:NAME"),
        ("smp:DeepLabV3Plus", "expected smp:CLASS:ENCODER"),
        ("timm:", "expected smp:CLASS:ENCODER"),
        ("smp:Nothing:resnet50", "segmentation_models_pytorch has no Nothing"),
        ("torchvision:nothing", "torchvision has no model 'nothing'"),
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("my_models:number", "must make an nn.Module, got int"),
        ("no_such_package:make", "Install it: pip install no_such_package"),
    ),
)
def test_what_is_no_model(
    text: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", text]) == 2
    said = capsys.readouterr()
    assert words in said.err and not said.out


def test_a_peer_that_does_not_load(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the torchvision of PyPI beside a torch without CUDA."""
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (folder / "segmentation_models_pytorch.py").write_text(broken)
    assert main(["explain", "smp:DeepLabV3Plus:resnet50"]) == 2
    said = capsys.readouterr().err
    for words in (
        "segmentation_models_pytorch cannot be imported: operator torchvision::nms does not exist",
        "pip install torchvision --index-url https://download.pytorch.org/whl/",
    ):
        assert words in said


def test_from_a_shell(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dlv3p_kernels", "explain", "my_models.py:make"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "(model) [Net]: separable_conv2d (depthwise, pointwise, relu)" in result.stdout
