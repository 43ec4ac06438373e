"""Settings of the converter."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

IGNORE = "ignore"  # a class that people draw around what is not to be learnt; it is none of the label list


class ConversionError(ValueError):
    """The conversion cannot be done; the message says why and what to do, a line for each problem."""


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How an annotation and its image are read: the flags of which a worker needs to know."""

    zero_based: bool = False  # coordinates are edges counted from 0, not pixels counted from 1
    drop_invalid_objects: bool = False  # keep an image of which no object can be read, as a negative
    rename: tuple[str, ...] = ()  # each OLD=NEW
    ignore_classes: tuple[str, ...] = ()  # whose boxes are ignored regions; after renaming
    drop_unknown_classes: bool = False
    dropped_classes_as: str = "ignore"  # or "background": what --drop_unknown_classes makes of the boxes
    exif: str = "auto"  # or "apply" or "ignore": whether the boxes are in the frame that an EXIF orientation gives
    verify: str = "decode"  # or "header": what is checked of a JPEG that is stored as it is
    max_pixels: int = 100_000_000
    store_max_side: int = 0  # px; images larger than that are made smaller; 0: none
    tile: int = 0  # px; images larger than that are cut into tiles; 0: none
    overlap: float = 0.2  # the share of a tile that the next one shows too, at least
    tile_negatives: float = 1.0  # the share of the tiles without objects that is kept
    jpeg_quality: int = 95  # of images that are encoded anew

    def __post_init__(self) -> None:
        if self.verify not in ("header", "decode"):
            raise ConversionError(f"--verify={self.verify} is unknown: choose header or decode.")
        if self.exif not in ("auto", "apply", "ignore"):
            raise ConversionError(f"--exif={self.exif} is unknown: choose auto, apply or ignore.")

    @functools.cached_property
    def new_names(self) -> dict[str, str]:
        """The new name of each class that is renamed."""
        pairs = (text.partition("=")[::2] for text in self.rename)
        return {" ".join(old.split()): " ".join(new.split()) for old, new in pairs}


