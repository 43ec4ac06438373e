"""One trainer has a run's folder to itself, on a disk and in a bucket."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from input import files
from trainer import lock


def test_a_second_trainer_is_refused_until_the_first_has_ended(tmp_path):
    script = """import sys
from trainer import lock
with lock.sole_trainer(sys.argv[1]):
    print("in", flush=True)
    input()"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "in\n"
        message = rf"another run trains in .* \(process {first.pid} on .*since"
        with pytest.raises(ValueError, match=message), lock.sole_trainer(str(tmp_path)):
            pass
        first.kill()
    with lock.sole_trainer(str(tmp_path)) as require_alone:
        require_alone()
    with lock.sole_trainer(str(tmp_path)):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Iterator[str]:
    """A folder of TensorFlow's memory, where a trainer gives a sign of life every few milliseconds."""
    monkeypatch.setattr(lock, "_BEAT_S", 0.02)
    folder = f"ram://{tmp_path.name}"
    yield folder
    files.remove_tree(folder)


def test_in_a_bucket_a_second_trainer_is_refused_while_the_first_gives_signs_of_life(bucket, monkeypatch):
    with lock.sole_trainer(bucket) as require_alone:
        for _ in range(2):
            with (
                pytest.raises(ValueError, match=rf"another run trains in {bucket} \(process"),
                lock.sole_trainer(bucket),
            ):
                pass
        require_alone()
    assert files.names(bucket) == []
    with lock.sole_trainer(bucket):
        pass


def test_in_a_bucket_the_file_of_a_dead_trainer_is_taken_over(bucket):
    files.write_text(f"{bucket}/trainer.lock", "process 1 on elsewhere, since yesterday\nkey\n7\n")
    with lock.sole_trainer(bucket) as require_alone:
        assert b"elsewhere" not in files.read(f"{bucket}/trainer.lock")
        require_alone()


def test_of_two_trainers_that_start_at_once_in_a_bucket_one_gives_way(bucket, monkeypatch):
    """Neither has found a file, since each wrote its own a moment later."""
    monkeypatch.setattr(lock, "_BEAT_S", 1000.0)
    path = f"{bucket}/trainer.lock"
    first = lock._SignsOfLife(path, "the first")
    files.remove(path)
    with contextlib.closing(lock._SignsOfLife(path, "the second")) as second:
        for each in (first, second, first):
            each.beat()
        with pytest.raises(ValueError, match=rf"trains in {bucket} \(the second\)"):
            first.require_own()
        first.close()
        second.beat()
        second.require_own()
    assert files.names(bucket) == []
