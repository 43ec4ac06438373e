"""The demo's own functions; `make smoke` runs all its commands."""

import shutil

import pytest
import tensorflow as tf
import voc_tree

from input import shards
from trainer import demo

SPLITS = ("train", "valid", "test")


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (("train", "val", "trainval", "test"), ("train", "val", "test")),
        (("trainval", "test"), ("trainval", "test")),
        (("train", "test", "aeroplane_train"), ("train", "test")),
        (("train", "val"), ("train", "val")),
        (("trainval",), ()),
        ((), ()),
    ],
)
def test_splits_are_chosen_among_those_present(tmp_path, splits, chosen):
    assert demo.choose_splits(splits) == chosen
    expected = [[f"--image_set={split}"] for split in chosen] or [["--val_fraction=0.2"]]
    lists = [f"ImageSets/Main/{name}.txt" for name in splits]
    for place in make_data_set(tmp_path, "Annotations/a.xml", "JPEGImages/a.jpg", *lists):
        assert demo.conversion_flags(place) == expected


def make_data_set(tmp_path, *names):
    """Empty files in a folder, and the same as an archive that holds the folder."""
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    return str(tmp_path / "set"), shutil.make_archive(str(tmp_path / "set"), "tar", tmp_path, "set")


def test_folders_of_splits_are_a_split_each(tmp_path):
    for place in make_data_set(tmp_path, *(f"{split}/{split}.{kind}" for split in SPLITS for kind in ("xml", "jpg"))):
        assert demo.conversion_flags(place) == [[]]


def test_a_data_set_without_annotations_is_refused(tmp_path):
    for place in make_data_set(tmp_path, "train/images/a.jpg", "train/labels/a.txt", "data.yaml"):
        with pytest.raises(ValueError, match=r"holds an XML file; .* It holds data\.yaml: is --yolo_dir meant\?"):
            demo.conversion_flags(place)


@pytest.mark.parametrize(
    ("folders", "unlabelled", "splits"),
    [
        (("annots", "images"), "more", {"train", "val"}),
        (("annots", "images"), "test", {"train", "val"}),
        (SPLITS, "more", {"train", "val", "test"}),
    ],
)
def test_the_converter_finds_the_folders_of_a_data_set(tmp_path, folders, unlabelled, splits):
    """Folders with other names than those of Pascal VOC, or one for each split with XML beside the images."""
    (tmp_path / unlabelled).mkdir()
    for index in range(12):
        beside = [folders[index % 3]] * 2 if len(folders) == 3 else folders
        annotations, images = (tmp_path / folder for folder in beside)
        for folder in (annotations, images):
            folder.mkdir(exist_ok=True)
        (annotations / f"{index}.xml").write_text(voc_tree.annotation_xml(filename=f"{index}.jpg"))
        (images / f"{index}.jpg").write_bytes(voc_tree.encoded(voc_tree.picture(seed=index)))
    (conversion,) = demo.conversion_flags(str(tmp_path))
    demo.run("prepare_tfrecords.py", f"--voc_dir={tmp_path}", *conversion, f"--output_dir={tmp_path / 'out'}")
    assert shards.shards_by_split(str(tmp_path / "out")).keys() == splits


def test_a_data_set_without_a_split_to_hold_out_is_refused(tmp_path, monkeypatch):
    make_data_set(tmp_path, "train/a.xml", "train/a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", lambda *arguments: None)
    monkeypatch.setattr(demo.shards, "shards_by_split", lambda folder: {"train": []})
    with pytest.raises(ValueError, match="has the splits train: the demo needs train, and val or test"):
        demo.run_demo(demo.YOURS, "set")


def test_the_demo_stops_where_a_command_fails(capfd):
    with pytest.raises(SystemExit) as stopped:
        demo.run("-c", "import sys; sys.exit('no such shard')")
    assert stopped.value.code == 1
    out, err = capfd.readouterr()
    assert "$ python -c 'import sys; sys.exit" in out
    assert "no such shard" in err
    assert "the command above failed" in err


def test_pictures_are_copied_from_the_shards_unchanged(tmp_path):
    pictures = {f"{number:02d}.jpg": bytes([number]) * 9 for number in range(demo.NUM_PICTURES + 2)}
    paths = [str(tmp_path / f"test-{shard:05d}-of-00002.tfrecord") for shard in range(2)]
    for shard, path in enumerate(paths):
        with tf.io.TFRecordWriter(path) as writer:
            for name, encoded in list(pictures.items())[shard * 10 : shard * 10 + 10]:
                features = {
                    key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                    for key, value in (("image/filename", name.encode()), ("image/encoded", encoded))
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    demo.write_pictures(paths, tmp_path / "pictures")
    written = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert written == dict(list(pictures.items())[: demo.NUM_PICTURES])
