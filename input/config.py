"""Settings of the input. No TensorFlow import here, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses

ANCHOR_CONVENTIONS = ("auto", "paper", "torchvision")
PREPROCESSINGS = ("auto", "imagenet", "caffe", "tf_lite")


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """The anchors of P3-P7; the defaults are those of the RetinaNet paper (Lin et al. 2017, section 4).

    An anchor of base size `s`, scale `c` and aspect ratio `r` (width / height) has area `(s * c) ** 2`,
    height `s * c / sqrt(r)` and width `s * c * sqrt(r)`, in pixels of the network's input. torchvision's convention
    rounds them and places them otherwise: see `input/anchors.py`.
    """

    min_level: int = 3
    max_level: int = 7
    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)  # one for each level
    scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_convention: str = "auto"  # auto: that of the detector the run starts from; without any the paper's

    def __post_init__(self) -> None:
        if self.anchor_convention not in ANCHOR_CONVENTIONS:
            raise ValueError(
                f"--anchor_convention={self.anchor_convention}: choose one of {', '.join(ANCHOR_CONVENTIONS)}."
            )
        if len(self.sizes) != self.max_level - self.min_level + 1:
            raise ValueError(
                f"--anchor_sizes needs {self.max_level - self.min_level + 1} values, one for each of the levels "
                f"P{self.min_level}-P{self.max_level}; got {len(self.sizes)}: {self.sizes}."
            )
        for flag, values in (
            ("anchor_sizes", self.sizes),
            ("anchor_scales", self.scales),
            ("aspect_ratios", self.aspect_ratios),
        ):
            if not values or min(values) <= 0:
                raise ValueError(f"--{flag} needs positive values; got {values}.")
        most = max(max(self.aspect_ratios), 1 / min(self.aspect_ratios))
        if self.anchor_convention == "torchvision" and min(self.sizes) * min(self.scales) < 2 * most**0.5:
            raise ValueError(
                "--anchor_convention=torchvision rounds the sides of anchors to even numbers of pixels, of which the "
                f"smallest would be 0: use larger --anchor_sizes; got {self.sizes}."
            )

    @property
    def levels(self) -> range:
        return range(self.min_level, self.max_level + 1)

    @property
    def anchors_per_location(self) -> int:
        return len(self.scales) * len(self.aspect_ratios)


ASSIGNMENTS = ("iou", "atss")
LOW_QUALITY_TIES = ("first", "nearest", "all")


@dataclasses.dataclass(frozen=True)
class MatchConfig:
    """When an anchor is positive, ignored or background (Lin et al. 2017, section 4)."""

    positive_iou: float = 0.5  # IoU >= this: positive
    negative_iou: float = 0.4  # IoU < this: background; in between: ignored
    force_match: bool = True  # every box gets its best anchor, whatever their IoU: a low-quality match
    low_quality_ties: str = "first"  # which of several best anchors
    assignment: str = "iou"  # "atss": thresholds that follow from each box (Zhang et al. 2020)

    def __post_init__(self) -> None:
        if self.assignment not in ASSIGNMENTS:
            raise ValueError(f"--assignment={self.assignment}: choose one of {', '.join(ASSIGNMENTS)}.")
        if self.low_quality_ties not in LOW_QUALITY_TIES:
            raise ValueError(
                f"--low_quality_ties={self.low_quality_ties}: choose one of {', '.join(LOW_QUALITY_TIES)}."
            )
        if not 0 < self.negative_iou <= self.positive_iou <= 1:
            raise ValueError(
                f"need 0 < --negative_iou <= --positive_iou <= 1; got {self.negative_iou} and {self.positive_iou}."
            )


# The operations that RandAugment chooses from, and the limit of each at magnitude 10, in the units of `AugmentConfig`.
RANDAUGMENT_LIMITS = {
    "rotate": 30.0,
    "shear": 0.3,
    "translate": 0.25,
    "brightness": 0.4,
    "contrast": 0.9,
    "saturation": 0.9,
    "hue": 0.1,
    "grayscale": 1.0,
    "cutout": 1.0,
}
MAX_MAGNITUDE = 10


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How training images are augmented. The defaults change nothing (`--augment=none`).

    Each setting is a probability unless its comment gives a unit.
    """

    # On the host, for each image.
    iou_crop: float = 0.0  # SSD's crop
    scale_min: float = 1.0  # scale jitter: smallest size, relative to that of the letterboxed image
    scale_max: float = 1.0  # scale jitter: largest size
    warp: float = 0.0  # rotation, shear and translation, in one resampling
    rotate: float = 10.0  # largest angle, in degrees
    shear: float = 0.1  # largest shift of x, as a share of y
    translate: float = 0.1  # largest shift, as a share of each side
    randaugment: int = 0  # number of operations chosen for an image, 0 to 3
    randaugment_magnitude: float = 5.0  # 0 to 10
    # On the device, for each batch.
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    brightness: float = 0.0  # largest shift, as a share of the full range
    contrast: float = 0.0  # largest change of the factor 1
    saturation: float = 0.0  # largest change of the factor 1
    hue: float = 0.0  # largest rotation, in turns
    grayscale: float = 0.0
    cutout: float = 0.0
    cutmix: float = 0.0
    mixup: float = 0.0
    mosaic: float = 0.0
    close_mosaic: float = 0.0  # share of the run, at its end, without cutmix, mixup and mosaic (Ge et al. 2021, YOLOX)
    # A partly cropped or covered box is kept if its centre or this share of its area is visible.
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        for name in (
            "iou_crop",
            "warp",
            "horizontal_flip",
            "vertical_flip",
            "grayscale",
            "cutout",
            "cutmix",
            "mixup",
            "mosaic",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a probability, from 0 to 1; got {getattr(self, name)}.")
        for name in ("close_mosaic", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share, from 0 to 1; got {getattr(self, name)}.")
        if not 0 < self.scale_min <= self.scale_max:
            raise ValueError(f"need 0 < --scale_min <= --scale_max; got {self.scale_min} and {self.scale_max}.")

        if self.randaugment not in range(4):
            raise ValueError(f"--randaugment is a number of operations, from 0 to 3; got {self.randaugment}.")
        if not 0 <= self.randaugment_magnitude <= MAX_MAGNITUDE:
            raise ValueError(
                f"--randaugment_magnitude goes from 0 to {MAX_MAGNITUDE}; got {self.randaugment_magnitude}."
            )
        if negative := [name for name, value in dataclasses.asdict(self).items() if value < 0]:
            raise ValueError(f"--{negative[0]} must be at least 0; got {getattr(self, negative[0])}.")

    @property
    def warps(self) -> bool:
        """Whether any image is rotated, sheared or moved."""
        return bool(self.randaugment or (self.warp and any((self.rotate, self.shear, self.translate))))

    @property
    def mixes(self) -> bool:
        """Whether images of one batch are mixed with each other."""
        return any((self.cutmix, self.mixup, self.mosaic))

    @classmethod
    def preset(cls, name: str) -> AugmentConfig:
        """The augmentation called `name`: none, paper, default or strong."""
        presets = {
            "none": cls(),
            "paper": cls(horizontal_flip=0.5),
            "default": cls(
                horizontal_flip=0.5,
                scale_min=0.8,
                scale_max=1.25,
                brightness=0.1,
                contrast=0.2,
                saturation=0.2,
                hue=0.02,
            ),
            "strong": cls(
                horizontal_flip=0.5,
                scale_min=0.5,
                scale_max=2.0,
                brightness=0.15,
                contrast=0.4,
                saturation=0.4,
                hue=0.05,
                grayscale=0.05,
                cutout=0.2,
                mixup=0.1,
                mosaic=0.3,
            ),
        }
        if name not in presets:
            raise ValueError(f"--augment={name}: choose one of {', '.join(presets)}.")
        return presets[name]


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How shards become batches."""

    image_size: tuple[int, int] = (512, 512)  # (height, width) of the network's input, multiples of 32
    # How pixels become the network's input; auto: as the starting weights need, without any as imagenet.
    preprocessing: str = "auto"
    batch_size: int = 16  # of all replicas together
    max_boxes: int = 100  # objects of an image; of more, the largest are learnt, and the others ignored
    shuffle_buffer: int = 2048  # records, still encoded
    seed: int = 0
    target_assignment: str = "device"  # or "host"
    deterministic_input: bool = True  # false: batches may overtake a slow one, in no repeatable order
    cache_records: bool = False  # keep the encoded records in memory after the first epoch
    max_damaged: int = 100  # images that cannot be decoded are left out; more than these end the run
    mixture: tuple[tuple[float, int], ...] = ()  # (weight, number of shards) of each group of training shards, in order
    repeat_threshold: float = 0.0  # classes that a smaller share of the images shows are shown more often
    data_service: str = ""  # address of the tf.data service that makes the batches; empty: none
    private_threadpool_size: int = 0  # threads of the input pipeline; 0: it shares TensorFlow's, one for each core
    anchor: AnchorConfig = AnchorConfig()
    match: MatchConfig = MatchConfig()
    augment: AugmentConfig = AugmentConfig.preset("default")

    @property
    def num_slots(self) -> int:
        """The boxes that every image is padded to: a quarter more than `max_boxes`, for ignored regions."""
        return self.max_boxes + self.max_boxes // 4

    def __post_init__(self) -> None:
        if min(self.image_size) <= 0 or any(side % 32 for side in self.image_size):
            raise ValueError(f"--image_size is {self.image_size}: both sides must be positive multiples of 32.")
        if self.preprocessing not in PREPROCESSINGS:
            raise ValueError(f"--preprocessing={self.preprocessing}: choose one of {', '.join(PREPROCESSINGS)}.")
        for name in ("batch_size", "max_boxes", "shuffle_buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("max_damaged", "private_threadpool_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be at least 0; got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**31:  # a seed of 64 bits holds the epoch too
            raise ValueError(f"--seed must be from 0 to {2**31 - 1}; got {self.seed}.")
        if not 0 <= self.repeat_threshold <= 1:
            raise ValueError(f"--repeat_threshold is a share, from 0 to 1; got {self.repeat_threshold}.")
        if any(weight <= 0 for weight, _ in self.mixture):
            raise ValueError(f"--train_weights must be positive; got {[weight for weight, _ in self.mixture]}.")
        if sum(map(bool, (self.mixture, self.repeat_threshold, self.data_service))) > 1:
            raise ValueError("--train_weights, --repeat_threshold and --data_service cannot be combined.")
        if self.target_assignment not in ("device", "host"):
            raise ValueError(f"--target_assignment={self.target_assignment}: choose device or host.")


def parse_image_size(text: str, flag: str = "image_size") -> tuple[int, int]:
    """The (height, width) that "512" or "480x640" gives, each rounded up to a multiple of 32.

    Raises:
      ValueError: the text is no size; the message names the flag.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise ValueError(f"--{flag}={text}: write N or HxW, such as 512 or 480x640 (height x width).")
    height, width = (-(-int(side) // 32) * 32 for side in (sides * 2)[:2])
    return height, width
