"""For any COCO, YOLO and archive files the converter gives records or refuses them by name: no traceback and no hang.

Each test tries 400 generated cases, or 600, so that COCO, YOLO's text files, its data.yaml and archives have at least
1,000 each; FUZZ_CASES as in test_fuzz_converter.py.
"""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
import typing
import warnings
import zipfile

import pytest
from hypothesis import strategies as st
from test_fuzz_converter import (
    CASES,
    HEIGHT,
    JPEG,
    LABELS,
    ODD_NUMBERS,
    WIDTH,
    Spots,
    as_json,
    check_no_object_vanishes,
    check_record,
    damaged,
    fuzz,
    name_of,
    no_hang,
    read_annotation,
    texts,
)
from voc_tree import annotation_xml

from input import archives
from input.conversion import findings, listing
from input.conversion.config import ConversionError, ConvertConfig, ReadOptions
from input.conversion.example import Example
from input.conversion.source import Listing
from input.conversion.workers import Workers

MORE_CASES = CASES * 3 // 2
DROPPING = {"drop_unknown_classes": True, "drop_invalid_objects": True}


class Folder:
    """A data set of one image, b.jpg, in a format of which a test writes the rest."""

    def __init__(self, folder: pathlib.Path, file_name: str, **settings: typing.Any):
        (folder / "images").mkdir(parents=True)
        (folder / "labels").mkdir()
        (folder / "images" / "b.jpg").write_bytes(JPEG)
        (folder / "data.yaml").write_text(f"names: {json.dumps(LABELS, ensure_ascii=False)}", encoding="utf-8")
        self.path = folder / file_name
        self.config = ConvertConfig(output_dir="", **settings)

    def list_inputs(self) -> list[Listing] | str:
        """The listing of each split, or a word for why there is none."""
        try:
            with no_hang():
                return [*listing.list_inputs(self.config, Workers(1)).values()]
        except ConversionError as error:
            as_json(str(error))
        except OSError as error:  # the commands show it as it is
            if "not a sound archive" not in str(error):
                raise
        return "not listed"

    def read(self, **settings: typing.Any) -> list[Example | str]:
        """For each image its record, or why there is none; after every check that holds for any input."""
        listings = self.list_inputs()
        if isinstance(listings, str):
            return [listings]
        return [outcome for listed in listings for outcome in self.read_split(listed, **settings)]

    def read_split(self, listed: Listing, **settings: typing.Any) -> typing.Iterator[Example | str]:
        for finding in listed.findings:
            assert any(finding.reason in reasons for reasons in findings.KINDS.values())
            as_json("".join(finding))
        declared = listed.classes if self.config.format == "yolo" else ()
        options = ReadOptions(
            labels=LABELS,
            format=self.config.format,
            declared=declared,
            box_first=listed.box_first,
            max_pixels=200_000,
            **settings,
        )
        for item in listed.inputs:
            as_json(item.image_id)
            outcome = read_annotation(item.source, options)
            assert outcome == read_annotation(item.source, options)
            if isinstance(outcome, Example):
                check_record(outcome, options, item.image_id)
                yield outcome
            else:
                _, reason, detail = outcome
                assert reason in findings.REFUSED
                as_json(detail)
                yield reason


def first_of(outcomes: list[Example | str]) -> Example | str:
    return outcomes[0] if outcomes else "none"


# COCO.


