"""The demo's own functions; `make smoke` runs all its commands."""

import pytest
import tensorflow as tf

from trainer import demo


@pytest.mark.parametrize(
    ("lists", "chosen"),
    [
        (("train", "val", "trainval", "test"), ("train", "val", "test")),
        (("trainval", "test"), ("trainval", "test")),
        (("train", "test", "aeroplane_train"), ("train", "test")),
        (("train", "val"), ("train", "val")),
        (("trainval",), ()),
        ((), ()),
    ],
)
def test_image_sets_are_chosen_among_those_present(tmp_path, lists, chosen):
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name in lists:
        (folder / f"{name}.txt").write_text("000001\n")
    assert demo.choose_image_sets(str(tmp_path)) == chosen


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
    shards = [str(tmp_path / f"test-{shard:05d}-of-00002.tfrecord") for shard in range(2)]
    for shard, path in enumerate(shards):
        with tf.io.TFRecordWriter(path) as writer:
            for name, encoded in list(pictures.items())[shard * 10 : shard * 10 + 10]:
                features = {
                    key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                    for key, value in (("image/filename", name.encode()), ("image/encoded", encoded))
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    demo.write_pictures(shards, tmp_path / "pictures")
    written = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert written == dict(list(pictures.items())[: demo.NUM_PICTURES])
