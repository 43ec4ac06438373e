"""Settings of the network, its losses and its detections. No TensorFlow import here."""

from __future__ import annotations

import dataclasses

BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
)
NECKS = ("fpn", "panet", "bifpn")
CLASS_LOSSES = ("focal", "quality_focal")
BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
RESNET_STRIDES = ("auto", "1x1", "3x3")
P6_SOURCES = ("auto", "c5", "p5")
HEAD_NORMS = ("none", "batch", "group")
PRE_NMS = ("flat", "per_level")
NMS = ("per_class", "agnostic")
NORMS = ("auto", "local", "sync", "frozen", "group")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network; the defaults are those of the RetinaNet paper (Lin et al. 2017)."""

    backbone: str = "resnet50"
    # Where a bottleneck strides: its first 1x1 convolution ("v1", as in the paper and Keras), or its 3x3 ("v1.5", as in
    # torchvision and timm). auto: as the weights that the run starts from need; without any 1x1.
    resnet_stride: str = "auto"
    freeze_stages: int = 0  # of the backbone, the stem being the first of five
    neck: str = "fpn"
    p6_from: str = "auto"  # the map that P6 is made of; auto: as the starting weights need; without any c5, the paper's
    neck_filters: int = 256  # width of the neck
    neck_repeats: int = 3  # of a BiFPN
    head_convs: int = 4  # hidden ones, in each head
    head_filters: int = 0  # their width; 0: neck_filters
    head_norm: str = "none"  # one of HEAD_NORMS, after each of them
    separable_convs: bool = False  # those of 3x3 in a BiFPN and in the heads
    prior_probability: float = 0.01  # foreground probability that an untrained class head predicts
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    norm: str = "auto"  # one of NORMS; the trainer decides what auto means for its replicas

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"--backbone={self.backbone}: choose one of {', '.join(BACKBONES)}.")
        if self.neck not in NECKS:
            raise ValueError(f"--neck={self.neck}: choose one of {', '.join(NECKS)}.")
        if self.resnet_stride not in RESNET_STRIDES:
            raise ValueError(f"--resnet_stride={self.resnet_stride}: choose one of {', '.join(RESNET_STRIDES)}.")
        if self.p6_from not in P6_SOURCES:
            raise ValueError(f"--p6_from={self.p6_from}: choose one of {', '.join(P6_SOURCES)}.")
        if not 0 <= self.freeze_stages <= 5:
            raise ValueError(f"--freeze_stages must be from 0 to 5; got {self.freeze_stages}.")
        if self.norm not in NORMS:
            raise ValueError(f"--norm={self.norm}: choose one of {', '.join(NORMS)}.")
        if self.norm == "group" and self.backbone.startswith("efficientnet_lite"):
            raise ValueError(
                f"--norm=group does not fit --backbone={self.backbone}, whose layers are too narrow for its 32 groups: "
                "choose another --norm."
            )
        if self.head_norm not in HEAD_NORMS:
            raise ValueError(f"--head_norm={self.head_norm}: choose one of {', '.join(HEAD_NORMS)}.")
        if self.head_norm == "batch" and self.norm in ("frozen", "group"):
            raise ValueError(
                f"--head_norm=batch takes its statistics as --norm=local or sync says, but --norm={self.norm}: "
                "use --head_norm=group."
            )
        for name, least in (("neck_filters", 1), ("neck_repeats", 1), ("head_convs", 0), ("head_filters", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}; got {getattr(self, name)}.")
        if not 0 < self.prior_probability < 1:
            raise ValueError(f"--prior_probability must lie between 0 and 1; got {self.prior_probability}.")
        if not 0 <= self.batch_norm_momentum < 1:
            raise ValueError(f"--batch_norm_momentum must be at least 0 and below 1; got {self.batch_norm_momentum}.")
        if self.batch_norm_epsilon <= 0:
            raise ValueError(f"--batch_norm_epsilon must be positive; got {self.batch_norm_epsilon}.")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The losses; the defaults are those of the RetinaNet paper (Lin et al. 2017)."""

    class_loss: str = "focal"
    box_loss: str = "smooth_l1"
    focal_alpha: float = 0.25  # weight of the foreground; the background has 1 - alpha
    focal_gamma: float = 2.0  # focusing exponent
    smooth_l1_beta: float = 0.1  # where the quadratic part ends, in units of box deltas
    box_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.class_loss not in CLASS_LOSSES:
            raise ValueError(f"--class_loss={self.class_loss}: choose one of {', '.join(CLASS_LOSSES)}.")
        if self.box_loss not in BOX_LOSSES:
            raise ValueError(f"--box_loss={self.box_loss}: choose one of {', '.join(BOX_LOSSES)}.")
        if self.class_loss == "quality_focal" and self.focal_gamma < 1:
            raise ValueError(f"--class_loss=quality_focal needs a --focal_gamma of at least 1; got {self.focal_gamma}.")
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"--focal_alpha must be from 0 to 1; got {self.focal_alpha}.")
        if self.smooth_l1_beta <= 0:
            raise ValueError(f"--smooth_l1_beta must be positive; got {self.smooth_l1_beta}.")
        for name in ("focal_gamma", "box_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must be at least 0; got {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True)
class DetectConfig:
    """How predictions become detections."""

    score_threshold: float = 0.05  # detections score above it
    pre_nms_top_k: int = 1000  # pairs of anchor and class that non-maximum suppression starts from, in each image
    pre_nms: str = "flat"  # "per_level": so many pairs of each level
    nms: str = "per_class"  # "agnostic": detections of one class drop those of another
    soft_nms_sigma: float = 0.0  # above 0: scores are lowered by exp(-IoU^2 / (2 * sigma)) instead (Bodla et al. 2017)
    nms_iou: float = 0.5  # a detection whose IoU with a better one of its class exceeds this is dropped
    max_detections: int = 100  # in each image

    def __post_init__(self) -> None:
        if self.pre_nms not in PRE_NMS:
            raise ValueError(f"--pre_nms={self.pre_nms}: choose one of {', '.join(PRE_NMS)}.")
        if self.nms not in NMS:
            raise ValueError(f"--nms={self.nms}: choose one of {', '.join(NMS)}.")
        if self.soft_nms_sigma < 0:
            raise ValueError(f"--soft_nms_sigma must be at least 0; got {self.soft_nms_sigma}.")
        for name in ("score_threshold", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be from 0 to 1; got {getattr(self, name)}.")
        for name in ("pre_nms_top_k", "max_detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1; got {getattr(self, name)}.")
