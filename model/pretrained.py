"""Weights that a network starts from: how others name and lay them out, turned into ours, and our file of them.

Our file is a .safetensors file. Its arrays have the names that `variables_by_name` gives and TensorFlow's layout; the
metadata entry "retinanet_tf" describes them in JSON, as `Origin` does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from input import files
from input.config import AnchorConfig
from model import retinanet
from model.backbone import Backbone
from model.coco_classes import CATEGORIES
from model.config import BACKBONES, ModelConfig

_HEADER = "retinanet_tf"
_BODY = "backbone.body."  # torchvision's prefix of a detector's backbone
_COUNT = "num_batches_tracked"  # PyTorch's batch norm counts its batches, unless it is frozen
# Spaces and case aside, what PASCAL VOC calls otherwise than COCO.
_SYNONYMS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights come from, and the settings that a network needs to use them."""

    source: str  # for the log
    backbone: str
    preprocessing: str
    batch_norm_epsilon: float
    resnet_stride: str = "auto"  # auto: the backbone has no bottlenecks
    # Of a whole detector; without a neck the weights are those of a backbone alone.
    neck: str = ""
    p6_from: str = "auto"
    anchor: AnchorConfig = AnchorConfig()
    labels: tuple[str, ...] = ()  # of each output of the class head, "" for one that means no class

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Origin:
        values: dict[str, Any] = json.loads(text)
        anchor = values["anchor"]
        lists: dict[str, Any] = {key: tuple(value) for key, value in anchor.items() if isinstance(value, list)}
        return cls(**{**values, "anchor": AnchorConfig(**{**anchor, **lists}), "labels": tuple(values["labels"])})


class Weights(NamedTuple):
    """Arrays by the names of our variables."""

    origin: Origin
    arrays: dict[str, np.ndarray]


class Translation(NamedTuple):
    """Weights made of a file of others, and what is worth telling of it."""

    weights: Weights
    skipped: list[str]  # tensors of the file that were not taken
    reshaped: list[str]  # what was changed, other than the order of a kernel's axes


def variables_by_name(model: retinanet.RetinaNet) -> dict[str, tf.Variable]:
    """The variables of a network: "backbone/...", "neck/...", "class_head/..." and "box_head/..."."""
    parts = {model.backbone.name: "backbone", model.neck.name: "neck"}
    named = {}
    for variable in model.variables:
        _, part, rest = variable.name.removesuffix(":0").split("/", 2)
        named[f"{parts.get(part, part)}/{rest}"] = variable
    return named


def save(path: str, weights: Weights) -> None:
    """Writes our file, whole or not at all, and makes its folder."""
    from safetensors import numpy as safetensors

    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.arrays.items()}
    files.make_dirs(os.path.dirname(path) or ".")
    with files.create(path) as file:
        file.write(safetensors.save(arrays, metadata={_HEADER: weights.origin.to_json()}))


def load(path: str) -> Weights | None:
    """What `save` wrote; None if the file is not one of ours."""
    from safetensors import SafetensorError
    from safetensors import numpy as safetensors

    content = files.read(path)
    # A file begins with a JSON header after its length, u64. The library reads its metadata from local files only.
    length = int.from_bytes(content[:8], "little")
    try:
        origin = json.loads(content[8 : 8 + length])["__metadata__"][_HEADER]
        return Weights(Origin.from_json(origin), safetensors.load(content))
    except (ValueError, KeyError, SafetensorError):
        return None


