"""The two pairs of versions: `tf.keras` is Keras 2 in both, and each reads what the other writes."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from trainer import shapes

CHECKOUT = pathlib.Path(__file__).parent.parent
OTHER_PYTHON = os.environ.get("OTHER_PYTHON", "")
PYTHONS = (sys.executable, OTHER_PYTHON)
FLAGS = (
    *("--backbone=resnet18", "--neck_filters=16", "--head_convs=1", "--image_size=64x96", "--batch_size=4"),
    *("--optimizer=adamw", "--ema_decay=0.5", "--precision=mixed_float16", "--learning_rate=0.01", "--warmup_steps=0"),
    *("--distribution=one_device", "--steps_per_loop=2", "--score_threshold=0", "--lr_schedule=constant"),
)


def run(python: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [python, *arguments], cwd=CHECKOUT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{python} {arguments}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "first",
    ["from input import pipeline", "from model import losses", "from trainer import loop", "import tensorflow"],
)
def test_keras_is_keras_2_whatever_is_imported_first(first: str) -> None:
    code = f"{first}\nfrom model import retinanet\nimport tensorflow as tf\nprint(tf.keras.layers.Layer.__module__)"
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() in ("keras.src.engine.base_layer", "tf_keras.src.engine.base_layer"), done.stderr


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("voc")
    shapes.write_shapes(folder, num_images=20, image_size=(64, 96))
    return folder


@pytest.fixture(scope="module")
def records(voc: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """The folders that each pair's converter wrote."""
    folders = [tmp_path_factory.mktemp("records") for _ in PYTHONS]
    for python, folder in zip(PYTHONS, folders):
        for split in ("train", "val"):
            run(
                python,
                "prepare_tfrecords.py",
                f"--voc_dir={voc}",
                f"--image_set={split}",
                f"--output_dir={folder}",
                "--num_shards=2",
            )
    return folders


needs_other_pair = pytest.mark.skipif(
    not OTHER_PYTHON, reason="OTHER_PYTHON does not name an interpreter that has the other pair of versions"
)


@pytest.mark.slow
@needs_other_pair
def test_pairs_differ() -> None:
    code = "import importlib.metadata; print(importlib.metadata.version('tensorflow')[:4])"
    assert {run(python, "-c", code).strip() for python in PYTHONS} == {"2.15", "2.21"}


@pytest.mark.slow
@needs_other_pair
def test_both_pairs_write_the_same_records(records: list[pathlib.Path]) -> None:
    ours, theirs = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".html"}  # which name the folder
        for folder in records
    )
    assert {"labels.txt", "train.manifest.json", "train-00001-of-00002.tfrecord"} <= ours.keys()
    assert ours.keys() == theirs.keys()
    for name, content in ours.items():
        assert content == theirs[name], name


@pytest.mark.slow
@needs_other_pair
@pytest.mark.parametrize(("writer", "reader"), [PYTHONS, PYTHONS[::-1]], ids=["of_this_pair", "of_the_other"])
def test_checkpoints_and_exports_are_read_by_the_other_pair(
    writer: str, reader: str, voc: pathlib.Path, records: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """The reader also goes on with the training, which needs every variable of the optimizer and of the average."""
    train = ("-m", "trainer.task", f"--train_records={records[0]}/train-*", f"--model_dir={tmp_path}/run", *FLAGS)
    run(writer, *train, "--train_steps=4")
    exports = {python: tmp_path / f"export-{name}" for python, name in ((writer, "writer"), (reader, "reader"))}
    for python, export in exports.items():
        run(python, "-m", "trainer.export", f"--model_dir={tmp_path}/run", f"--output_dir={export}")

    def detections(python: str, export: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
        output = tmp_path / "predictions"
        images = f"--images={voc}/JPEGImages/*.jpg"
        run(
            python,
            "-m",
            "trainer.predict",
            f"--export_dir={export}",
            images,
            f"--output_dir={output}",
            "--score_threshold=0",
        )
        found = [item for image in json.loads((output / "detections.json").read_text()) for item in image["detections"]]
        assert len(found) > 20
        return np.array([item["score"] for item in found]), np.array([list(item["box"].values()) for item in found])

    expected = detections(writer, exports[writer])
    for python, export in ((reader, exports[writer]), (writer, exports[reader]), (reader, exports[reader])):
        for ours, theirs in zip(detections(python, export), expected):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    shutil.copytree(tmp_path / "run", tmp_path / "run of the writer")
    for python, folder in ((writer, "run of the writer"), (reader, "run")):
        run(python, *train, f"--model_dir={tmp_path}/{folder}", "--train_steps=6")
    expected_lines, lines = (
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("run of the writer", "run")
    )
    assert lines[-1]["step"] == 6
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected_lines], rel=1e-3)
