"""Which checkpoint is used, and what is said when there is none."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
import tiny

from trainer import checkpoints
from trainer.config import OptimizerConfig
from trainer.optimizers import make_optimizer


@pytest.fixture
def make_parts(monkeypatch):
    """A model of one number instead of a network."""

    def make(config=None):
        model = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False)])
        model.build([None, 1])
        return model

    monkeypatch.setattr(checkpoints, "make_model", make)

    def parts(value=0.0):
        model, optimizer = make(), make_optimizer(OptimizerConfig(), train_steps=1, loss_scaling=False)
        optimizer.build(model.trainable_variables)
        model.set_weights([np.full([1, 1], value)])
        return model, optimizer

    return parts


def value_of(model):
    return float(model.get_weights()[0][0, 0])


def saved_run(folder, make_parts, steps=(), best=()):
    """A run whose model's only weight is the step it was saved at, plus a half in best/."""
    checkpoints.save_config(tiny.CONFIG, str(folder))
    model, optimizer = make_parts()
    saved = checkpoints.Checkpoints(str(folder), model, optimizer, keep=2)
    for step in steps:
        model.set_weights([np.full([1, 1], step)])
        saved.save(step)
    for step, metric in best:
        model.set_weights([np.full([1, 1], step + 0.5)])
        saved.save_if_best(step, {"coco_ap": metric}, "coco_ap")
    return str(folder)


def test_a_run_resumes_from_its_latest_and_keeps_a_few(tmp_path, make_parts):
    folder = saved_run(tmp_path, make_parts, steps=(1, 2, 3))
    model, optimizer = make_parts()
    assert checkpoints.Checkpoints(folder, model, optimizer, keep=2).restore()
    assert value_of(model) == 3
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.index")) == ["ckpt-2", "ckpt-3"]


def test_a_new_run_has_nothing_to_restore(tmp_path, make_parts):
    model, optimizer = make_parts(7.0)
    assert not checkpoints.Checkpoints(str(tmp_path), model, optimizer, keep=1).restore()
    assert value_of(model) == 7


def test_the_best_is_kept_over_a_resume(tmp_path, make_parts):
    folder = saved_run(tmp_path, make_parts, steps=(1, 2), best=((1, 0.4), (2, 0.3)))
    saved_run(tmp_path, make_parts, best=((3, None), (4, 0.4)))
    config, model, step, path = checkpoints.load_for_inference(folder)
    assert (config, value_of(model), step) == (tiny.CONFIG, 1.5, 1)
    assert path.endswith("best/ckpt-1")
    saved_run(tmp_path, make_parts, best=((5, 0.5),))
    assert checkpoints.load_for_inference(folder)[2] == 5
    assert json.loads((tmp_path / "best" / "metrics.json").read_text()) == {"step": 5, "coco_ap": 0.5}


def test_without_a_best_the_latest_is_used_unless_told(tmp_path, make_parts):
    folder = saved_run(tmp_path, make_parts, steps=(1, 2))
    assert checkpoints.load_for_inference(folder)[2] == 2
    for name in ("ckpt-1", "ckpt-1.index"):
        _, model, step, _ = checkpoints.load_for_inference(folder, str(tmp_path / "checkpoints" / name))
        assert (value_of(model), step) == (1, 1)
    assert checkpoints.load_for_inference(folder, str(tmp_path / "checkpoints"))[2] == 2


def test_what_is_missing_is_named(tmp_path, make_parts):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist: --model_dir must name"):
        checkpoints.load_for_inference(str(tmp_path))
    folder = saved_run(tmp_path, make_parts)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        checkpoints.load_for_inference(folder)
    with pytest.raises(FileNotFoundError, match=r"ckpt-9: there is no .*ckpt-9\.index"):
        checkpoints.load_for_inference(folder, str(tmp_path / "ckpt-9"))


def test_a_checkpoint_of_another_network_is_refused(tmp_path, make_parts):
    folder = saved_run(tmp_path, make_parts)
    other = tf.keras.Sequential([tf.keras.layers.Dense(3)])
    other.build([None, 5])
    path = tf.train.Checkpoint(model=other).save(str(tmp_path / "other" / "ckpt"))
    with pytest.raises(ValueError, match=r"ckpt-1 does not fit the network of .*config\.json"):
        checkpoints.load_for_inference(folder, path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": ("other",)}, "label list"),
        ({"model": dataclasses.replace(tiny.CONFIG.model, neck="panet")}, "network"),
        ({"input": dataclasses.replace(tiny.CONFIG.input, anchor=dataclasses.replace(
            tiny.CONFIG.input.anchor, scales=(2.0,)))}, "anchor settings"),
        ({"train": dataclasses.replace(tiny.CONFIG.train, optimizer=OptimizerConfig(optimizer="adamw"))}, "optimizer"),
        ({"train": dataclasses.replace(tiny.CONFIG.train, precision="mixed_float16")}, "loss scaling"),
    ],
)  # fmt: skip
def test_a_run_with_another_network_is_not_resumed(tmp_path, change, named):
    checkpoints.save_config(tiny.CONFIG, str(tmp_path))
    with pytest.raises(ValueError, match=f"holds a run with another {named}.*another --model_dir"):
        checkpoints.require_same_run(dataclasses.replace(tiny.CONFIG, **change), str(tmp_path))


def test_a_longer_run_may_resume_and_a_new_one_start(tmp_path):
    checkpoints.require_same_run(tiny.CONFIG, str(tmp_path))
    checkpoints.save_config(tiny.CONFIG, str(tmp_path))
    checkpoints.require_same_run(tiny.config(train={"train_steps": 100}), str(tmp_path))


def test_another_worker_leaves_no_files(tmp_path, make_parts):
    model, optimizer = make_parts(1.0)
    saved = checkpoints.Checkpoints(str(tmp_path), model, optimizer, keep=2, is_chief=False)
    saved.save(1)
    saved.save_if_best(1, {"coco_ap": 1.0}, "coco_ap")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    checkpoints.write_file(str(path), "one")
    with pytest.raises(UnicodeEncodeError):
        checkpoints.write_file(str(path), "two \ud800")
    assert path.read_text() == "one"


def test_the_anchors_fit_the_networks_answers():
    config = tiny.CONFIG
    model = checkpoints.make_model(config)
    predictions = model(np.zeros((1, *config.input.image_size, 3), np.float32))
    assert predictions.box_deltas.shape[1:] == checkpoints.make_anchors(config).shape
    assert predictions.class_logits.shape[2] == len(config.labels)
