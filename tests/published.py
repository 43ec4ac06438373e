"""Weights with the names and shapes of torchvision's, random but the same on every machine, without PyTorch.

`python tests/published.py` in PyTorch's environment prints what torchvision's network makes of them: the expected
values in `tests/test_pretrained.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

IMAGES = np.random.default_rng(7).normal(0, 1, (1, 64, 96, 3)).astype(np.float32)
NUM_CLASSES = 3  # with the background


def resnet_shapes(blocks: tuple[int, ...], *, bottleneck: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    def conv_bn(conv: str, bn: str, out: int, into: int, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{conv}.weight", (out, into, size, size)
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield f"{bn}.{name}", (out,)
        yield f"{bn}.num_batches_tracked", ()

    yield from conv_bn("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, count in enumerate(blocks, start=1):
        width = 64 * 2 ** (stage - 1)
        out = width * 4 if bottleneck else width
        for block in range(count):
            name, into = f"layer{stage}.{block}", channels if block == 0 else out
            sizes = (
                [(into, width, 1), (width, width, 3), (width, out, 1)]
                if bottleneck
                else [(into, width, 3), (width, out, 3)]
            )
            for index, (first, second, size) in enumerate(sizes, start=1):
                yield from conv_bn(f"{name}.conv{index}", f"{name}.bn{index}", second, first, size)
            if block == 0 and into != out:
                yield from conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", out, into, 1)
        channels = out


def detector_shapes(
    blocks: tuple[int, ...], *, bottleneck: bool, num_classes: int = NUM_CLASSES
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """torchvision's `retinanet_resnet50_fpn`, with a body of so many blocks."""
    for name, shape in resnet_shapes(blocks, bottleneck=bottleneck):
        yield f"backbone.body.{name}", shape
    c3 = 512 if bottleneck else 128
    for name, out, into, size in (
        *((f"backbone.fpn.inner_blocks.{i}.0", 256, c3 * 2**i, 1) for i in range(3)),
        *((f"backbone.fpn.layer_blocks.{i}.0", 256, 256, 3) for i in range(3)),
        *((f"backbone.fpn.extra_blocks.p{i}", 256, 256, 3) for i in (6, 7)),
        *((f"head.{head}_head.conv.{i}.0", 256, 256, 3) for head in ("classification", "regression") for i in range(4)),
        ("head.classification_head.cls_logits", 9 * num_classes, 256, 3),
        ("head.regression_head.bbox_reg", 36, 256, 3),
    ):
        yield f"{name}.weight", (out, into, size, size)
        yield f"{name}.bias", (out,)


def random_tensors(shapes: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Values that keep activations near 1 and are not those of an untrained network."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes:
        if name.endswith("num_batches_tracked"):
            value = np.array(1)
        elif len(shape) == 4:
            value = rng.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:]) ** -0.5)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            value = rng.uniform(0.5, 1.5, shape) * (0.3 if name.endswith("bn3.weight") else 1.0)
        else:
            value = rng.uniform(-0.3, 0.3, shape)
        tensors[name] = value if value.ndim == 0 else value.astype(np.float32)
    return tensors


def main() -> None:
    import torch  # with the two operators that torchvision asks for, as in benchmarks/parity_torch.py

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    network = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES
    ).eval()
    tensors = random_tensors(detector_shapes((3, 4, 6, 3), bottleneck=True))
    network.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()})
    with torch.no_grad():
        outputs = network.head(list(network.backbone(images).values()))
    for name, value in outputs.items():
        print(name, tuple(value.shape), np.round(value[0, ::166].double().numpy(), 5).tolist())


if __name__ == "__main__":
    main()
