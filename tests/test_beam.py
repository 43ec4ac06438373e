"""The converter on Apache Beam's local runners, in processes of their own: Beam brings warnings and threads along."""

import os
import pathlib
import subprocess
import sys

import pytest
import voc_tree

ROOT = pathlib.Path(__file__).parents[1]
needs_beam = pytest.mark.skipif(sys.version_info < (3, 10), reason="Apache Beam needs Python 3.10")

COMPARE = """
import pathlib, sys
from input.conversion import beam, convert, report
from input.conversion.workers import Workers
from input.conversion.config import ConversionError, ConvertConfig

root = pathlib.Path(sys.argv[1])

def on_beam(output, runner="FnApiRunner", options=(), **settings):
    with beam.BeamWorkers(runner, options, str(root / output)) as workers:
        return run(workers, output, **settings)

def here(output, **settings):
    with Workers(1) as workers:
        return run(workers, output, **settings)

def run(workers, output, **settings):
    config = ConvertConfig(output_dir=str(root / output), voc_dirs=(str(root / "voc"),), **settings)
    try:
        manifests = convert.convert(config, workers)
        texts = [report.write_report(config.output_dir, manifest.split, (96, 96), workers)[0] for manifest in manifests]
        return [text.replace(config.output_dir, "OUT") for text in texts]  # the command in it names the folder
    except ConversionError as error:
        return str(error)

def contents(output):
    folder = root / output
    return {path.name: path.read_bytes().replace(str(folder).encode(), b"OUT") for path in folder.iterdir()}

def same(output):
    return contents(output) == contents("here")
"""


@pytest.fixture
def tree(tmp_path) -> voc_tree.VocTree:
    made = voc_tree.VocTree(tmp_path / "voc")
    made.add_many(20)
    return made


def python(code: str, *arguments) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_beam
def test_the_same_files_as_without_beam(tree, tmp_path):
    """Shards, labels, manifests and reports, byte for byte, and nothing beside them."""
    code = """
expected = here("here", val_fraction=0.25)
assert len(contents("here")) == 8 + 5 + 2 + 2 * 2
assert on_beam("out", val_fraction=0.25) == expected
assert same("out")
"""
    python(COMPARE + code, tmp_path)


@needs_beam
def test_errors_are_the_same_as_without_beam(tree, tmp_path):
    """All are listed and nothing is published; once they are put right, only what they touched is made again."""
    code = """
xml = root / "voc" / "Annotations" / "img007.xml"
good = xml.read_bytes()
xml.write_bytes(b"")
(root / "voc" / "JPEGImages" / "img003.jpg").rename(root / "kept.jpg")
problems = here("problems")
assert "img003.xml: missing_image" in problems and "img007.xml: empty_annotation" in problems
assert on_beam("out") == problems
assert list((root / "out").iterdir()) == [root / "out" / ".all.partial"]

assert on_beam("skipped", on_error="skip") == here("here", on_error="skip")
assert same("skipped")

(root / "kept.jpg").rename(root / "voc" / "JPEGImages" / "img003.jpg")
xml.write_bytes(good)
before = {path.name: path.stat().st_mtime_ns for path in (root / "out" / ".all.partial").glob("*.shard")}
on_beam("out")
after = {path.stem + ".shard": path.stat().st_mtime_ns for path in (root / "out").glob("*.tfrecord")}
assert sum(before[name] == after[name] for name in before) == 6
for path in (root / "here").iterdir():
    path.unlink()
here("here")
assert same("out")

message = on_beam("else", runner="NoSuchRunner")
assert "the Beam pipeline failed: " in message and "NoSuchRunner" in message
"""
    python(COMPARE + code, tmp_path)


@needs_beam
def test_on_several_processes(tree, tmp_path):
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    code = """
settings = {"labels_file": str(root / "labels.txt"), "num_shards": 3}
with Workers(1) as workers:
    convert.convert(ConvertConfig(output_dir=str(root / "here"), voc_dirs=(str(root / "voc"),), **settings), workers)
options = ["--direct_running_mode=multi_processing --direct_num_workers=2"]
with beam.BeamWorkers("FnApiRunner", options, str(root / "out")) as workers:
    convert.convert(ConvertConfig(output_dir=str(root / "out"), voc_dirs=(str(root / "voc"),), **settings), workers)
assert same("out")
"""
    python(COMPARE + code, tmp_path)


@needs_beam
def test_command(tree, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "prepare_tfrecords.py", f"--voc_dir={tree.root}", f"--output_dir={tmp_path}/out"),
            *("--beam_runner=FnApiRunner", "--beam_options=--direct_num_workers=1 --job_name=x", "--num_shards=2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "all: 20 images (5 without objects), 30 boxes, 2 shards" in done.stdout
    shards = [f"all-{index:05d}-of-00002.tfrecord" for index in range(2)]
    assert sorted(os.listdir(tmp_path / "out")) == [
        *shards,
        "all.manifest.json",
        "all.report.html",
        "label_map.pbtxt",
        "labels.txt",
    ]


def test_without_beam_the_remedy_is_named(tmp_path):
    code = """
import sys
sys.modules["apache_beam"] = None
from input.conversion import beam, convert, report
from input.conversion.workers import Workers
from input.conversion.config import ConversionError, ConvertConfig
try:
    beam.BeamWorkers("DirectRunner", (), "out")
except ConversionError as error:
    print(error)
"""
    message = python(code)
    assert message.startswith("--beam_runner needs Apache Beam")
    assert "pip install -e '.[beam]'" in message
    assert message.count("\n") == 1
