"""What is saved, kept and resumed, and which runs are not resumed."""

from __future__ import annotations

import dataclasses
import json

import one_weight
import pytest
import tiny

from trainer import checkpoints, inference
from trainer.config import OptimizerConfig


def test_a_run_resumes_from_its_latest_checkpoint_and_keeps_a_few(tmp_path):
    one_weight.save_run(tmp_path, steps=(1, 2, 3))
    saved, model = one_weight.make_checkpoints(tmp_path)
    assert saved.restore()
    assert one_weight.value_of(model) == 3
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.index")) == ["ckpt-2", "ckpt-3"]


def test_a_new_run_has_nothing_to_restore(tmp_path):
    saved, model = one_weight.make_checkpoints(tmp_path)
    assert not saved.restore()
    assert one_weight.value_of(model) == 7


def test_a_resumed_run_keeps_the_best_checkpoint_of_before(tmp_path):
    folder = one_weight.save_run(tmp_path, steps=(1, 2), best=((1, 0.4), (2, 0.3)))
    one_weight.save_run(tmp_path, best=((3, None), (4, 0.4)))
    assert inference.find_checkpoint(folder) == f"{folder}/best/ckpt-1"
    one_weight.save_run(tmp_path, best=((5, 0.5),))
    assert inference.find_checkpoint(folder) == f"{folder}/best/ckpt-5"
    assert json.loads((tmp_path / "best" / "metrics.json").read_text()) == {"step": 5, "coco_ap": 0.5}


def test_a_worker_that_is_not_the_chief_leaves_no_files(tmp_path):
    saved, _ = one_weight.make_checkpoints(tmp_path, is_chief=False)
    saved.save(1)
    saved.save_if_best(1, {"coco_ap": 1.0}, "coco_ap")
    assert list(tmp_path.iterdir()) == []


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


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    checkpoints.write_file(str(path), "one")
    with pytest.raises(UnicodeEncodeError):
        checkpoints.write_file(str(path), "two \ud800")
    assert path.read_text() == "one"
