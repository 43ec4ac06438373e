"""What a split holds, from what it was made and how: `SPLIT.manifest.json` beside the shards."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from input import files

MANIFEST_VERSION = 3  # raised when the manifest changes, or when the same input no longer gives the same records

_FINDINGS = ("refused", "dropped", "repaired", "noted")  # the kinds, each a field of the manifest

_Kind = TypeVar("_Kind")


def manifest_path(directory: str, split: str) -> str:
    return os.path.join(directory, f"{split}.manifest.json")


def findings_path(directory: str, split: str) -> str:
    """The file that names all findings, where they are too many for the manifest."""
    return os.path.join(directory, f"{split}.findings.jsonl")


class Finding(NamedTuple):
    """One thing that was wrong with a file, or worth a note."""

    image_id: str
    file: str  # the file's name, without its folder
    reason: str  # a key of one of `conversion.findings.KINDS`
    detail: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """The findings of one kind."""

    counts: dict[str, int]  # by reason
    files: tuple[Finding, ...]  # of each reason at most `conversion.findings.KEPT`
    num_images: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What a manifest says of one shard."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a split holds, from what it was made and how: `SPLIT.manifest.json` beside the shards."""

    version: int
    split: str
    num_images: int
    num_boxes: int
    num_negatives: int  # images without objects
    num_difficult: int  # boxes
    num_truncated: int  # boxes
    num_ignored: int  # regions
    num_resized: int  # images that were stored smaller than they are
    source_pixels: int  # of all images before that; 0 where an older version did not count them
    source_bytes: int  # of their files
    labels: tuple[str, ...]
    boxes_per_class: dict[str, int]
    images_per_class: dict[str, int]
    settings: dict[str, Any]
    shards: tuple[ShardInfo, ...]
    refused: Findings
    dropped: Findings
    repaired: Findings
    noted: Findings
    inputs: dict[str, str]  # image id -> a fingerprint of its files
    digests: dict[str, str]  # image id -> the first 16 hexadecimal digits of the stored image's SHA-256
    looks: dict[str, str]  # image id -> 32 hexadecimal digits that hash how the image looks

    def findings(self, kind: str) -> Findings:
        """The findings of a kind: refused, dropped, repaired or noted."""
        findings: Findings = getattr(self, kind)
        return findings

    def shard(self, name: str) -> ShardInfo | None:
        """The shard called `name`; None where the manifest does not name it."""
        return next((shard for shard in self.shards if shard.name == name), None)

    def to_json(self) -> str:
        return "".join(self.json_parts())

    def json_parts(self) -> Iterator[str]:
        """The manifest's text in parts, since that of a million images is long."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["shards"] = list(map(vars, self.shards))
        for kind in _FINDINGS:
            found = self.findings(kind)
            fields[kind] = {**vars(found), "files": [finding._asdict() for finding in found.files]}
        chunks = json.JSONEncoder(indent=1, ensure_ascii=False).iterencode(fields)
        while part := "".join(itertools.islice(chunks, 1 << 16)):
            yield part
        yield "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Reads what `to_json` wrote, and manifests of versions 1 and 2.

        Those count no ignored regions, and nothing of the files. In version 1 "mended" is what was repaired or dropped,
        and there are no digests.

        Raises:
          ValueError: the text is no manifest; the message names the wrong field.
        """
        try:
            fields = json.loads(text)
            if fields["version"] == 1:
                fields.update(repaired=fields.pop("mended"), dropped={"counts": {}, "files": []}, digests={})
            if fields["version"] in (1, 2):
                added = ("num_ignored", "num_resized", "source_pixels", "source_bytes")
                fields = {**dict.fromkeys(added, 0), "looks": {}, **fields}
            fields["labels"] = tuple(fields["labels"])
            fields["shards"] = tuple(_checked(ShardInfo, shard) for shard in fields["shards"])
            for kind in _FINDINGS:
                lines = tuple(Finding(**line) for line in fields[kind]["files"])
                images = collections.Counter(reason for _, reason in {(line.image_id, line.reason) for line in lines})
                fields[kind] = _checked(Findings, {"num_images": dict(images), **fields[kind], "files": lines})
            return _checked(cls, fields)
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from error
        except (AttributeError, TypeError) as error:
            raise ValueError(str(error)) from error


def _checked(kind: type[_Kind], fields: dict[str, Any]) -> _Kind:
    """The dataclass `kind` of these fields, each of which must have its type."""
    types = {"int": int, "str": str, "dict": dict, "tuple": tuple, "Findings": Findings}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # always a dataclass
        if not isinstance(fields[field.name], types[field.type.partition("[")[0]]):
            raise ValueError(f"{field.name} is not of the type {field.type}")
    return kind(**fields)


def read_manifest(path: str) -> Manifest:
    """Reads a manifest.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is not a manifest.
    """
    data = files.read(path)
    try:
        return Manifest.from_json(data)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a sound manifest ({error}): delete it and run prepare_tfrecords.py again."
        ) from None
