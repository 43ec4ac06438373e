"""The PyTorch side of `benchmarks/parity.py`: writes weights, and what its networks make of them.

It needs only PyTorch, torchvision and NumPy, in an environment of its own, and takes timm too where it is installed;
nothing is downloaded. Weights and batch norm's statistics are random.

`python benchmarks/parity_torch.py OUT`

OUT gets NAME.safetensors or NAME.pth, and NAME.expected.npz with `images` f32 [b, h, w, 3], the network's input, and
its outputs: the features `c3`, `c4`, `c5` [b, h, w, c], or `class_logits` [b, a, k], `box_deltas` [b, a, 4]
(dx, dy, dw, dh), `anchors` [a, 4] (xmin, ymin, xmax, ymax).
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import Any

import numpy as np
import torch

# A CPU-only PyTorch does not load the operators of a torchvision built for CUDA; importing it asks for these two.
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402
from torchvision.models.detection import image_list  # noqa: E402

IMAGE_SIZE = (96, 160)


def randomise(network: Any, seed: int) -> None:
    """No statistic keeps a value that hides a mistake, and no activation grows without bound."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Any, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    modules = dict(network.named_modules())
    last = "bn3" if any(name.endswith("bn3") for name in modules) else "bn2"
    with torch.no_grad():
        for name, module in modules.items():
            if hasattr(module, "running_var"):
                last_of_block = name.endswith(last)
                uniform(module.weight, *((0.2, 0.4) if last_of_block else (0.5, 1.5)))
                uniform(module.bias, -0.3, 0.3)
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
            elif getattr(module, "bias", None) is not None and isinstance(module, torch.nn.Conv2d):
                uniform(module.bias, -0.1, 0.1)
                module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)


def nhwc(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def write_features(folder: pathlib.Path, name: str, network: Any, images: Any) -> None:
    """`network`, a ResNet of torchvision or timm: its parts have the same names."""
    network.eval()
    randomise(network, seed=1)
    save(network, folder / f"{name}.safetensors")
    features = network.maxpool(torch.relu(network.bn1(network.conv1(images))))
    found = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        features = layer(features)
        found.append(nhwc(features))
    np.savez(folder / f"{name}.expected.npz", images=nhwc(images), **dict(zip(("c3", "c4", "c5"), found[1:])))


def write_detector(folder: pathlib.Path, name: str, images: Any, *, frozen: bool) -> None:
    network = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).eval()
    if frozen:  # as torchvision makes it from its COCO weights
        network.backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            trainable_layers=5,
            returned_layers=[2, 3, 4],
            extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
        ).eval()
        for module in network.modules():
            if hasattr(module, "eps"):
                module.eps = 0.0
    randomise(network, seed=2)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    save(network, folder / f"{name}.safetensors")
    features = list(network.backbone(images).values())
    outputs = network.head(features)
    anchors = network.anchor_generator(image_list.ImageList(images, [IMAGE_SIZE] * len(images)), features)[0]
    np.savez(
        folder / f"{name}.expected.npz",
        images=nhwc(images),
        class_logits=outputs["cls_logits"].detach().numpy(),
        box_deltas=outputs["bbox_regression"].detach().numpy(),
        anchors=anchors.numpy(),
    )


def save(network: Any, path: pathlib.Path) -> None:
    from safetensors.torch import save_file

    save_file(network.state_dict(), path)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images = torch.randn(2, 3, *IMAGE_SIZE)
    with torch.no_grad():
        for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
            write_features(folder, name, getattr(torchvision.models, name)(weights=None), images)
        if importlib.util.find_spec("timm"):
            import timm

            for name in ("resnet18", "resnet50"):
                write_features(folder, f"timm_{name}", timm.create_model(name, pretrained=False), images)
        write_detector(folder, "retinanet_resnet50_fpn", images, frozen=False)
        write_detector(folder, "retinanet_resnet50_fpn_frozen", images, frozen=True)


if __name__ == "__main__":
    main()
