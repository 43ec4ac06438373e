"""Settings of a training run, and all settings as one value. No TensorFlow import here."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from typing import Any

from input.config import InputConfig
from model.config import DetectConfig, LossConfig, ModelConfig

SCHEDULES = ("constant", "cosine", "step", "polynomial", "exponential", "one_cycle")
OPTIMIZERS = ("sgd", "adamw", "lamb")
PAPER_BATCH_SIZE = 16  # of the RetinaNet paper, for which the default learning rate was chosen
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
DISTRIBUTIONS = ("auto", "one_device", "mirrored", "multi_worker")
COMMUNICATIONS = ("auto", "nccl", "ring")
ON_NON_FINITE = ("stop", "rollback")


def _require(flag: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"--{flag}={value}: choose one of {', '.join(choices)}.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate; defaults of the RetinaNet paper (Lin et al. 2017, section 4.1)."""

    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4  # kernels only
    clip_norm: float = 10.0  # global norm of the gradients; 0: no clipping
    learning_rate: float = 0.01  # at batch 16
    scale_learning_rate: bool = False  # with the batch size, from PAPER_BATCH_SIZE
    backbone_rate: float = 1.0  # learning rate of the backbone, as a share of the others'
    lr_schedule: str = "cosine"
    lr_steps: tuple[float, ...] = (0.67, 0.89)  # step: shares of the run after which the rate falls tenfold
    lr_end: float = 0.0  # polynomial, cosine and one_cycle: the final rate as a share of the peak
    lr_power: float = 0.9  # polynomial: the exponent
    lr_decay: float = 0.01  # exponential: the final rate as a share of the peak
    warmup_steps: int = 500

    def __post_init__(self) -> None:
        _require("optimizer", self.optimizer, OPTIMIZERS)
        _require("lr_schedule", self.lr_schedule, SCHEDULES)
        if self.learning_rate <= 0:
            raise ValueError(f"--learning_rate must be positive; got {self.learning_rate}.")
        bounds = (0.0, *self.lr_steps, 1.0)
        if not self.lr_steps or any(first >= second for first, second in zip(bounds, bounds[1:])):
            raise ValueError(f"--lr_steps needs shares of the run between 0 and 1, in order; got {self.lr_steps}.")
        if not 0 <= self.lr_end <= 1:
            raise ValueError(f"--lr_end is a share of the peak rate, from 0 to 1; got {self.lr_end}.")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"--lr_decay is a share of the peak rate, above 0 and at most 1; got {self.lr_decay}.")
        if not 0 <= self.backbone_rate <= 1:
            raise ValueError(f"--backbone_rate is a share of the learning rate, from 0 to 1; got {self.backbone_rate}.")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("--nesterov changes SGD's momentum: use it with --optimizer=sgd and a --momentum above 0.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must be at least 0 and below 1; got {self.momentum}.")
        if self.lr_power <= 0:
            raise ValueError(f"--lr_power must be positive; got {self.lr_power}.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, on which devices, and when to write what."""

    epochs: float = 50.0  # used if train_steps is 0
    train_steps: int = 0
    max_hours: float = 0.0  # of the whole run, in place of epochs and train_steps; 0: no limit
    price_per_hour: float = 0.0  # of the machines, in any currency
    precision: str = "float32"
    tf32: bool = True  # on Ampere GPUs and later, in float32
    distribution: str = "auto"
    communication: str = "auto"  # of several workers
    num_gpus: int = -1  # -1: all
    logical_cpus: int = 1  # devices to split the CPU into, to try replicas without GPUs
    steps_per_loop: int = 20
    log_every: int = 0  # 0: steps_per_loop
    eval_every: int = 0  # steps; 0: ten times in a run
    checkpoint_every: int = 0  # steps; 0: with every evaluation
    keep_checkpoints: int = 3
    best_metric: str = "coco_ap"  # a key of the evaluation's result
    xla: bool = False
    compile_stages: bool = True  # on GPUs: augmentation with assignment, and the losses
    eager: bool = False
    accumulation_steps: int = 1  # passes through the network for one update, each with this part of the batch
    backbone_weights: str = ""  # a file, or imagenet for Keras's; where the backbone starts
    init_checkpoint: str = ""  # a run, a checkpoint of one, or an imported detector; where the whole network starts
    ema_decay: float = 0.0  # of the averaged weights; 0: none are kept
    patience: int = 0  # evaluations in a row without a better best_metric after which the run ends; 0: it does not
    on_non_finite: str = "stop"
    max_rollbacks: int = 3
    override_config: bool = False  # resume with other settings
    hooks: tuple[str, ...] = ()  # MODULE:CLASS of classes that are told what happens in the run
    profile_steps: str = ""  # A:B, the steps after A up to B
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        self.profiled_steps()
        if self.epochs <= 0:
            raise ValueError(f"--epochs must be positive; got {self.epochs}.")
        _require("precision", self.precision, PRECISIONS)
        _require("distribution", self.distribution, DISTRIBUTIONS)
        _require("communication", self.communication, COMMUNICATIONS)
        _require("on_non_finite", self.on_non_finite, ON_NON_FINITE)
        if self.backbone_weights and self.init_checkpoint:
            raise ValueError("--backbone_weights and --init_checkpoint: give one, since the latter has a backbone too.")
        if self.max_hours and self.distribution == "multi_worker":
            raise ValueError("--max_hours fits the run to one machine's clock: use --train_steps for several workers.")
        if self.steps_per_loop < 1:
            raise ValueError(f"--steps_per_loop must be at least 1; got {self.steps_per_loop}.")
        if self.accumulation_steps < 1:
            raise ValueError(f"--accumulation_steps must be at least 1; got {self.accumulation_steps}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay must be at least 0 and below 1; got {self.ema_decay}.")
        if self.logical_cpus < 1:
            raise ValueError(f"--logical_cpus must be at least 1; got {self.logical_cpus}.")

    def profiled_steps(self) -> tuple[int, ...]:
        """The two ends of `profile_steps`; () where it is empty."""
        if not self.profile_steps:
            return ()
        first, _, last = self.profile_steps.partition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise ValueError(f"--profile_steps={self.profile_steps}: write A:B, for the steps after A up to B.")
        return int(first), int(last)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run; `RUN/config.json` holds them."""

    labels: tuple[str, ...] = ()
    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    detect: DetectConfig = DetectConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        levels = self.input.anchor.levels
        if levels != range(3, 8):
            raise ValueError(f"the neck makes the levels P3-P7, not P{levels.start}-P{levels.stop - 1}.")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The config that `to_json` wrote. A setting that is missing takes its default; an unknown one is an error."""
        values = json.loads(text)
        if "sync_batch_norm" in values.get("model", {}):  # of runs before --norm
            values["model"]["norm"] = "sync" if values["model"].pop("sync_batch_norm") else "local"
        return _build(cls, values)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting of `dataclasses.asdict(config)` by its dotted name, such as train.optimizer.momentum."""
    flat = {}
    for name, value in settings.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _build(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass of the given kind from nested dicts; JSON's lists become tuples."""
    types = typing.get_type_hints(kind)
    unknown = set(values) - set(types)
    if unknown:
        raise ValueError(f"unknown {kind.__name__} settings {sorted(unknown)}: written by another version?")
    settings = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]):
            value = _build(types[name], value)
        elif isinstance(value, list):
            value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        settings[name] = value
    return kind(**settings)
