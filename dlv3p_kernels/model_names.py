"""Models by name, for the command line: those of other packages, and the caller's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

FORMS = (
    "smp:CLASS:ENCODER",
    "timm:NAME",
    "torchvision:NAME",
    "transformers:CLASS",
    "MODULE:FACTORY",
    "FILE.py:FACTORY",
)
_PACKAGES = {
    "smp": "segmentation_models_pytorch",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "transformers",
}


def build(text: str, output_stride: int | None = None) -> nn.Module:
    """Make a model with random weights; nothing is downloaded for those of other packages.

    Args:
        text: `smp:CLASS:ENCODER` (segmentation_models_pytorch), `timm:NAME`, `torchvision:NAME`,
            `transformers:CLASS` (with its default configuration), or `MODULE:FACTORY` or
            `FILE.py:FACTORY`, a function or class that makes a module when called without
            arguments, or a module itself.
        output_stride: of smp's encoders; their default where left out.

    Returns:
        The model.

    Raises:
        ValueError: `text` has none of these forms, or there is no such model.
        ImportError: the package can not be imported; the message names the remedy.
    """
    peer, *names = text.split(":")
    wanted = 2 if peer == "smp" else 1
    if len(names) != wanted or not all((peer, *names)):
        raise ValueError(f"expected {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    if output_stride is not None and peer != "smp":
        raise ValueError(f"an output stride is for smp: models, got one for {text}")
    if peer not in _PACKAGES:
        return _own(peer, names[0])
    package = _imported(_PACKAGES[peer])
    if peer == "smp":
        options = {} if output_stride is None else {"encoder_output_stride": output_stride}
        return _called(package, names[0], names[1], encoder_weights=None, **options)
    if peer == "timm":
        return _called(package, "create_model", names[0], pretrained=False)
    if peer == "torchvision":
        return _of_torchvision(names[0])
    cls = _member(package, names[0])
    return _called(package, names[0], cls.config_class())


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise ImportError(
            f"{name} cannot be imported: {error}. Install it: pip install {missing}"
        ) from error
    except Exception as error:  # whatever a broken installation raises
        raise ImportError(f"{name} cannot be imported: {error}. {_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    if "torchvision" not in str(error):
        return f"Reinstall it for Python {sys.version_info[0]}.{sys.version_info[1]}"
    build = "cpu" if torch.version.cuda is None else "cu" + torch.version.cuda.replace(".", "")
    return (
        f"The installed torchvision was built for another torch than {torch.__version__}: its"
        " operators do not load. Let pip choose the one of the same release and build:"
        " pip uninstall -y torchvision; pip install torchvision --index-url"
        f" https://download.pytorch.org/whl/{build}"
    )


def _of_torchvision(name: str) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    if name not in models.list_models():
        raise ValueError(f"torchvision has no model {name!r}")
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    # Weights of the backbone alone are downloaded where they are not refused.
    weights = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    return _called(models, "get_model", name, **weights)


def _own(home: str, name: str) -> nn.Module:
    made: Any = _member(_home(home), name)
    if not isinstance(made, nn.Module) and callable(made):
        made = made()
    if not isinstance(made, nn.Module):
        raise ValueError(f"{home}:{name} must make an nn.Module, got {type(made).__name__}")
    return made


def _home(home: str) -> ModuleType:
    """The module of a name, or of a file, which may import what lies beside it."""
    path = Path(home)
    folder = str(path.resolve().parent) if path.suffix == ".py" else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if path.suffix != ".py":
        return _imported(home)
    if not path.is_file():
        raise ValueError(f"there is no file {home}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _member(module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        raise ValueError(f"{module.__name__} has no {name}")
    return getattr(module, name)


def _called(module: ModuleType, name: str, *args: object, **kwargs: object) -> nn.Module:
    make: Callable[..., nn.Module] = _member(module, name)
    return make(*args, **kwargs)
