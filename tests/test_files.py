"""Local and remote paths; `ram://`, which TensorFlow keeps in the memory of this process, stands for a bucket."""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import voc_tree

from input import files, shards, tfrecord
from input.conversion import convert, report, staging
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.workers import Workers
from input.manifest import Manifest, read_manifest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path) -> Iterator[str]:
    """An empty folder, of either kind."""
    made = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    files.make_dirs(made)
    yield made
    files.remove_tree(made)


def write(path: str, data: bytes) -> None:
    with files.create(path) as file:
        file.write(data)


def test_both_kinds_of_paths_behave_alike(folder):
    assert files.is_remote(folder) == folder.startswith("ram://")
    path = os.path.join(folder, "a", "b.txt")
    files.make_dirs(os.path.dirname(path))
    files.make_dirs(os.path.dirname(path))  # it is there already
    assert not files.exists(path)
    write(path, b"one")
    write(path, b"twenty-two")
    assert files.read(path) == files.read_regular(path) == b"twenty-two"
    assert files.size(path) == 10
    assert files.names(os.path.dirname(path)) == ["b.txt"]
    assert files.names(folder) == ["a"]
    assert files.is_dir(os.path.dirname(path))
    assert not files.is_dir(path)
    assert files.glob(os.path.join(folder, "*", "*.txt")) == [path]
    assert files.glob(os.path.join(folder, "*.txt")) == []
    with files.open(path) as file:
        assert file.read(6) == b"twenty"
        file.seek(1, os.SEEK_CUR)
        assert (file.tell(), file.read(), file.read(1)) == (7, b"two", b"")
    moved = os.path.join(folder, "c.txt")
    write(moved, b"old")
    files.replace(path, moved)
    assert files.read(moved) == b"twenty-two"
    assert not files.exists(path)
    files.remove(moved)
    assert not files.exists(moved)
    files.remove_tree(os.path.join(folder, "a"))
    files.remove_tree(os.path.join(folder, "a"))
    assert files.names(folder) == []


