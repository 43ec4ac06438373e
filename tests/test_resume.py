"""Which settings may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import no_learning
import one_weight
import pytest
import tiny
import toy_shards

from input.config import AugmentConfig
from trainer import checkpoints, evaluate, guards, inference, resume, train
from trainer.config import Config, OptimizerConfig

INPUT, TRAIN = tiny.CONFIG.input, tiny.CONFIG.train


@pytest.fixture
def shards(tmp_path):
    paths = [tmp_path / f"train-{index}" for index in range(2)]
    for path in paths:
        path.write_bytes(b"12345")
    return [str(path) for path in paths]


@pytest.fixture
def model_dir(tmp_path, shards):
    """A run of `tiny.CONFIG` with a checkpoint."""
    folder = one_weight.save_run(tmp_path / "run", steps=(1,))
    resume.write_down(tiny.CONFIG, shards, folder, step=0, changes=[])
    return folder


def changed(**settings):
    return dataclasses.replace(tiny.CONFIG, **settings)


def change_input(**settings):
    return changed(input=dataclasses.replace(INPUT, **settings))


def change_optimizer(**settings):
    return tiny.config(train={"optimizer": dataclasses.replace(TRAIN.optimizer, **settings)})


MATCH = dataclasses.replace(INPUT.match, positive_iou=0.6)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (change_input(batch_size=4), "batch_size was 2, now 4"),
        (change_input(image_size=(64, 64)), r"image_size was \(32, 64\), now \(64, 64\)"),
        (change_input(seed=1), "seed was 0, now 1"),
        (change_input(augment=AugmentConfig()), "horizontal_flip was 0.5, now 0.0"),
        (change_input(match=MATCH), "positive_iou was 0.5, now 0.6"),
        (change_optimizer(learning_rate=0.02), "learning_rate was 0.01, now 0.02"),
        (change_optimizer(lr_schedule="step"), "lr_schedule was cosine, now step"),
        (tiny.config(train={"precision": "mixed_bfloat16"}), "precision was float32, now mixed_bfloat16"),
    ],
)
def test_what_changes_the_training_is_refused_unless_it_is_asked_for(model_dir, shards, config, named):
    with pytest.raises(ValueError, match=f"holds a run with other settings: .*{named}.*--override_config"):
        resume.require_same_run(config, shards, model_dir)
    asked = dataclasses.replace(config, train=dataclasses.replace(config.train, override_config=True))
    differences = resume.require_same_run(asked, shards, model_dir)
    resume.write_down(asked, shards, model_dir, step=5, changes=differences)
    assert checkpoints.read_config(model_dir) == asked
    line = pathlib.Path(model_dir, "overrides.jsonl").read_text()
    assert json.loads(line) == {"step": 5, "changes": differences}
    assert not resume.require_same_run(config, shards, model_dir)  # the flag is not needed again


def test_other_records_are_refused(tmp_path, model_dir, shards):
    more = tmp_path / "train-2"
    more.write_bytes(b"1")
    with pytest.raises(ValueError, match="the training records were 2 shards, now 3, of which 2 are the same"):
        resume.require_same_run(tiny.CONFIG, [*shards, str(more)], model_dir)
    (tmp_path / "train-1").write_bytes(b"123456")
    with pytest.raises(ValueError, match="the training records were 2 shards, now 2, of which 1 are the same"):
        resume.require_same_run(tiny.CONFIG, shards, model_dir)


def test_scores_on_other_validation_records_are_not_compared(tmp_path, monkeypatch):
    """A change must be asked for; the evaluation that then comes first is the best, whatever the last one scored."""
    no_learning.install(monkeypatch)
    records, run = toy_shards.write_shards(tmp_path / "records", 4, 2, split="val"), tmp_path / "run"

    def train_to(steps, val_paths, **settings):
        config = tiny.config(train={"train_steps": steps, "eval_every": 2, **settings})
        train.train_and_evaluate(config, train_paths=records, val_paths=val_paths, model_dir=str(run))
        return read(run / "best" / "metrics.json")

    best = train_to(2, records)
    (run / "best" / "metrics.json").write_text(json.dumps({**best, "coco_ap": 0.9}))
    assert train_to(4, ())["coco_ap"] == train_to(6, records)["coco_ap"] == 0.9
    train_to(6, ())
    with pytest.raises(ValueError, match="the validation records were 2 shards, now 1, of which 1 are the same"):
        train_to(8, records[:1])
    assert train_to(6, records[:1], override_config=True) == {**best, "step": 6}  # a run at its end, too
    assert train_to(8, records[:1]) == {**best, "step": 6}  # the network learns nothing
    (line,) = (run / "overrides.jsonl").read_text().splitlines()
    assert "validation records" in line
    resume.set_aside(str(run))
    assert not resume.has_other_validation(records, str(run))


def test_a_list_of_training_records_alone_is_of_an_earlier_version(tmp_path, model_dir, shards):
    path = pathlib.Path(model_dir, "records.json")
    path.write_text(json.dumps(read(path)["training records"]))
    assert not resume.require_same_run(tiny.CONFIG, shards, model_dir, val_paths=shards[:1])
    with pytest.raises(ValueError, match="the training records were 2 shards, now 1"):
        resume.require_same_run(tiny.CONFIG, shards[:1], model_dir)


def test_the_records_of_a_run_may_move(tmp_path, model_dir, shards):
    (tmp_path / "moved").mkdir()
    moved = [str(tmp_path / "moved" / path.rpartition("/")[2]) for path in shards]
    for path in moved:
        with open(path, "wb") as file:
            file.write(b"12345")
    assert not resume.require_same_run(tiny.CONFIG, moved, model_dir)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (changed(labels=("other",)), "labels"),
        (changed(model=dataclasses.replace(tiny.CONFIG.model, neck="panet")), "neck was fpn, now panet"),
        (change_input(anchor=dataclasses.replace(INPUT.anchor, scales=(2.0,))), "scales was"),
        (tiny.config(train={"optimizer": OptimizerConfig(optimizer="adamw")}), "optimizer was sgd, now adamw"),
        (tiny.config(train={"precision": "mixed_float16"}), "loss scaling was False, now True"),
        (tiny.config(train={"ema_decay": 0.9}), "averaged weights was False, now True"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_refused_in_any_case(model_dir, shards, config, named):
    asked = dataclasses.replace(config, train=dataclasses.replace(config.train, override_config=True))
    with pytest.raises(ValueError, match=f"whose checkpoints do not fit: .*{named}.*another --model_dir"):
        resume.require_same_run(asked, shards, model_dir)


@pytest.mark.parametrize(
    "train",
    [{"train_steps": 100}, {"num_gpus": 2}, {"distribution": "auto"}, {"log_every": 7}, {"keep_checkpoints": 9}],
)
def test_devices_logging_and_more_steps_may_change(model_dir, shards, train):
    assert not resume.require_same_run(tiny.config(train=train), shards, model_dir)


def test_a_run_without_a_checkpoint_may_change_in_everything(tmp_path):
    checkpoints.save_config(tiny.CONFIG, str(tmp_path))
    assert not resume.require_same_run(changed(labels=("other",)), [], str(tmp_path))


def test_every_name_in_the_table_is_a_setting():
    names = resume.flat_settings(Config())
    for listed in (*resume.MAY_CHANGE, *resume.MUST_STAY):
        assert any(resume._in(name, [listed]) for name in names), listed


def test_a_run_that_begins_again_takes_nothing_over(tmp_path, monkeypatch):
    """Its checkpoints were deleted, or it was killed before the first. The best one before can still be used."""
    no_learning.install(monkeypatch)
    records, run = toy_shards.write_shards(tmp_path / "records", 4, 1, split="val"), tmp_path / "run"
    no_learning.run(records, run)
    evaluate.evaluate_run(str(run), records, resamples=0)
    better = {**read(run / "best" / "metrics.json"), "coco_ap": 0.9}  # than all of the new run
    (run / "best" / "metrics.json").write_text(json.dumps(better))
    (run / "time.json").write_text(json.dumps({"seconds": 1e6, "step": 1e6}))
    guards.write_rollbacks(str(run), [{"at": 2, "to": 0}])
    shutil.rmtree(run / "checkpoints")

    other = tiny.config(train={"optimizer": dataclasses.replace(TRAIN.optimizer, learning_rate=0.02)})
    no_learning.run(records, run, other)
    assert read(run / "best" / "metrics.json")["coco_ap"] == 0.5
    assert inference.find_checkpoint(str(run)).startswith(f"{run}/best/")
    assert not (run / "rollbacks.json").exists()
    assert not (run / "eval").exists()
    assert read(run / "time.json")["seconds"] < 1000
    (log,) = (run / "logs").iterdir()
    assert f"evaluations of the run before are now in {run}/earlier-1" in log.read_text()
    first_rate = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["learning_rate"]
    assert first_rate > 0.01  # not halved
    assert checkpoints.read_config(f"{run}/earlier-1") == tiny.CONFIG
    assert read(run / "earlier-1" / "best" / "metrics.json") == better
    assert inference.load_for_inference(f"{run}/earlier-1").step == better["step"]
    assert (run / "earlier-1" / "eval" / "val.json").exists()


def read(path):
    return json.loads(path.read_text())