@pytest.fixture
def coco(tmp_path) -> Folder:
    return Folder(tmp_path, "made.json", coco_json=f"{tmp_path}/made.json", images_dir=f"{tmp_path}/images")


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 99),
    st.floats(-5, 99),
    st.sampled_from((float("nan"), float("inf"), -0.0, 1e-320, 10**30, -(10**400), 2**63)),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from((*LABELS, "b.jpg", "\ud800", "../b.jpg", "images/b.jpg", "C:\\b.jpg", "b", "", "\0", "/", "..")),
    texts,
)
KEYS = (
    *("images", "annotations", "categories", "id", "image_id", "category_id", "bbox", "segmentation", "iscrowd"),
    *("ignore", "file_name", "height", "width", "name", "supercategory", "counts", "info"),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


def entries(**fields: st.SearchStrategy) -> st.SearchStrategy:
    """Objects with some of the fields, each of which is now and then anything else; or no object at all."""
    optional = {name: st.one_of(*[strategy] * 6, values) for name, strategy in fields.items()}
    return st.one_of(*[st.fixed_dictionaries({}, optional=optional)] * 12, values)


sound = st.fixed_dictionaries(
    {
        "image_id": st.just(1),
        "category_id": st.integers(1, 4),
        "bbox": st.tuples(
            st.integers(0, WIDTH - 9), st.integers(0, HEIGHT - 9), st.integers(1, 9), st.integers(1, 9)
        ).map(list),
    }
)
odd = entries(
    image_id=st.just(1),
    category_id=st.integers(1, 5),
    bbox=st.lists(scalars, max_size=5),
    segmentation=st.lists(st.lists(scalars, max_size=8), max_size=3),
    iscrowd=st.integers(0, 1),
    ignore=st.integers(0, 1),
    attributes=st.fixed_dictionaries({"rotation": scalars}),
)
image = {"id": 1, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH}
categories = [{"id": index + 1, "name": name} for index, name in enumerate(LABELS)]
documents = st.fixed_dictionaries(
    {
        "images": st.one_of(
            st.just([image]),
            st.just([image]),
            st.just([image]),
            st.lists(
                entries(
                    id=st.integers(0, 2),
                    file_name=st.sampled_from(("b.jpg", "b.png", "x/b.jpg", "é.jpg")),
                    height=st.sampled_from((HEIGHT, str(HEIGHT), HEIGHT * 10, 0)),
                    width=st.sampled_from((WIDTH, str(WIDTH), WIDTH * 10, 0)),
                ),
                max_size=3,
            ),
        ),
        "annotations": st.lists(sound | odd, max_size=6),
        "categories": st.one_of(
            st.just(categories),
            st.just(categories),
            st.lists(entries(id=st.integers(1, 4), name=st.sampled_from((*LABELS, "cow"))), max_size=5),
        ),
    }
)


def test_any_json(coco):
    def check(document):
        coco.path.write_text(json.dumps(document))
        return name_of(first_of(coco.read(**DROPPING)))

    roots = st.one_of(values, st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
    lists = st.fixed_dictionaries({name: st.lists(values, max_size=5) for name in KEYS[:3]})
    assert fuzz(roots | lists, check)["not listed"] > CASES // 2


def test_coco_documents(coco):
    """Every object of the image is in the record or is named as dropped; sound ones are kept to the pixel."""

    def check(document):
        coco.path.write_text(json.dumps(document))
        outcomes = coco.read(**DROPPING)
        if document["images"] == [image] and isinstance(outcomes[0], Example):
            example = outcomes[0]
            of_image = [item for item in document["annotations"] if is_dict(item) and is_one(item.get("image_id"))]
            check_no_object_vanishes(example, len(of_image))
            names = {category["id"]: category["name"] for category in document["categories"] if is_plain(category)}
            kept = {*zip(example.annotation.class_names, example.annotation.boxes)}
            for item in of_image:
                name = names.get(item["category_id"]) if is_sound(item) else None
                if len(names) == len(document["categories"]) == 4 and name in LABELS:
                    x, y, width, height = item["bbox"]
                    assert (name, (y, x, y + height, x + width)) in kept
        return name_of(first_of(outcomes))

    assert fuzz(documents, check)["record"] > CASES // 3


def is_dict(item: typing.Any) -> bool:
    return isinstance(item, dict)


def is_one(number: typing.Any) -> bool:
    return number in (1, "1") and number is not True


def is_plain(category: typing.Any) -> bool:
    return isinstance(category, dict) and type(category.get("id")) is int and isinstance(category.get("name"), str)


def is_sound(item: dict) -> bool:
    box = item.get("bbox")
    whole = isinstance(box, list) and len(box) == 4 and all(type(value) is int for value in box)
    return whole and item.keys() == {"image_id", "category_id", "bbox"} and type(item["category_id"]) is int


COCO = {
    "info": {"description": "COCO 2017", "url": "http://cocodataset.org"},
    "images": [{**image, "license": 1, "coco_url": "http://images.cocodataset.org/b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [9.5, 3.25, 20, 30.5], "iscrowd": 0, "area": 610.0},
        {
            "id": 2,
            "image_id": 1,
            "category_id": 2,
            "bbox": [1, 2, 3, 4],
            "segmentation": {"counts": [3, 4], "size": [HEIGHT, WIDTH]},
            "iscrowd": 1,
        },
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}],
}
JSON_TOKENS = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-", b".", b"\\"),
    *(
        b"\\ud800",
        b"\\u0000",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\0",
        b'"image_id":1,',
        b'"id":2,',
        b"[[[[",
        b"9",
    ),
    *(b'"bbox":[],', b'"file_name":"../../etc/passwd",', b'"iscrowd":1,', b"{}", b"[],"),
)


def test_damaged_coco(coco):
    compact, wide = json.dumps(COCO).encode(), json.dumps(COCO, indent=1).encode()
    originals = [(".json", compact), (".json", wide), (".json", json.dumps(COCO).encode("utf-16"))]

    def check(case):
        _, data = case
        coco.path.write_bytes(data)
        return name_of(first_of(coco.read()))

    outcomes = fuzz(damaged(originals, Spots(rb"[:,\[{]", 2), JSON_TOKENS), check)
    assert min(outcomes["record"], outcomes["not listed"]) > CASES // 20


# YOLO.


@pytest.fixture
def yolo(tmp_path) -> Folder:
    return Folder(tmp_path, "labels/b.txt", yolo_dir=str(tmp_path))


shares = st.one_of(
    st.floats(0, 1).map(repr),
    st.floats(0, 1).map("{:.6f}".format),
    st.sampled_from((*ODD_NUMBERS, "1.0", "0.5", "1.0000001", "-0.2", "300")),
)
indexes = st.integers(0, 3).map(str) | st.sampled_from(("4", "-1", "0.0", "1e0", "cat", "²", "+2", "00", "9" * 99, ""))
odd_lines = st.builds(
    lambda index, numbers, gap: gap.join([index, *numbers]),
    indexes,
    st.lists(shares, max_size=9),
    st.sampled_from((" ", "  ", "\t", ",")),
)
sound_lines = st.builds(
    lambda index, x, y: f"{index} {x:.6f} {y:.6f} 0.100000 0.200000",
    st.integers(0, 3),
    st.floats(0.06, 0.94),
    st.floats(0.11, 0.89),
)
any_lines = st.lists(st.one_of(sound_lines, sound_lines, odd_lines, texts), max_size=6)


def test_yolo_lines(yolo):
    def check(case):
        lines, end = case
        yolo.path.write_bytes(end.join(lines).encode())
        (outcome,) = yolo.read(**DROPPING)
        if isinstance(outcome, Example):
            given = [line for text in lines for line in text.splitlines() if line.split()]
            check_no_object_vanishes(outcome, len(given))
        return name_of(outcome)

    cases = st.tuples(any_lines, st.sampled_from(("\n", "\r\n", "\n\n")))
    outcomes = fuzz(cases, check, MORE_CASES)
    assert min(outcomes["record"], outcomes["unknown_class"]) > CASES // 10


YOLO_TOKENS = (
    *(b" ", b"\n", b"\r", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"-", b".", b",", b"1e9", b"nan"),
    *(b"inf", b"0", b"5", b"0x1", b"_", b"0.5 0.5 "),
)


def test_damaged_yolo_files(yolo):
    lines = b"0 0.5 0.5 0.25 0.25\n3 0.300000 0.400000 0.100000 0.200000\n1 0.1 0.1 0.2 0.1 0.2 0.3\n"
    originals = [(".txt", lines), (".txt", lines.replace(b"\n", b"\r\n"))]

    def check(case):
        _, data = case
        yolo.path.write_bytes(data)
        (outcome,) = yolo.read()
        return name_of(outcome)

    outcomes = fuzz(damaged(originals, Spots(rb"[ \n]", 2), YOLO_TOKENS), check)
    assert min(outcomes["record"], outcomes["unknown_class"]) > CASES // 20


YAML = b"""# a comment
path: ../datasets/set
train: images
names:
  0: cat
  1: 'dog'
  2: "chat noir"
  3: \xe7\x8c\xab
nc: 4
kpt_shape: [17, 3]
download: https://example.org/set.zip
"""
YAML_TOKENS = (
    *(b":", b"- ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"!!python/name:os.system ", b"|", b">", b"'", b'"', b"#"),
    *(
        b"\t",
        b"\0",
        b"\xff",
        b"%",
        b"---\n",
        b"? ",
        b"<<: ",
        b"99999999999",
        b'"\\ud800"',
        b"\n",
        b"  ",
        b"names: [x]\n",
    ),
    *(b"train: ..\n", b"path: /\n", b"val: [a, b]\n", b"@", b"`"),
)


def test_damaged_data_yaml(yolo):
    yolo.path.write_text("0 0.5 0.5 0.25 0.25\n")
    path = yolo.path.parents[1] / "data.yaml"

    def check(case):
        _, data = case
        path.write_bytes(data)
        return name_of(first_of(yolo.read()))

    outcomes = fuzz(damaged([(".yaml", YAML)], Spots(rb"[:\n]", 2), YAML_TOKENS), check)
    assert min(outcomes["record"], outcomes["not listed"]) > CASES // 20


paths = st.sampled_from(("images", "./images/", "labels", ".", "..", "images/b.jpg", "none.txt", "/none", "~", "", "*"))
yaml_values = st.one_of(paths, paths, st.lists(paths, max_size=3), values)
yaml_names = st.one_of(
    st.just(LABELS),
    st.lists(st.sampled_from(("cat", "dog", "", " ", "\0")) | scalars, max_size=6),
    st.dictionaries(st.sampled_from((*"0123", "-1", "x", "")), scalars, max_size=5),
    values,
)
yaml_documents = st.fixed_dictionaries(
    {"names": yaml_names},
    optional={
        **dict.fromkeys(("path", "train", "val", "test"), yaml_values),
        **dict.fromkeys(("nc", "kpt_shape"), values),
    },
)


def test_any_data_yaml(yolo):
    """Written as JSON, which is YAML too."""
    yolo.path.write_text("0 0.5 0.5 0.25 0.25\n")
    path = yolo.path.parents[1] / "data.yaml"

    def check(document):
        path.write_text(json.dumps(document))
        return name_of(first_of(yolo.read()))

    outcomes = fuzz(yaml_documents | values, check, MORE_CASES)
    assert min(outcomes["record"], outcomes["not listed"]) > CASES // 20


# Archives.


@pytest.fixture
def packed(tmp_path) -> dict[str, Folder]:
    """By extension, an archive in place of a VOC folder."""
    kinds = ("zip", "tar")
    return {
        f".{kind}": Folder(tmp_path / kind, f"a.{kind}", voc_dirs=(f"{tmp_path}/{kind}/a.{kind}",)) for kind in kinds
    }


def read_archive(packed: dict[str, Folder], extension: str, data: bytes) -> str:
    archives._open.cache_clear()  # it knows an archive by its size and time, of which the clock has too few
    packed[extension].path.write_bytes(data)
    return name_of(first_of(packed[extension].read()))


class Entry(typing.NamedTuple):
    """A file, or something else, in an archive."""

    name: str
    content: bytes
    tar_type: bytes = tarfile.REGTYPE
    compression: int = zipfile.ZIP_STORED


def zip_of(entries: typing.Iterable[Entry]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for entry in entries:
            archive.writestr(entry.name, entry.content, entry.compression)
    return buffer.getvalue()


def tar_of(entries: typing.Iterable[Entry], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname = entry.tar_type, "JPEGImages/b.jpg"
            info.size = len(entry.content) if entry.tar_type == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(entry.content))
    return buffer.getvalue()


ENTRIES = [Entry("Annotations/b.xml", annotation_xml().encode()), Entry("JPEGImages/b.jpg", JPEG)]
TAR_KINDS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)  # a plain one holds no long names
ARCHIVE_TOKENS = (
    *(b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"ustar", b"../", b"\\", b"/", b"\0" * 512, b"\xff" * 4),
    *(b"\x7f\xff\xff\xff", b"L", b"x", b"g", b"S", b"2", b"77777777777", b"20 path=../../x\n", b"19 size=99999999\n"),
)


def test_damaged_archives(packed):
    deflated = [entry._replace(compression=zipfile.ZIP_DEFLATED) for entry in ENTRIES]
    long_name = [*ENTRIES, Entry(f"JPEGImages/{'ü' * 120}.txt", b"")]
    originals = [(".zip", zip_of(ENTRIES)), (".zip", zip_of(deflated)), (".zip", zip_of(long_name))]
    originals += [(".tar", tar_of(long_name, kind)) for kind in TAR_KINDS]

    def check(case):
        return read_archive(packed, *case)

    outcomes = fuzz(damaged(originals, Spots(rb"PK|Annotations|ustar", 60), ARCHIVE_TOKENS), check, MORE_CASES)
    assert min(outcomes["record"], outcomes["not listed"]) > CASES // 20


names = st.sampled_from(
    (
        *("Annotations/b.xml", "JPEGImages/b.jpg", "Annotations/b.xml", "JPEGImages/b.jpg", "b.xml", "b.jpg", "c.jpg"),
        *(
            "./Annotations/b.xml",
            "JPEGImages\\b.jpg",
            "../b.jpg",
            "/b.jpg",
            "C:\\b.jpg",
            "a//b.jpg",
            "a/",
            "/",
            ".",
            "x",
        ),
        *("Annotations", "JPEGImages", "JPEGImages/b.jpg/c.xml", "a.zip/b.jpg", "a.tar", "ImageSets/Main/train.txt"),
        *(
            "é.xml",
            "e\u0301.jpg",
            "JPEGImages/B.JPG",
            f"{'x' * 300}.xml",
            "new\nline.jpg",
            "day 1/b.xml",
            "day 1/b.jpg",
        ),
    )
)
contents = st.sampled_from((ENTRIES[0].content, ENTRIES[0].content, JPEG, JPEG, b"", b"b\n", b"<annotation/>", b"\xff"))
tar_types = st.sampled_from((*[tarfile.REGTYPE] * 6, *b"1234567SLKgxX")).map(
    lambda kind: kind if isinstance(kind, bytes) else bytes([kind])
)
compressions = st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
any_entries = st.lists(
    st.builds(Entry, names, contents, tar_types, compressions) | st.sampled_from(ENTRIES), max_size=6
)


def test_any_archive(packed):
    def check(case):
        entries, kind = case
        data = zip_of(entries) if kind is None else tar_of(entries, kind)
        return read_archive(packed, ".zip" if kind is None else ".tar", data)

    outcomes = fuzz(st.tuples(any_entries, st.sampled_from((None, *TAR_KINDS))), check)
    assert min(outcomes["record"], outcomes["not listed"]) > CASES // 20
