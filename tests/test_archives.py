"""Zip and tar files read in place: the same shards as from the unpacked folder, and a sentence for damaged ones."""

from __future__ import annotations

import os
import pathlib
import tarfile
import zipfile

import other_formats
import pytest
import voc_tree

from input import archives, files
from input.conversion import convert
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.workers import Workers


@pytest.fixture
def tree(tmp_path) -> voc_tree.VocTree:
    made = voc_tree.VocTree(tmp_path / "voc")
    made.add_many(6)
    made.image_set("train", "img001", "img002", "img005")
    return made


def pack(folder: pathlib.Path, path: pathlib.Path, below: str = "") -> str:
    members = [(item, f"{below}{item.relative_to(folder)}") for item in sorted(folder.rglob("*"))]
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for item, name in members:
                archive.write(item, name)
    else:
        with tarfile.open(path, "w") as archive:
            for item, name in members:
                archive.add(item, name, recursive=False)
    return str(path)


def shards_of(output: pathlib.Path, **settings) -> dict[str, bytes]:
    convert.convert(ConvertConfig(output_dir=str(output), **settings), Workers(1))
    return {path.name: path.read_bytes() for path in output.iterdir() if not path.name.endswith(".json")}


@pytest.mark.parametrize("name", ["data.zip", "DATA.ZIP", "data.tar"])
@pytest.mark.parametrize("below", ["", "voc/"])
def test_the_same_shards_as_from_the_folder(tree, tmp_path, name, below):
    packed = pack(tree.root, tmp_path / name, below)
    for settings in ({}, {"image_set": "train"}):
        expected = shards_of(tmp_path / "of_folder", voc_dirs=(str(tree.root),), **settings)
        assert shards_of(tmp_path / "of_archive", voc_dirs=(packed,), **settings) == expected


def test_folders_may_be_called_as_archives_are(tree, tmp_path):
    folder = tmp_path / "all.zip" / "old.tar"
    folder.mkdir(parents=True)
    packed = pack(tree.root, folder / "data.zip")
    expected = shards_of(tmp_path / "expected", voc_dirs=(str(tree.root),))
    assert shards_of(tmp_path / "of_archive", voc_dirs=(packed,)) == expected
    tree.root.rename(tmp_path / "voc.zip")
    for name in ("voc.zip", "voc.zip/"):
        assert shards_of(tmp_path / "of_folder", voc_dirs=(f"{tmp_path}/{name}",)) == expected


def test_other_formats_in_an_archive(tree, tmp_path):
    other_formats.write_coco(tree.root, tree.images / "all.json")
    packed = pack(tree.images, tmp_path / "coco.zip")
    expected = shards_of(tmp_path / "coco", coco_json=str(tree.images / "all.json"))
    assert shards_of(tmp_path / "packed", coco_json=f"{packed}/all.json", images_dir=packed) == expected
    (tree.images / "all.json").unlink()
    other_formats.write_yolo(tree.root, tmp_path / "yolo")
    packed = pack(tmp_path / "yolo", tmp_path / "yolo.tar", "yolo/")
    expected = shards_of(tmp_path / "of_yolo", yolo_dir=str(tmp_path / "yolo"))
    assert shards_of(tmp_path / "of_tar", yolo_dir=packed) == expected


def test_a_changed_file_is_noticed(tree, tmp_path):
    packed = pack(tree.root, tmp_path / "data.zip")
    shards_of(tmp_path / "out", voc_dirs=(packed,))
    xml = tree.annotations / "img001.xml"
    xml.write_text(xml.read_text().replace(">2<", ">3<"))
    pack(tree.root, tmp_path / "data.zip")
    with pytest.raises(ConversionError, match="1 changed: img001"):
        shards_of(tmp_path / "out", voc_dirs=(packed,))


def test_files_in_an_archive(tmp_path):
    """A name with backslashes or a dot at its start is usual; one that leads out is not listed."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("./one/a.txt", "one\\b.txt", "../out.txt", "/absolute.txt", "one/two/c.txt", "empty/"):
            archive.writestr(name, name)
    assert files.names(str(path)) == ["one"]
    assert sorted(files.names(f"{path}/one")) == ["a.txt", "b.txt", "two"]
    assert files.read(f"{path}/one/b.txt") == b"one\\b.txt"
    assert files.is_dir(f"{path}/one/two/")
    assert not files.is_dir(f"{path}/one/a.txt")
    assert files.exists(f"{path}/one/two/c.txt")
    assert not files.exists(f"{path}/nothing")
    assert files.stats([f"{path}/one/a.txt", f"{path}/nothing"])[0][0] == 11
    assert files.stats([f"{path}/nothing"]) == [(0, 0)]
    with pytest.raises(FileNotFoundError, match=r"a\.zip/nothing"):
        files.read_regular(f"{path}/nothing")
    (tmp_path / "folder.zip").mkdir()  # a folder that is called so is a folder
    assert files.names(str(tmp_path / "folder.zip")) == []


def test_hard_links_in_a_tar_file(tmp_path):
    """GNU tar stores a file of two names once."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    os.link(tmp_path / "set" / "a.txt", tmp_path / "set" / "b.txt")
    packed = pack(tmp_path / "set", tmp_path / "a.tar", "./")
    with tarfile.open(packed, "a") as archive:
        assert archive.getmember("./b.txt").islnk()
        broken = tarfile.TarInfo("c.txt")
        broken.type, broken.linkname = tarfile.LNKTYPE, "../a.txt"
        archive.addfile(broken)
    assert files.names(packed) == ["a.txt", "b.txt"]
    assert files.read(f"{packed}/b.txt") == b"0 0.5 0.5 0.2 0.2"


def test_damaged_archives_are_refused(tree, tmp_path):
    whole = pathlib.Path(pack(tree.root, tmp_path / "data.zip")).read_bytes()
    for content in (b"", b"PK", whole[:-200], b"not an archive"):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(ConversionError, match=r"bad\.zip: not a sound archive"):
            shards_of(tmp_path / "out", voc_dirs=(str(tmp_path / "bad.zip"),))
    damaged = bytearray(whole)
    at = whole.index(b"\xff\xd8") + 300  # within an image: found by zip's own checksum
    damaged[at : at + 4] = b"\0\1\2\3"
    (tmp_path / "bad.zip").write_bytes(damaged)
    with pytest.raises(ConversionError, match="unreadable: cannot be read from the archive"):
        shards_of(tmp_path / "out", voc_dirs=(str(tmp_path / "bad.zip"),))
    with pytest.raises(ConversionError, match=r"data\.tar\.gz is not read in place: unpack it"):
        ConvertConfig(output_dir="out", voc_dirs=(str(tmp_path / "data.tar.gz"),))


def test_a_file_that_claims_to_be_huge_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(10**6))
    with pytest.raises(OSError, match="claims to have 1,000,000 bytes"):
        files.read(f"{tmp_path}/a.zip/bomb.jpg")
