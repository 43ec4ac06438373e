"""Files of weights that others wrote, as names and arrays, without running anything that is in them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from typing import Any

import numpy as np

from input import files

SUFFIXES = (".safetensors", ".h5", ".keras", ".npz", ".pth", ".pt", ".bin")

# The order in which Keras 3's files number the variables of a layer.
_KERAS_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read_tensors(path: str) -> dict[str, np.ndarray]:
    """Every tensor of a file, by the name that its framework gave it; Keras's are LAYER/VARIABLE.

    Args:
      path: a .safetensors, .npz, .pth, .pt or .bin (PyTorch), .h5 or .keras file.

    Raises:
      OSError: the file cannot be read.
      ValueError: the suffix is unknown, the file holds something else than its suffix says, or PyTorch is missing.
    """
    suffix = next((suffix for suffix in SUFFIXES if path.endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{path}: the file's name must end in one of {', '.join(SUFFIXES)}.")
    read = {".safetensors": _safetensors, ".h5": _h5, ".keras": _keras, ".npz": _npz}.get(suffix, _torch)
    content = io.BytesIO(files.read(path))
    try:
        return read(content)
    except ImportError as error:
        raise ValueError(
            f"{path}: to read it, install PyTorch (pip install 'retinanet-tf[torch]'), or convert the file to "
            ".safetensors where it is installed."
        ) from error
    except Exception as error:  # each library has exceptions of its own for a damaged file
        raise ValueError(f"{path} cannot be read as a {suffix} file of weights: {error}") from error


def _safetensors(content: io.BytesIO) -> dict[str, np.ndarray]:
    from safetensors import numpy as safetensors

    return dict(safetensors.load(content.getvalue()))


def _npz(content: io.BytesIO) -> dict[str, np.ndarray]:
    with np.load(content, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _torch(content: io.BytesIO) -> dict[str, np.ndarray]:
    import torch

    # weights_only: the file is a pickle, which could otherwise run any code.
    values: Any = torch.load(content, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
    return {name: value.float().numpy() for name, value in values.items() if isinstance(value, torch.Tensor)}


def _h5(content: io.BytesIO) -> dict[str, np.ndarray]:
    import h5py

    tensors: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer_weights/"):
            tensors["/".join(name.split("/")[-2:]).removesuffix(":0")] = item[()]

    with h5py.File(content, "r") as file:
        file.visititems(visit)
    return tensors


def _keras(content: io.BytesIO) -> dict[str, np.ndarray]:
    """The layers are listed in config.json; the arrays are numbered, in groups named after each layer or its class."""
    import h5py

    tensors: dict[str, np.ndarray] = {}

    def visit(layers: list[dict[str, Any]], group: Any) -> None:
        counts: Counter[str] = Counter()
        for layer in layers:
            kind, name = layer["class_name"], layer["config"]["name"]
            plain = (
                re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind)
                .lower()
                .replace("conv2_d", "conv2d")
            )
            numbered = f"{plain}_{counts[plain]}" if counts[plain] else plain
            counts[plain] += 1
            found = group.get(name, group.get(numbered))
            if found is None:
                continue
            if "layers" in layer["config"]:
                visit(layer["config"]["layers"], found["layers"])
            elif "vars" in found:
                for index, variable in enumerate(_KERAS_VARIABLES.get(kind, ())):
                    if str(index) in found["vars"]:
                        tensors[f"{name}/{variable}"] = found["vars"][str(index)][()]

    with zipfile.ZipFile(content) as archive:
        config = json.loads(archive.read("config.json"))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
            visit(config["config"]["layers"], file["layers"])
    return tensors
