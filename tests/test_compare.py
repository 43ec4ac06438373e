"""Comparing two runs on the same records."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import painted
import pytest

from trainer import compare, evaluate, inference


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs: `good` finds every painted box, `blind` none."""
    painted.write_shard(tmp_path / "test-00000-of-00001.tfrecord", painted.PAINTINGS)

    def load_for_inference(model_dir):
        model = painted.PaintFinder()
        if model_dir == "gone":
            raise FileNotFoundError(model_dir)
        if model_dir == "blind":
            model.logit.assign(-20.0)
        return inference.TrainedRun(painted.CONFIG, model, 1, f"{model_dir}/checkpoints/ckpt-1")

    monkeypatch.setattr(inference, "load_for_inference", load_for_inference)
    return tmp_path


def test_a_better_run_is_told_from_a_worse_one(runs, monkeypatch, capsys):
    flags = SimpleNamespace(records=[f"{runs}/test-*"], resamples=50, batch_size=2, ious=["0.3"])
    monkeypatch.setattr(compare.absl_flags, "FLAGS", flags)
    compare.main(["good", "blind"])
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["voc12_ap50"]["first"] == 1
    assert result["voc12_ap50"]["second"] == 0
    assert result["voc12_ap50"]["difference"] == -1
    assert result["voc12_ap@0.3"]["real"]
    assert any(line.startswith("voc12_ap50 ") and line.endswith("A is better") for line in table)


def test_a_run_is_no_better_than_itself(runs):
    result = compare.compare_runs(["good", "good"], [f"{runs}/test-*"], resamples=20)
    assert result["coco_ap50"]["interval"] == [0, 0]
    assert "may be chance" in compare.format_table(result)
    assert "is better" not in compare.format_table(result)


def test_a_missing_run_is_named_before_the_other_is_evaluated(runs, monkeypatch):
    monkeypatch.setattr(evaluate, "make_finder", lambda *arguments, **options: pytest.fail)
    with pytest.raises(FileNotFoundError, match="gone"):
        compare.compare_runs(["good", "gone"], [f"{runs}/test-*"])


def test_the_command_needs_two_runs():
    command = [sys.executable, "-m", "trainer.compare", "RUN", "--records=none-*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("error: give RUN_A and RUN_B, and flags written --name=value.\n")
