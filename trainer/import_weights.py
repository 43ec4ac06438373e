"""Turns weights that others published into a file that training starts from.

`python -m trainer.import_weights --source=FILE --output=OUT.safetensors`

FILE is a .safetensors, .npz, .pth (PyTorch has to be installed), Keras .h5 or .keras file. What is in it is recognised
by its names: a classifier of torchvision, timm, Keras or efficientnet-lite-pytorch, whose backbone is taken, or a whole
RetinaNet of torchvision. OUT holds the weights with all that a run has to know of them; give it to `trainer.task` as
`--backbone_weights` or `--init_checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags as absl_flags

from input.config import PREPROCESSINGS
from model.config import RESNET_STRIDES
from trainer import command


def import_weights(
    source: str,
    output: str,
    *,
    labels_path: str = "",
    preprocessing: str = "auto",
    resnet_stride: str = "auto",
    epsilon: float | None = None,
    backbone_only: bool = False,
) -> list[str]:
    """Writes `output` and returns what there is to tell, a line each.

    Args:
      source, output: files, on a disk or in a bucket.
      labels_path: a text file with the classes of a detector, one a line.
      preprocessing, resnet_stride, epsilon, backbone_only: as for `pretrained.translate`.

    Raises:
      FileNotFoundError: there is no `source`.
      ValueError: nothing is recognised in it, or a part is missing; the output's name is wrong, or the labels are no
        text.
    """
    from input import files
    from model import pretrained, weight_files

    if not output.endswith(".safetensors"):
        raise ValueError(f"--output={output}: its name must end in .safetensors.")
    if not files.exists(source):
        raise FileNotFoundError(f"--source={source}: there is no such file.")
    if source.endswith(".safetensors") and pretrained.load(source):
        raise ValueError(f"--source={source}: this command wrote it already; give it to trainer.task as it is.")
    labels: Sequence[str] = ()
    if labels_path:
        try:
            labels = files.read(labels_path).decode().splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"--labels={labels_path} is not UTF-8: give a text file, one class a line.") from None
    weights, skipped, reshaped = pretrained.translate(
        weight_files.read_tensors(source),
        os.path.basename(source),
        labels=labels,
        preprocessing=preprocessing,
        resnet_stride=resnet_stride,
        epsilon=epsilon,
        backbone_only=backbone_only,
    )
    pretrained.save(output, weights)
    origin = weights.origin
    flag = "--init_checkpoint" if origin.neck else "--backbone_weights"
    classes = len([label for label in origin.labels if label])
    what = f"{origin.backbone} with torchvision's neck and heads, {classes or 'unnamed'} classes" if origin.neck else ""
    return [
        f"recognised: {what or origin.backbone}",
        f"took {len(weights.arrays)} tensors; preprocessing {origin.preprocessing}, batch norm's epsilon "
        f"{origin.batch_norm_epsilon:g}"
        + (f", stride in the {origin.resnet_stride}" if origin.resnet_stride != "auto" else ""),
        *(f"changed: {line}" for line in reshaped),
        f"skipped: {', '.join(skipped) or 'nothing'}",
        f"wrote {output}; train with --backbone={origin.backbone} {flag}={output}",
    ]


def main() -> None:
    flags = absl_flags.FLAGS
    lines = import_weights(
        flags.source,
        flags.output,
        labels_path=flags.labels,
        preprocessing=flags.preprocessing,
        resnet_stride=flags.resnet_stride,
        epsilon=flags.epsilon,
        backbone_only=flags.backbone_only,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    absl_flags.DEFINE_string("source", None, "The file to read.", required=True)
    absl_flags.DEFINE_string("output", None, "The .safetensors file to write.", required=True)
    absl_flags.DEFINE_string(
        "labels", "", "A text file with the classes that a detector predicts, one a line. COCO's are known."
    )
    absl_flags.DEFINE_enum(
        "preprocessing", "auto", PREPROCESSINGS, "How the weights expect pixels. auto: as their framework does."
    )
    absl_flags.DEFINE_enum(
        "resnet_stride", "auto", RESNET_STRIDES, "Where their bottlenecks stride. auto: where their framework's do."
    )
    absl_flags.DEFINE_float("epsilon", None, "Their batch norm's epsilon. Default: their framework's.", lower_bound=0.0)
    absl_flags.DEFINE_bool("backbone_only", False, "Leave the neck and the heads of a detector.")
    command.run(main)
