"""The hooks in docs/WATCHING.md, run as they stand there, with stand-ins for the libraries that they report to."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
import types
from unittest import mock

import pytest

from trainer import events
from trainer.config import Config

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs/WATCHING.md"
START = {"model_dir": "runs/first", "config": dataclasses.asdict(Config())}
END = {"step": 10, "train_steps": 20, "metrics": {}, "stopped_by": None}


@pytest.fixture
def tell(monkeypatch):
    """Tells the hook of a library a run's events, and returns what it called there."""

    def with_library(name, error):
        library = mock.Mock()
        monkeypatch.setitem(sys.modules, name, library)
        (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if name in block]
        module = types.ModuleType(f"my_{name}")
        exec(code, module.__dict__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        told = events.Events(events.load_hooks([f"my_{name}:{name.capitalize()}"]))
        told.tell("on_start", **START)
        told.tell("on_log", step=5, loss=1.5)
        told.tell("on_evaluate", step=10, coco_ap=0.25, num_images=3, samples=[], per_class={})
        told.tell("on_save", step=10, path="runs/first/checkpoints/ckpt-10", is_best=True)
        told.tell("on_end", error=error, **END)
        return library

    return with_library


def test_weights_and_biases(tell, caplog):
    wandb = tell("wandb", error="no disk")
    assert wandb.method_calls == [
        mock.call.init(project="retinanet", id="runs-first", resume="allow", config=START["config"]),
        mock.call.log({"train/step": 5, "train/loss": 1.5}, step=5),
        mock.call.log({"eval/coco_ap": 0.25}, step=10),
        mock.call.finish(exit_code=1),
    ]
    assert not caplog.messages  # the errors of hooks


def test_mlflow(tell, caplog):
    mlflow = tell("mlflow", error=None)
    start, params, log, evaluate, end = mlflow.method_calls
    assert start == mock.call.start_run(run_name="runs/first")
    assert params.args[0]["train.optimizer.momentum"] == "0.9"
    assert log == mock.call.log_metrics({"loss": 1.5}, step=5)
    assert evaluate == mock.call.log_metrics({"eval_coco_ap": 0.25}, step=10)
    assert end == mock.call.end_run("FINISHED")
    assert not caplog.messages
