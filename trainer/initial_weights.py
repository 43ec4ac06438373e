"""The weights that a run starts from, and the settings that follow from them."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from input import files
from model import pretrained, retinanet, weight_files
from model.pretrained import Origin, Weights
from trainer import checkpoints, inference
from trainer.config import Config
from trainer.reporting import log

_ENOUGH_FROM_SCRATCH = 5000  # images; He et al. 2019 ("Rethinking ImageNet Pre-training") match it with 10,000 of COCO
# What "auto" means without weights.
_DEFAULTS = {"resnet_stride": "1x1", "p6_from": "c5", "preprocessing": "imagenet", "anchor_convention": "paper"}


def prepare(config: Config, model_dir: str | None) -> tuple[Config, Weights | None]:
    """The settings that the starting weights decide, filled in, and these weights; None for a run that is resumed.

    Without a `model_dir` no run is resumed. A resumed run whose `config.json` was deleted gets the settings as it got
    them at its start.

    Raises:
      ValueError: the weights need other settings than were given, or are of another backbone.
      FileNotFoundError: there is no such file or run.
    """
    if model_dir and checkpoints.list_steps(model_dir) and files.exists(checkpoints.config_path(model_dir)):
        earlier = checkpoints.read_config(model_dir)
        filled_in = _fill_in(config, _decided(earlier), f"the run in {model_dir}")
        return _choose_norm(filled_in, earlier.model.norm), None
    weights = _read(config)
    if weights is None:
        return config, None
    origin = weights.origin
    if origin.backbone != config.model.backbone:
        raise ValueError(
            f"{origin.source} holds a {origin.backbone}, not the --backbone={config.model.backbone}: "
            f"use --backbone={origin.backbone}, or other weights."
        )
    norm = _norm_for(weights, config)
    needed = {"resnet_stride": origin.resnet_stride, "preprocessing": origin.preprocessing}
    if config.train.init_checkpoint:
        if not origin.neck:
            raise ValueError(
                f"--init_checkpoint: {origin.source} holds a backbone only: give it as --backbone_weights."
            )
        needed = {**needed, "p6_from": origin.p6_from, "anchor_convention": origin.anchor.anchor_convention}
    return _choose_norm(_fill_in(config, needed, origin.source), norm), weights


def start(model: tf.keras.Model, weights: Weights | None, config: Config, *, num_images: int) -> None:
    """Gives the network its starting weights and says in the log what it starts from.

    Args:
      model: freshly initialised, made with the settings that `prepare` returned.
      weights: what `prepare` returned.
      config: the settings.
      num_images: of the training data.
    """
    if weights is None:
        log.info("the weights start from random numbers")
        frozen = ["--norm=frozen"] * (config.model.norm == "frozen")
        frozen += [f"--freeze_stages={config.model.freeze_stages}"] * (config.model.freeze_stages > 0)
        if frozen:
            log.warning(
                "%s: parts of the network keep their random numbers and never learn; give --backbone_weights or "
                "--init_checkpoint with it",
                " and ".join(frozen),
            )
        if num_images < _ENOUGH_FROM_SCRATCH:
            log.warning(
                "%d images are few to learn from scratch: pretrained weights give a far better detector; see "
                "docs/TRANSFER.md",
                num_images,
            )
        return
    parts = ("backbone/",) if config.train.backbone_weights else ("",)
    arrays = {name: array for name, array in weights.arrays.items() if name.startswith(parts)}
    taken, anew = load(model, Weights(weights.origin, arrays), config.labels, within=parts[0])
    log.info("%d tensors of the weights start from %s", taken, weights.origin.source)
    for line in anew:
        log.info("initialised anew: %s", line)


def load(
    model: tf.keras.Model, weights: Weights, labels: tuple[str, ...], *, within: str = ""
) -> tuple[int, list[str]]:
    """Assigns weights to the variables whose names and shapes they have.

    A class head of other classes keeps its weights for the classes that both know by name; the rest stays initialised.

    Args:
      model: the network.
      weights: of any network.
      labels: the classes of `model`.
      within: only variables whose names begin with this are told of.

    Returns:
      How many variables were assigned, and a line for each that was not, or not wholly.
    """
    taken, anew = 0, []
    for name, variable in pretrained.variables_by_name(model).items():
        array = weights.arrays.get(name)
        is_of_classes = name.startswith("class_head/output/") and not name.endswith("/depthwise_kernel")
        if is_of_classes and array is not None and weights.origin.labels != labels:
            array, line = _map_classes(array, variable.numpy(), weights.origin, labels)
            anew += [f"{name}, {line}"] if line else []
        elif array is None or array.shape != tuple(variable.shape):
            if name.startswith(within):
                reason = "not in the file" if array is None else f"{array.shape} there, {tuple(variable.shape)} here"
                anew.append(f"{name}, {reason}")
            continue
        if array is None:
            continue
        if name.endswith("/moving_variance"):  # so that the epsilon of the weights and ours normalise alike
            array = array + (weights.origin.batch_norm_epsilon - model.backbone.epsilon)
        variable.assign(array)
        taken += 1
    return taken, anew


def _map_classes(
    theirs: np.ndarray, ours: np.ndarray, origin: Origin, labels: tuple[str, ...]
) -> tuple[np.ndarray | None, str]:
    """A class head's outputs [..., anchors * k] with those of common classes taken over; what is left, in words."""
    common = _common_classes(labels, origin.labels)
    num_theirs, num_ours = len(origin.labels), len(labels)
    if not common:
        return None, "since it is of other classes"
    if theirs[..., ::num_theirs].shape != ours[..., ::num_ours].shape:
        return None, "since its anchors or its inputs are others"
    mine, their = (list(indexes) for indexes in zip(*common))
    mapped = ours.reshape(*ours.shape[:-1], -1, num_ours).copy()
    mapped[..., mine] = theirs.reshape(*theirs.shape[:-1], -1, num_theirs)[..., their]
    left = [label for i, label in enumerate(labels) if i not in mine]
    return mapped.reshape(ours.shape), f"for the classes {', '.join(left)}" if left else ""


