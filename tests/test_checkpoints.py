"""What is saved, kept and resumed, and what damage does."""

from __future__ import annotations

import json
import resource

import one_weight
import pytest
import tiny

from trainer import checkpoints, inference


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


def damage(path, kind):
    content = path.read_bytes()
    middle = len(content) // 2
    if kind == "deleted":
        path.unlink()
    elif kind == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: {"cut": middle, "one byte short": -1, "empty": 0}[kind]])


@pytest.mark.parametrize("file", ["ckpt-3.index", "ckpt-3.data-00000-of-00001"])
@pytest.mark.parametrize("kind", ["deleted", "flipped", "cut", "one byte short", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, file, kind):
    one_weight.save_run(tmp_path, steps=(1, 2, 3))
    damage(tmp_path / "checkpoints" / file, kind)
    saved, model = one_weight.make_checkpoints(tmp_path)
    assert saved.restore()
    assert one_weight.value_of(model) == 2
    assert "ckpt-3 is damaged, so the one before is taken" in caplog.text
    one_weight.set_value(model, 3)
    saved.save(3)  # takes the place of the damaged one
    one_weight.set_value(model, 7)
    assert saved.restore()
    assert one_weight.value_of(model) == 3


def test_damage_to_every_checkpoint_is_said_before_anything_is_written(tmp_path, caplog):
    one_weight.save_run(tmp_path, steps=(1, 2, 3))
    (tmp_path / "checkpoints" / "ckpt-2.index").unlink()
    damage(tmp_path / "checkpoints" / "ckpt-3.data-00000-of-00001", "flipped")
    saved, _ = one_weight.make_checkpoints(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged, as the log says; nothing was changed"):
        saved.restore()
    assert "ckpt-3 is damaged, so the one before is taken" in caplog.text
    assert "ckpt-2 is damaged, and there is none before it" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_lost_its_checkpoints_says_so(tmp_path, caplog):
    one_weight.save_run(tmp_path)
    saved, _ = one_weight.make_checkpoints(tmp_path)
    assert not saved.restore()
    assert "holds a run without a checkpoint: it begins again at step 0" in caplog.text


def test_a_damaged_list_of_checkpoints_is_not_needed(tmp_path):
    one_weight.save_run(tmp_path, steps=(1, 2))
    (tmp_path / "checkpoints" / "checkpoint").write_bytes(b"\xff")
    saved, model = one_weight.make_checkpoints(tmp_path)
    assert saved.restore()
    assert one_weight.value_of(model) == 2


def test_a_damaged_record_of_the_best_is_replaced(tmp_path, caplog):
    one_weight.save_run(tmp_path, steps=(1,), best=((1, 0.4),))
    (tmp_path / "best" / "metrics.json").write_text('{"step": 1, "coco')
    one_weight.save_run(tmp_path, best=((2, 0.3),))
    assert json.loads((tmp_path / "best" / "metrics.json").read_text()) == {"step": 2, "coco_ap": 0.3}
    assert "metrics.json is damaged: the next evaluation counts as the best so far" in caplog.text


@pytest.mark.parametrize("content", [b"", b'{"labels": [', b"\xff"])
def test_damaged_settings_are_named_in_one_sentence(tmp_path, content):
    checkpoints.save_config(tiny.CONFIG, str(tmp_path))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged \(.*\): put back a copy; or delete it"):
        checkpoints.read_config(str(tmp_path))


@pytest.fixture
def full_disk():
    """Fills the disk, or empties it: no file of this process may grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda is_full: resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]) if is_full else limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, caplog, full_disk):
    one_weight.save_run(tmp_path, steps=(1, 2))
    saved, model = one_weight.make_checkpoints(tmp_path)
    assert saved.restore()
    one_weight.set_value(model, 3)
    full_disk(True)
    done = saved.save(3), saved.save_if_best(3, {"coco_ap": 0.5}, "coco_ap")
    full_disk(False)
    assert done == (False, False)
    assert "ckpt-3 cannot be saved" in caplog.text
    assert checkpoints.list_steps(str(tmp_path)) == [2, 1]
    assert not list(tmp_path.rglob("*_temp*"))
    assert saved.saved_step == 2
    assert saved.save(3)  # tried again
    again, model = one_weight.make_checkpoints(tmp_path)
    assert again.restore()
    assert one_weight.value_of(model) == 3