def translate(
    tensors: Mapping[str, np.ndarray],
    source: str,
    *,
    labels: Sequence[str] = (),
    preprocessing: str = "auto",
    resnet_stride: str = "auto",
    epsilon: float | None = None,
    backbone_only: bool = False,
) -> Translation:
    """Recognises published weights by their names and shapes, and turns them into ours.

    They may be a classifier's of torchvision, timm, Keras or efficientnet-lite-pytorch, whose classifier is skipped, or
    a whole RetinaNet of torchvision (v1).

    Args:
      tensors: as `weight_files.read_tensors` gives them.
      source: what to call them.
      labels: the classes that a detector's class head predicts, in order; for 91 outputs COCO's are known.
      preprocessing, resnet_stride: as in the settings; auto: what the framework that the names belong to uses.
      epsilon: of batch norm; None: the framework's.
      backbone_only: leave a detector's neck and heads.

    Raises:
      ValueError: nothing is recognised, or a part is missing, has another shape, or is one that ours does not have.
    """
    counts_batches = any(name.endswith(_COUNT) for name in tensors)
    tensors = {
        name.removeprefix("module."): np.asarray(value, np.float32)
        for name, value in tensors.items()
        if not name.endswith(_COUNT)
    }
    is_torch = any(name.endswith("running_mean") for name in tensors)
    is_detector = any(name.startswith(_BODY) for name in tensors)
    family, renamed = _rename_backbone(tensors, _BODY if is_detector else "", source)
    arrays = {own: _to_tensorflow(own, tensors[name]) if is_torch else tensors[name] for name, own in renamed.items()}
    taken, reshaped = set(renamed), []
    if biases := [name for name in arrays if name.endswith("/conv/bias")]:
        for name in biases:
            mean = name.replace("/conv/bias", "/norm/moving_mean")
            if mean not in arrays:
                raise ValueError(f"{source}: it has a bias for {name}, but no batch norm behind it.")
            arrays[mean] = arrays[mean] - arrays.pop(name)
        reshaped.append(f"the biases of {len(biases)} convolutions became part of the moving means")
    backbone = _find_backbone(family, arrays, source)
    has_bottlenecks = any(re.search(r"_3/conv/kernel$", name) for name in arrays)
    is_frozen = is_detector and not counts_batches
    if epsilon is None and is_frozen:
        reshaped.append("batch norm is frozen in this file: epsilon is taken to be 0, as in torchvision's COCO weights")
    origin = Origin(
        source=source,
        backbone=backbone,
        preprocessing=_or(preprocessing, family.published_preprocessing if is_torch else "caffe"),
        batch_norm_epsilon=epsilon if epsilon is not None else 0.0 if is_frozen else _epsilon(family, is_torch),
        resnet_stride=_or(resnet_stride, "3x3" if is_torch else "1x1") if has_bottlenecks else "auto",
    )
    arrays = {f"backbone/{name}": array for name, array in arrays.items()}
    if is_detector and not backbone_only:
        neck_and_heads, names, p6_from = _translate_detector(tensors, source)
        taken |= names
        arrays.update(neck_and_heads)
        num_classes = arrays["class_head/output/bias"].size // AnchorConfig().anchors_per_location
        origin = dataclasses.replace(
            origin,
            neck="fpn",
            p6_from=p6_from,
            anchor=AnchorConfig(anchor_convention="torchvision"),
            labels=_check_labels(labels, num_classes, source),
        )
        reshaped.append("the heads' outputs were put in our order of anchors and of box deltas")
    return Translation(Weights(origin, arrays), sorted(set(tensors) - taken), reshaped)


def _or(value: str, otherwise: str) -> str:
    return otherwise if value == "auto" else value


def _epsilon(family: type[Backbone], is_torch: bool) -> float:
    return family.published_epsilon if is_torch else 1.001e-5  # Keras's ResNets


def _to_tensorflow(name: str, array: np.ndarray) -> np.ndarray:
    """PyTorch's kernel [out, in, h, w] as [h, w, in, out]; a depthwise one [c, 1, h, w] as [h, w, c, 1]."""
    if array.ndim != 4:
        return array
    return array.transpose((2, 3, 0, 1) if name.endswith("depthwise_kernel") else (2, 3, 1, 0))


def _rename_backbone(
    tensors: Mapping[str, np.ndarray], prefix: str, source: str
) -> tuple[type[Backbone], dict[str, str]]:
    """The kind of backbone that most names belong to, and our name for each of them."""
    candidates = []
    for family in retinanet.BACKBONE_FAMILIES.values():
        names = ((name, family.variable_name(name[len(prefix) :])) for name in tensors if name.startswith(prefix))
        candidates.append((family, {name: own for name, own in names if own is not None}))
    family, renamed = max(candidates, key=lambda candidate: len(candidate[1]))
    if not any(own.endswith("kernel") for own in renamed.values()):
        raise ValueError(
            f"{source}: no backbone that we have is in it; its tensors are {', '.join(sorted(tensors)[:5])}, ..."
        )
    blocks = {_block(name) for name in renamed} - {None}
    if strangers := [name for name in sorted(tensors) if name not in renamed and _block(name) in blocks]:
        raise ValueError(
            f"{source}: {strangers[0]} is inside a block of the backbone, but no backbone that we have has such a part "
            "(SE-ResNet, ResNet-D and others extend ResNet's blocks): choose the weights of a plain one."
        )
    return family, renamed


def _block(name: str) -> str | None:
    """The block that a tensor of PyTorch belongs to, up to the first number: "layer1.0" of "layer1.0.conv1.weight"."""
    match = re.match(r".*?\.\d+(?=\.)", name)
    return match[0] if match else None


def _find_backbone(family: type[Backbone], arrays: Mapping[str, np.ndarray], source: str) -> str:
    """The name of the backbone whose variables these are, all of them."""
    shapes = {name: array.shape for name, array in arrays.items()}
    num_kernels = sum(name.endswith("kernel") for name in shapes)
    for name in BACKBONES:
        if retinanet.BACKBONE_FAMILIES[retinanet.family_of(name)] is not family:
            continue
        layer = retinanet.make_backbone(ModelConfig(backbone=name))
        # The number of convolutions is known before any weight is made.
        if len(layer.conv_norms) == num_kernels and shapes == _shapes_of(layer):
            return name
    raise ValueError(
        f"{source}: the {num_kernels} convolutions in it, with their normalisation, are not those of any backbone that "
        f"we have: {', '.join(BACKBONES)}."
    )


