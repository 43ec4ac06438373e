"""Names of shards, label lists, and the manifest: written, read back, and refused where it is damaged."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import pytest
import toy_shards
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from input import shards, tfrecord
from input.manifest import MANIFEST_VERSION, Finding, Findings, Manifest, ShardInfo, read_manifest

MANIFEST = Manifest(
    version=MANIFEST_VERSION,
    split="train",
    num_images=3,
    num_boxes=4,
    num_negatives=1,
    num_difficult=1,
    num_truncated=0,
    num_ignored=2,
    num_resized=1,
    source_pixels=5,
    source_bytes=6,
    labels=("cat", "dög"),
    boxes_per_class={"cat": 4, "dög": 0},
    images_per_class={"cat": 2, "dög": 0},
    settings={"seed": 0, "strict": False, "val_fraction": 0.0},
    shards=(ShardInfo(name="train-00000-of-00001.tfrecord", num_records=3, num_bytes=1234, sha256="ab"),),
    refused=Findings(counts={}, files=()),
    dropped=Findings(counts={}, files=()),
    repaired=Findings({"clipped_box": 1}, (Finding("a", "a.xml", "clipped_box", "xmax 9"),), {"clipped_box": 1}),
    noted=Findings(counts={}, files=()),
    inputs={"a": "01", "b": "02", "c": "03"},
    digests={"a": "0123456789abcdef", "b": "1", "c": "2"},
    looks={"a": "00", "b": "11"},
)
ADDED: dict[str, Any] = dict.fromkeys(
    ("num_ignored", "num_resized", "source_pixels", "source_bytes"), 0
)  # with version 3
ADDED["looks"] = {}
FIELDS = json.loads(MANIFEST.to_json())


def test_a_manifest_is_read_back():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_the_keys_of_the_file():
    assert FIELDS["labels"] == ["cat", "dög"]
    assert FIELDS["shards"] == [
        {"name": "train-00000-of-00001.tfrecord", "num_records": 3, "num_bytes": 1234, "sha256": "ab"}
    ]
    finding = {"image_id": "a", "file": "a.xml", "reason": "clipped_box", "detail": "xmax 9"}
    assert FIELDS["repaired"] == {
        **{key: {"clipped_box": 1} for key in ("counts", "num_images")},
        "files": [finding],
    }


def test_a_manifest_of_version_1_is_read():
    """What it calls mended is repaired here."""
    old = {key: value for key, value in FIELDS.items() if key not in ("digests", "dropped", *ADDED)}
    fields = {("mended" if key == "repaired" else key): value for key, value in old.items()}
    read = Manifest.from_json(json.dumps({**fields, "version": 1}))
    assert read == dataclasses.replace(MANIFEST, version=1, digests={}, **ADDED)


def test_a_manifest_of_version_2_is_read():
    fields = {key: value for key, value in FIELDS.items() if key not in ADDED}
    read = Manifest.from_json(json.dumps({**fields, "version": 2}))
    assert read == dataclasses.replace(MANIFEST, version=2, **ADDED)


@pytest.mark.parametrize("key", FIELDS)
def test_a_missing_or_wrong_field_is_named(key, tmp_path):
    path = tmp_path / "train.manifest.json"
    for damaged in ({name: FIELDS[name] for name in FIELDS.keys() - {key}}, {**FIELDS, key: None}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(
            ValueError, match=r"train\.manifest\.json is not a sound manifest \((.*)\): delete it"
        ) as error:
            read_manifest(str(path))
        assert key in str(error.value) or "NoneType" in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"shards": [{"name": "x"}]},
        {"shards": [{**FIELDS["shards"][0], "num_records": "3"}]},
        {"shards": [{**FIELDS["shards"][0], "colour": "red"}]},
        {"repaired": {}},
        {"repaired": {"counts": {}, "files": [{"image_id": "a"}]}},
        {"surprise": 1},
    ],
)
def test_damage_further_in_is_refused(damage):
    with pytest.raises(ValueError, match=r"missing|argument|type"):
        Manifest.from_json(json.dumps({**FIELDS, **damage}))


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '"text"', "{", b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        Manifest.from_json(text)


def test_findings_by_kind():
    assert MANIFEST.findings("repaired") is MANIFEST.repaired
    assert MANIFEST.findings("refused").counts == {}


def test_a_shard_by_name():
    assert MANIFEST.shard("train-00000-of-00001.tfrecord") is MANIFEST.shards[0]
    assert MANIFEST.shard("other.tfrecord") is None


# Whole sets of shards.


@pytest.fixture
def split(tmp_path) -> list[str]:
    """The paths of three shards with a manifest, each of two records."""
    infos = []
    for index in range(3):
        name = shards.shard_name("train", index, 3)
        data = b"".join(tfrecord.frame_record(bytes([index, number])) for number in range(2))
        (tmp_path / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        infos.append(ShardInfo(name=name, num_records=2, num_bytes=len(data), sha256=digest))
    manifest = dataclasses.replace(MANIFEST, num_images=6, shards=tuple(infos))
    (tmp_path / "train.manifest.json").write_text(manifest.to_json())
    return [str(tmp_path / info.name) for info in infos]


def test_objects_are_counted_for_a_class_whose_name_was_corrected(split):
    counts = shards.count_objects(split, ["a cat", "a dog", "added"])
    assert counts == {"a cat": 4, "a dog": 0}


def test_a_whole_set_is_accepted_and_so_is_a_part_of_it(split):
    shards.require_whole_sets(split)
    shards.require_whole_sets(split[:1])


def test_a_missing_shard_is_named(split):
    """Also where the pattern matches only the others."""
    os.unlink(split[1])
    (problem,) = shards.find_wrong_sets([split[0], split[2]]).values()
    assert problem.startswith(f"{split[1]}: it is missing, but the manifest names it")
    with pytest.raises(tfrecord.DamagedShardError, match="missing"):
        shards.require_whole_sets(split[:1])


def test_a_shard_of_another_conversion_is_named(split, tmp_path):
    stranger = str(tmp_path / "train-00000-of-00016.tfrecord")
    pathlib.Path(stranger).write_bytes(tfrecord.frame_record(b"x"))
    (problem,) = shards.find_wrong_sets([*split, stranger]).values()
    assert problem.startswith(f"{stranger}: train.manifest.json does not name it")


def test_a_shard_cut_between_two_records_is_named(split):
    """Its records are sound, so that nothing but the size tells."""
    os.truncate(split[2], os.path.getsize(split[2]) // 2)
    (problem,) = shards.find_wrong_sets(split).values()
    assert problem.startswith(f"{split[2]}: it has 18 bytes, but 36 were written")


def test_an_empty_file_is_not_sound_without_a_manifest(tmp_path):
    path = tmp_path / "own-00000-of-00001.tfrecord"
    path.write_bytes(b"")
    (problem,) = shards.find_wrong_sets([str(path)]).values()
    assert problem.startswith(f"{path}: it is empty")


def test_checking_what_is_no_shard_never_advises_to_delete_it(split, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\n")
    for name in ("labels.txt", "train.manifest.json"):
        with pytest.raises(tfrecord.DamagedShardError, match="is no shard; give a pattern") as error:
            shards.check_shard(str(tmp_path / name))
        assert "delete" not in str(error.value)


def test_a_folder_stands_for_its_shards(split, tmp_path):
    assert shards.expand_glob(str(tmp_path)) == split
    (tmp_path / "val-00000-of-00001.tfrecord").write_bytes(b"")
    assert shards.expand_glob(str(tmp_path), split="train") == split
    with pytest.raises(ValueError, match=r"holds shards of train, val: choose one with a pattern such as '.*/train-\*"):
        shards.expand_glob(str(tmp_path))


def test_records_are_named_by_their_index_over_several_shards(tmp_path):
    paths = toy_shards.write_shards(tmp_path)  # images 0 3 6 9, 1 4 7, 2 5 8
    assert list(map(str, shards.name_records(paths, [9, 0, 4, 4]))) == [
        f"image-0 (record 0 of {paths[0]})",
        f"image-1 (record 0 of {paths[1]})",
        f"image-8 (record 2 of {paths[2]})",
    ]


def test_counting_trusts_the_manifest_only_for_the_same_size(tmp_path):
    path = tmp_path / "train-00000-of-00001.tfrecord"
    path.write_bytes(tfrecord.frame_record(b"one") + tfrecord.frame_record(b"two"))
    assert shards.count_records([str(path)]) == [2]
    for num_bytes, expected in ((path.stat().st_size, 77), (path.stat().st_size - 1, 2)):
        info = ShardInfo(name=path.name, num_records=77, num_bytes=num_bytes, sha256="")
        text = dataclasses.replace(MANIFEST, shards=(info,)).to_json()
        (tmp_path / "train.manifest.json").write_text(text, encoding="utf-8")
        assert shards.count_records([str(path)] * 2) == [expected] * 2


def test_names():
    assert shards.shard_name("train", 3, 16) == "train-00003-of-00016.tfrecord"
    assert shards.split_name("/a-b/train-00003-of-00016.tfrecord") == "train"
    assert shards.split_name("my-set-2-00000-of-00001.tfrecord") == "my-set-2"
    assert shards.split_name("x/coco_val.tfrecord") == "coco_val"


def test_expand_glob(tmp_path):
    for name in ("b-1", "a-2", "a-1"):
        (tmp_path / name).touch()
    assert shards.expand_glob(f"{tmp_path}/b-*, {tmp_path}/a-*") == [str(tmp_path / n) for n in ("a-1", "a-2", "b-1")]
    assert shards.expand_glob([f"{tmp_path}/a-*", f"{tmp_path}/a-1"]) == [str(tmp_path / n) for n in ("a-1", "a-2")]
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*/c-\*'"):
        shards.expand_glob(f"{tmp_path}/a-*,{tmp_path}/c-*")
    with pytest.raises(FileNotFoundError, match="no file pattern"):
        shards.expand_glob("")


def test_read_labels(tmp_path):
    for name, content in (("one", "cat\n dog \n\n"), ("same", "\ufeffcat\r\ndog"), ("other", "dog\ncat\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.txt").write_text(content, encoding="utf-8")
    one, same, other, none = (str(tmp_path / name / "x.tfrecord") for name in ("one", "same", "other", "none"))
    assert shards.read_labels([one]) == ("cat", "dog")
    assert shards.read_labels([one, same]) == ("cat", "dog")
    with pytest.raises(ValueError, match="label lists differ"):
        shards.read_labels([one, other])
    with pytest.raises(FileNotFoundError, match="belongs beside the shards"):
        shards.read_labels([none])
    with pytest.raises(FileNotFoundError, match="no shards were given"):
        shards.read_labels([])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "names no class"), (b"cat\ndog\ncat\n", "'cat' twice"), (b"caf\xe9", "not UTF-8")],
)
def test_bad_labels(tmp_path, content, message):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        shards.parse_labels(str(path))


# `string_int_label_map.proto` of the TF Object Detection API, as far as a label map needs it.
LABEL_MAP_SCHEMA = """
name: "string_int_label_map.proto"
package: "object_detection.protos"
syntax: "proto2"
message_type {
  name: "StringIntLabelMapItem"
  field { name: "name" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "id" number: 2 label: LABEL_OPTIONAL type: TYPE_INT32 }
}
message_type {
  name: "StringIntLabelMap"
  field { name: "item" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "StringIntLabelMapItem" }
}
"""


def test_the_label_map_is_read_back():
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(LABEL_MAP_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("object_detection.protos.StringIntLabelMap"))
    labels = ("cat", "it's a dog", 'a "quoted" one', "back\\slash", "\\n", "猫 №1", "{}", "#")
    read = text_format.Parse(shards.label_map(labels), kind())
    assert [(item.id, item.name) for item in read.item] == [*enumerate(labels, 1)]