def _common_classes(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """The positions of classes that both have, (in ours, in theirs).

    A class without its exact name takes one whose name differs in spelling alone, where no third class does as well.
    """
    exact = {label: index for index, label in enumerate(theirs) if label}
    keys, their_keys = (list(map(pretrained.same_class, labels)) for labels in (ours, theirs))
    counts, their_counts = collections.Counter(keys), collections.Counter(their_keys)
    common = []
    for index, (label, key) in enumerate(zip(ours, keys)):
        if label in exact:
            common.append((index, exact[label]))
        elif key and counts[key] == their_counts[key] == 1:
            common.append((index, their_keys.index(key)))
    return common


def _decided(config: Config) -> dict[str, str]:
    """The settings that weights may decide."""
    return {
        "resnet_stride": config.model.resnet_stride,
        "p6_from": config.model.p6_from,
        "preprocessing": config.input.preprocessing,
        "anchor_convention": config.input.anchor.anchor_convention,
    }


def _fill_in(config: Config, needed: dict[str, str], source: str) -> Config:
    """The config with "auto" replaced by what is needed.

    Raises:
      ValueError: it has a setting that was asked for and is not what is needed.
    """
    values = _decided(config)
    for name, value in needed.items():
        if value not in ("auto", values[name]):
            if values[name] != "auto":
                raise ValueError(f"{source} needs --{name}={value}; got {values[name]}. Leave the flag at auto.")
            values[name] = value
    anchor = dataclasses.replace(config.input.anchor, anchor_convention=values["anchor_convention"])
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, resnet_stride=values["resnet_stride"], p6_from=values["p6_from"]),
        input=dataclasses.replace(config.input, preprocessing=values["preprocessing"], anchor=anchor),
    )


def _norm_for(weights: Weights, config: Config) -> str:
    """The normalisation of a run that starts from weights, where it is to choose.

    Raises:
      ValueError: `--norm` asks for what the weights cannot be used with.
    """
    asked, has_statistics = config.model.norm, any(name.endswith("/moving_mean") for name in weights.arrays)
    if asked != "auto" and (asked == "group") == has_statistics:
        raise ValueError(f"{weights.origin.source} was trained with another normalisation than --norm={asked}.")
    if asked != "auto":
        return asked
    if not has_statistics:
        return "group"
    # The statistics of the weights are better than those of a small batch. But a batch norm that starts anew has none,
    # and a BiFPN has group norm where others are frozen, which would waste the batch norm that its weights bring.
    has_neck_statistics = any(re.fullmatch("neck/.*/moving_mean", name) for name in weights.arrays)
    is_bifpn = bool(config.train.init_checkpoint) and config.model.neck == "bifpn"
    if config.model.head_norm == "batch" or (is_bifpn and has_neck_statistics):
        return "auto"
    log.info("--norm=auto chooses frozen, since the weights bring their statistics")
    return "frozen"


def _choose_norm(config: Config, norm: str) -> Config:
    """The config with `--norm=auto` replaced."""
    if config.model.norm != "auto":
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, norm=norm))


def _read(config: Config) -> Weights | None:
    """The weights that the config names."""
    if config.train.backbone_weights == "imagenet":
        family = retinanet.BACKBONE_FAMILIES[retinanet.family_of(config.model.backbone)]
        return _from_file(family.imagenet_weights(config.model.backbone))
    if config.train.backbone_weights:
        return _from_file(config.train.backbone_weights)
    path = config.train.init_checkpoint.rstrip("/")
    if not path:
        return None
    if files.is_dir(path):
        return _from_run(path, None)
    if files.exists(f"{path.removesuffix('.index')}.index"):
        return _from_run(os.path.dirname(os.path.dirname(path)), path)
    return _from_file(path)


def _from_file(path: str) -> Weights:
    if not files.exists(path):
        raise FileNotFoundError(f"there is no {path}, which --backbone_weights or --init_checkpoint names.")
    own = pretrained.load(path) if path.endswith(".safetensors") else None
    return own or pretrained.translate(weight_files.read_tensors(path), path).weights


def _from_run(model_dir: str, checkpoint: str | None) -> Weights:
    run = inference.load_for_inference(model_dir, checkpoint)
    settings = {name: _DEFAULTS[name] if value == "auto" else value for name, value in _decided(run.config).items()}
    origin = Origin(
        source=run.path,
        backbone=run.config.model.backbone,
        preprocessing=settings["preprocessing"],
        batch_norm_epsilon=run.model.backbone.epsilon,
        resnet_stride=settings["resnet_stride"],
        neck=run.config.model.neck,
        p6_from=settings["p6_from"],
        anchor=dataclasses.replace(run.config.input.anchor, anchor_convention=settings["anchor_convention"]),
        labels=run.config.labels,
    )
    return Weights(origin, {name: v.numpy() for name, v in pretrained.variables_by_name(run.model).items()})