@dataclasses.dataclass(frozen=True)
class ConvertConfig(ImageOptions):
    """What to convert, and how. Folders left empty are found in `voc_dirs`, see `layout.find_folders`."""

    output_dir: str = ""
    voc_dirs: tuple[str, ...] = ()  # each holds annotations, images and perhaps ImageSets/Main/*.txt
    coco_json: str = ""  # in place of `voc_dirs`, as the next
    yolo_dir: str = ""  # holds data.yaml, images and labels
    annotations_dir: str = ""
    images_dir: str = ""
    split: str = ""  # its name; empty: that of the image set or of the folder, otherwise "all"
    image_set: str = ""
    image_set_file: str = ""
    val_fraction: float = 0.0
    group_by: str = ""  # a regular expression: images for whose id it gives the same text stay in one split
    labels_file: str = ""
    on_error: str = "fail"  # or "skip"
    strict: bool = False
    drop_empty: bool = False
    num_shards: int = 0  # 0: as many as shard_bytes asks for
    shard_bytes: int = 128 << 20
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for path in (*self.voc_dirs, self.coco_json, self.yolo_dir, self.annotations_dir, self.images_dir):
            if path.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".rar", ".7z")):
                raise ConversionError(f"{path} is not read in place: unpack it, or pack it as .zip or .tar.")
        given = [self.voc_dirs, self.coco_json, self.yolo_dir]
        if not any(given) and not (self.annotations_dir and self.images_dir):
            raise ConversionError(
                "--voc_dir is missing: give it, or both --annotations_dir and --images_dir, "
                "or --coco_json, or --yolo_dir."
            )
        if sum(map(bool, given)) > 1:
            raise ConversionError("--voc_dir, --coco_json and --yolo_dir are different formats: give one of them.")
        of_voc = {"image_set": self.image_set, "image_set_file": self.image_set_file, "zero_based": self.zero_based}
        of_voc["annotations_dir"] = self.annotations_dir
        if self.format != "voc" and (unfit := [name for name, value in of_voc.items() if value]):
            raise ConversionError(f"--{unfit[0]} is for Pascal VOC only: leave it out.")
        if self.yolo_dir and self.images_dir:
            raise ConversionError("--images_dir does not go with --yolo_dir: data.yaml names the folders.")
        if len(self.voc_dirs) > 1 and (self.annotations_dir or self.images_dir or self.image_set_file):
            raise ConversionError("--annotations_dir, --images_dir and --image_set_file go with one --voc_dir only.")
        if self.val_fraction and (self.image_set or self.image_set_file):
            raise ConversionError("--val_fraction divides a folder without image sets: leave out --image_set.")
        if self.val_fraction and self.split:
            raise ConversionError("--val_fraction names its splits train and val: leave out --split.")
        if re.search(r"[^\w.-]|^\.", self.split):
            raise ConversionError(f"--split={self.split} names files: use letters, digits, '-', '_' and '.'.")
        if not 0 <= self.val_fraction < 1:
            raise ConversionError(f"--val_fraction={self.val_fraction} must be at least 0 and below 1.")
        if self.group_by and not self.val_fraction:
            raise ConversionError("--group_by goes with --val_fraction: other splits are as the data set has them.")
        try:
            re.compile(self.group_by)
        except re.error as error:
            raise ConversionError(f"--group_by={self.group_by} is not a regular expression: {error}.") from None
        if self.on_error not in ("fail", "skip"):
            raise ConversionError(f"--on_error={self.on_error} is unknown: choose fail or skip.")
        if bad := [text for text in self.rename if not all(part.strip() for part in text.partition("="))]:
            raise ConversionError(f"--rename={bad[0]}: write OLD=NEW, two names of classes.")
        old_names = [" ".join(text.partition("=")[0].split()) for text in self.rename]
        if repeated := [name for name in old_names if old_names.count(name) > 1]:
            raise ConversionError(f"--rename gives {repeated[0]} two new names: choose one.")
        if self.dropped_classes_as not in ("ignore", "background"):
            raise ConversionError(
                f"--dropped_classes_as={self.dropped_classes_as} is unknown: choose ignore or background."
            )
        if self.num_shards < 0 or min(self.shard_bytes, self.max_pixels) < 1:
            raise ConversionError("--num_shards, --shard_mb and --max_pixels must be positive.")
        if self.store_max_side < 0 or not 1 <= self.jpeg_quality <= 100:
            raise ConversionError("--store_max_side must not be negative, and --jpeg_quality be from 1 to 100.")
        if self.tile and self.tile < 32:
            raise ConversionError(f"--tile={self.tile} must be at least 32 pixels, or 0 for no tiles.")
        if not 0 <= self.overlap < 1 or not 0 <= self.tile_negatives <= 1:
            raise ConversionError("--overlap must be at least 0 and below 1, and --tile_negatives be from 0 to 1.")

    @property
    def format(self) -> str:
        return "coco" if self.coco_json else "yolo" if self.yolo_dir else "voc"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the outcome, beside the files and the labels."""
        names = """
            on_error strict zero_based drop_empty rename ignore_classes drop_unknown_classes dropped_classes_as
            drop_invalid_objects exif verify max_pixels store_max_side tile overlap tile_negatives jpeg_quality
            num_shards shard_bytes seed val_fraction group_by
        """
        values = {name: getattr(self, name) for name in names.split()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclasses.dataclass(frozen=True)
class ReadOptions(ImageOptions):
    """How an annotation and its image are read: the flags, and what was found out about the data set."""

    labels: tuple[str, ...] = ()
    format: str = "voc"  # or "coco" or "yolo"
    declared: tuple[str, ...] = ()  # of YOLO: the class of each index
    box_first: bool = False  # of YOLO: the numbers after the box are keypoints

    @functools.cached_property
    def classes(self) -> dict[str, int]:
        """The index of each label."""
        return {name: index for index, name in enumerate(self.labels)}