def _shapes_of(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """The shape of each variable of a backbone."""
    backbone(tf.keras.Input((64, 64, 3)))
    return {v.name.removesuffix(":0").split("/", 1)[1]: tuple(v.shape) for v in backbone.variables}


def _translate_detector(tensors: Mapping[str, np.ndarray], source: str) -> tuple[dict[str, np.ndarray], set[str], str]:
    """Neck and heads of torchvision's RetinaNet; the names that were taken; what P6 is made of."""
    arrays, taken = {}, set()
    for name, array in tensors.items():
        variable = "kernel" if name.endswith("weight") else "bias"
        if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?\.(?:weight|bias)", name):
            own = f"neck/{'lateral' if match[1] == 'inner' else 'output'}{int(match[2]) + 3}/{variable}"
        elif match := re.fullmatch(r"backbone\.fpn\.extra_blocks\.p(6|7)\.(?:weight|bias)", name):
            own = f"neck/coarse{match[1]}/{variable}"
        elif match := re.fullmatch(r"head\.(classification|regression)_head\.conv\.(\d)(\.0)?\.(?:weight|bias)", name):
            number = int(match[2])
            index = number if match[3] else number // 2  # before torchvision 0.13 files count the ReLUs too
            own = f"{'class' if match[1] == 'classification' else 'box'}_head/conv{index}/{variable}"
        elif match := re.fullmatch(r"head\.\w+\.(cls_logits|bbox_reg)\.(?:weight|bias)", name):
            own = f"{'class' if match[1] == 'cls_logits' else 'box'}_head/output/{variable}"
            array = _reorder_outputs(array, is_boxes=match[1] == "bbox_reg", source=source)
        elif name.startswith(("backbone.fpn.", "head.")):
            raise ValueError(
                f"{source}: {name} belongs to a detector that we do not have (torchvision's v2 normalises its heads): "
                "take its backbone alone with --backbone_only."
            )
        else:
            continue
        arrays[own] = _to_tensorflow(own, array)
        taken.add(name)
    wanted = {f"{part}{level}" for part in ("neck/lateral", "neck/output") for level in (3, 4, 5)}
    wanted |= {"neck/coarse6", "neck/coarse7", "class_head/output", "box_head/output"}
    if missing := sorted(wanted - {own.rsplit("/", 1)[0] for own in arrays}):
        raise ValueError(f"{source}: it looks like torchvision's RetinaNet, but lacks {', '.join(missing)}.")
    channels_in, channels_out = arrays["neck/coarse6/kernel"].shape[2:]
    return arrays, taken, "p5" if channels_in == channels_out else "c5"  # torchvision decides by the same rule


def _reorder_outputs(array: np.ndarray, *, is_boxes: bool, source: str) -> np.ndarray:
    """A head's outputs [anchors * k, ...] from torchvision's order to ours.

    Its anchors vary over ratios, height / width, before sizes, ours over scales before ratios, width / height; of a box
    it has x before y.
    """
    config = AnchorConfig()
    num_scales, num_ratios = len(config.scales), len(config.aspect_ratios)
    if array.shape[0] % (num_scales * num_ratios) or (is_boxes and array.shape[0] != 4 * num_scales * num_ratios):
        raise ValueError(
            f"{source}: its heads have {array.shape[0]} outputs, which do not belong to torchvision's 9 anchors: "
            "take its backbone alone with --backbone_only."
        )
    outputs = array.reshape(num_ratios, num_scales, -1, *array.shape[1:])[::-1].swapaxes(0, 1)
    if is_boxes:
        outputs = outputs[:, :, [1, 0, 3, 2]]
    return outputs.reshape(array.shape)


def _check_labels(labels: Sequence[str], num_outputs: int, source: str) -> tuple[str, ...]:
    """A label for each output; torchvision's first output is the background, which its labels leave out."""
    if not labels:
        return CATEGORIES if num_outputs == len(CATEGORIES) else ()
    if len(labels) == num_outputs - 1:
        return ("", *labels)
    if len(labels) != num_outputs:
        raise ValueError(
            f"{source} predicts {num_outputs} classes with the background, but --labels has {len(labels)}."
        )
    return tuple(labels)


def same_class(label: str) -> str:
    """A form in which the names of one class agree: "Dining table" and "diningtable", "tvmonitor" and "tv"."""
    plain = "".join(character for character in label.casefold() if character.isalnum())
    return _SYNONYMS.get(plain, plain)
