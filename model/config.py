"""Settings of the network, its losses and its detections. No TensorFlow import here."""

import dataclasses

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
NECKS = ("fpn", "panet")
NORMS = ("auto", "local", "sync", "frozen", "group")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network; defaults of the RetinaNet paper (Lin et al. 2017)."""

    backbone: str = "resnet50"
    neck: str = "fpn"
    neck_filters: int = 256  # width of the neck and of the heads
    head_convs: int = 4
    prior_probability: float = 0.01  # foreground probability that a fresh class head answers
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    norm: str = "auto"  # one of NORMS; the trainer decides what auto means for its replicas

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise ValueError(f"--backbone={self.backbone}: choose one of {', '.join(BACKBONES)}.")
        if self.neck not in NECKS:
            raise ValueError(f"--neck={self.neck}: choose one of {', '.join(NECKS)}.")
        if self.norm not in NORMS:
            raise ValueError(f"--norm={self.norm}: choose one of {', '.join(NORMS)}.")
        if self.neck_filters < 1 or self.head_convs < 0:
            raise ValueError("--neck_filters must be at least 1 and --head_convs at least 0.")
        if not 0 < self.prior_probability < 1:
            raise ValueError(f"prior_probability must lie between 0 and 1; got {self.prior_probability}.")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Focal loss and smooth L1 (Lin et al. 2017)."""

    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.1  # where the quadratic part ends, in units of box deltas
    box_loss_weight: float = 1.0

    def __post_init__(self):
        if self.smooth_l1_beta <= 0:
            raise ValueError(f"smooth_l1_beta must be positive; got {self.smooth_l1_beta}.")


@dataclasses.dataclass(frozen=True)
class DetectConfig:
    """From predictions to detections."""

    score_threshold: float = 0.05
    pre_nms_top_k: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 100
