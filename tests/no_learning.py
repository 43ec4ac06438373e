"""A run that does its steps and evaluations at once and learns nothing, for tests of its course and its files."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import small_network
import tensorflow as tf
import tiny

from input import shards
from model.types import Losses
from trainer import checkpoints, distribution, evaluate, loop, train
from trainer.config import Config
from trainer.matching import ImageDetections


class Clock:
    """Moved by the parts of a run: a step takes 10 s, the compilation of its loop 60 s, an evaluation 120 s."""

    def __init__(self) -> None:
        self.now, self.step_s = 1000.0, 10.0

    def __call__(self) -> float:
        return self.now


def install(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Takes the place of the network, the data, the compiled loop and the evaluation."""
    clock = Clock()

    def make_train_loop(strategy: Any, model: Any, optimizer: Any, *others: Any) -> Any:
        is_first = [True]

        def train_loop(iterator: Any, num_steps: tf.Tensor) -> loop.LoopResult:
            clock.now += clock.step_s * int(num_steps) + 60 * is_first[0]
            is_first[0] = False
            optimizer.iterations.assign_add(int(num_steps))
            optimizer._current_learning_rate.assign(optimizer._learning_rate(optimizer.iterations - 1))
            nothing = loop.LoopResult(*[tf.constant(0.0)] * len(loop.LoopResult._fields))
            none = tf.fill([2], tf.constant(-1, tf.int64))
            losses = Losses(*[tf.constant(1.0)] * 3)
            return nothing._replace(num_steps=num_steps, losses=losses, bad_records=none, damaged=none)

        return train_loop

    def make_evaluator(*arguments: Any, **options: Any) -> Any:
        def evaluator() -> dict[str, Any]:
            clock.now += 120
            sample = {"record": 0, "image_id": "image-0", "size": [48, 64], "objects": [], "detections": []}
            return {"coco_ap": 0.5, "loss": 1.0, "per_class": {}, "samples": [sample]}

        return evaluator

    def make_finder(model: Any, config: Config, paths: list[str], **options: Any) -> Any:
        truths = shards.read_annotations(paths)
        nothing = ImageDetections(np.zeros([0, 4], np.float32), np.zeros([0], np.float32), np.zeros([0], np.int32))
        losses = dict.fromkeys(Losses._fields, 1.0)
        return lambda: evaluate.Evaluated(list(range(len(truths))), truths, [nothing] * len(truths), losses)

    monkeypatch.setattr(checkpoints, "make_model", small_network.make_model)
    monkeypatch.setattr(distribution, "make_iterator", lambda *arguments, **options: None)
    monkeypatch.setattr(train, "make_train_loop", make_train_loop)
    monkeypatch.setattr(evaluate, "make_evaluator", make_evaluator)
    monkeypatch.setattr(evaluate, "make_finder", make_finder)
    return clock


def run(
    records: list[str], model_dir: str | pathlib.Path, config: Config = tiny.CONFIG, **options: Any
) -> train.RunResult:
    """Trains and evaluates on the same records."""
    return train.train_and_evaluate(config, train_paths=records, val_paths=records, model_dir=str(model_dir), **options)