def test_an_unfinished_file_does_not_appear(folder):
    path = os.path.join(folder, "x")
    write(path, b"old")

    def write_half():
        with files.create(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert files.read(path) == b"old"
    assert files.names(folder) == ["x"]


def test_errors_are_the_systems(folder):
    gone = os.path.join(folder, "gone")
    actions = files.read, files.read_regular, files.size, files.remove, files.names
    for action in (*actions, lambda path: files.replace(path, path + "2")):
        with pytest.raises(FileNotFoundError) as error:
            action(gone)
        assert error.value.filename == gone
        assert error.value.strerror == "No such file or directory"
    write(os.path.join(folder, "x"), b"12345")
    assert [size for size, _ in files.stats([gone, "", os.path.join(folder, "x")])] == [0, 0, 5]


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_only_regular_files_are_read_as_such(tmp_path, what):
    """A pipe that nobody writes to must not stop everything."""
    path = "/dev/zero" if what == "device" else str(tmp_path / what)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        os.mkdir(path)
    with pytest.raises(OSError, match=r"not a regular file|Is a directory") as error:
        files.read_regular(path)
    assert error.value.filename == path


def test_an_unknown_scheme_is_named():
    with pytest.raises(OSError, match="scheme 'nowhere' not implemented") as error:
        files.read("nowhere://bucket/x")
    assert error.value.errno == errno.EIO


def test_denied_access_is_a_permission_error(monkeypatch):
    def deny(path):
        raise tf.errors.PermissionDeniedError(None, None, "a page of HTML")

    monkeypatch.setattr(tf.io.gfile, "stat", deny)
    with pytest.raises(PermissionError, match="Permission denied: 'gs://bucket/x'"):
        files.size("gs://bucket/x")


def test_local_paths_do_without_tensorflow(tmp_path):
    code = """
import sys
from input import files, shards
from input.conversion import convert, report
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers
with Workers(1) as workers:
    convert.convert(ConvertConfig(output_dir=sys.argv[2], voc_dirs=(sys.argv[1],)), workers)
assert "tensorflow" not in sys.modules
"""
    tree = voc_tree.VocTree(tmp_path / "voc")
    tree.add_many(3)
    subprocess.run([sys.executable, "-c", code, tree.root, tmp_path / "out"], cwd=ROOT, check=True)


# The converter and its readers.


@pytest.fixture
def tree(tmp_path) -> voc_tree.VocTree:
    made = voc_tree.VocTree(tmp_path / "voc")
    made.add_many(12)
    made.image_set("train", *(f"img{index:03d}" for index in range(12)))
    return made


@pytest.fixture
def bucket(tmp_path, tree) -> Iterator[str]:
    """A copy of the tree."""
    root = f"ram://{tmp_path.name}-bucket"
    for path in filter(pathlib.Path.is_file, tree.root.rglob("*")):
        target = os.path.join(root, "voc", path.relative_to(tree.root))
        files.make_dirs(os.path.dirname(target))
        write(target, path.read_bytes())
    yield root
    files.remove_tree(root)


def run(voc_dir: str, output_dir: str, **settings: Any) -> Manifest:
    config = ConvertConfig(output_dir=output_dir, voc_dirs=(voc_dir,), image_set="train", num_shards=3, **settings)
    with Workers(1) as workers:
        (manifest,) = convert.convert(config, workers)
    return manifest


def contents(folder: str) -> dict[str, bytes]:
    return {name: files.read(os.path.join(folder, name)) for name in files.names(folder)}


def test_from_bucket_to_bucket(tree, bucket, tmp_path):
    """The same shards as from folder to folder, and readers find them."""
    local, remote = str(tmp_path / "out"), f"{bucket}/out"
    manifest, there = run(str(tree.root), local), run(f"{bucket}/voc", remote)
    assert there.shards == manifest.shards
    assert {name: data for name, data in contents(remote).items() if not name.endswith(".json")} == {
        name: data for name, data in contents(local).items() if not name.endswith(".json")
    }
    paths = shards.expand_glob(f"{remote}/train-*")
    assert paths == [f"{remote}/{shard.name}" for shard in manifest.shards]
    assert shards.read_labels(paths) == ("cat", "dog")
    assert read_manifest(f"{remote}/train.manifest.json") == there
    assert shards.count_records(paths) == [4, 4, 4]
    for truth, same in zip(
        shards.read_annotations(paths), shards.read_annotations(shards.expand_glob(f"{local}/*.tfrecord"))
    ):
        assert truth.image_id == same.image_id
        np.testing.assert_array_equal(truth.boxes, same.boxes)
    read = [record.numpy() for record in tf.data.TFRecordDataset(paths)]
    assert read == [record for path in paths for record in tfrecord.read_records(path)]
    assert [shards.check_shard(path) for path in paths] == [4, 4, 4]
    files.remove(f"{remote}/train.manifest.json")
    assert shards.count_records(paths) == [4, 4, 4]


def test_report_in_a_bucket(tree, bucket, tmp_path):
    texts = []
    for output in (str(tmp_path / "out"), f"{bucket}/out"):
        with Workers(1) as workers:
            text, path = report.write_report(output, run(str(tree.root), output).split, (96, 96), workers)
        assert path == os.path.join(output, "train.report.html")
        texts.append([part.replace(output, "OUT") for part in (text, files.read(path).decode())])  # the command has it
    assert texts[0] == texts[1]


def test_a_conversion_in_a_bucket_is_resumed(tree, bucket, monkeypatch):
    """Only the missing shards are made by the second run; other flags are refused."""
    out = f"{bucket}/out"
    made = []

    def fail_at_the_third(task, advance):
        made.append(os.path.basename(task.path).split("-")[1])
        if len(made) == 3:
            raise OSError(errno.EIO, "connection reset", "gs://bucket/x")
        return write_shard(task, advance)

    write_shard = staging.write_shard
    monkeypatch.setattr(staging, "write_shard", fail_at_the_third)
    with pytest.raises(ConversionError, match=r"gs://bucket/x: connection reset; .* the same command continues"):
        run(f"{bucket}/voc", out)
    assert files.names(out) == [".train.partial"]
    manifest = run(f"{bucket}/voc", out)
    assert made == ["00000", "00001", "00002", "00002"]
    assert sorted(files.names(out)) == [
        "label_map.pbtxt",
        "labels.txt",
        *(shard.name for shard in manifest.shards),
        "train.manifest.json",
    ]
    assert run(f"{bucket}/voc", out) == manifest
    assert made == ["00000", "00001", "00002", "00002"]
    with pytest.raises(ConversionError, match="--zero_based: false then, true now"):
        run(f"{bucket}/voc", out, zero_based=True)
    assert run(f"{bucket}/voc", out, zero_based=True, overwrite=True).settings["zero_based"]
    assert len(made) == 7


def test_missing_and_bad_files_of_a_bucket_are_named(bucket):
    files.remove(f"{bucket}/voc/JPEGImages/img003.jpg")
    write(f"{bucket}/voc/Annotations/img005.xml", b"")
    with pytest.raises(ConversionError) as error:
        run(f"{bucket}/voc", f"{bucket}/out")
    assert "img003.xml: missing_image" in str(error.value)
    assert "img005.xml: empty_annotation" in str(error.value)
    with pytest.raises(ConversionError, match=f"{bucket}/nowhere: there is no such folder"):
        run(f"{bucket}/nowhere", f"{bucket}/out")


def test_damage_in_a_bucket_is_found(tree, bucket):
    out = f"{bucket}/out"
    manifest = run(str(tree.root), out)
    path = f"{out}/{manifest.shards[1].name}"
    data = files.read(path)
    assert hashlib.sha256(data).hexdigest() == manifest.shards[1].sha256
    write(path, data[:-3])
    with pytest.raises(tfrecord.DamagedShardError, match=f"{path}: damaged at record 3: the file is cut off"):
        shards.check_shard(path)
    write(f"{out}/train.manifest.json", manifest.to_json().replace('"inputs"', '"inputs of"').encode())
    with pytest.raises(ConversionError, match=r"train\.manifest\.json is not a sound manifest \(inputs is missing\)"):
        run(str(tree.root), out)


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    files.write_text(str(path), "one")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(str(path), "two \ud800")
    assert path.read_text() == "one"
    assert [child.name for child in path.parent.iterdir()] == ["file.txt"]
