"""How far our networks are from torchvision's with the same weights, after `trainer.import_weights`.

`python benchmarks/parity_torch.py OUT` writes the weights and what torchvision makes of them, in PyTorch's environment.
Then, in ours:

`python -m benchmarks.parity OUT`

For each file it prints the largest difference of each output; the last line has all of them as JSON, with the largest
value of each output and its standard deviation.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow as tf

from input.anchors import make_anchors
from model import pretrained, retinanet
from model.config import ModelConfig
from trainer import checkpoints, import_weights, initial_weights
from trainer.config import Config, InputConfig, TrainConfig


def outputs_of(weights_path: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """What our network gives with an imported file, in torchvision's order of anchors and coordinates."""
    image_size = (images.shape[1], images.shape[2])
    weights = pretrained.load(weights_path)
    assert weights is not None
    origin = weights.origin
    if not origin.neck:
        backbone = retinanet.make_backbone(ModelConfig(backbone=origin.backbone, resnet_stride=origin.resnet_stride))
        inputs = tf.keras.Input((*image_size, 3))
        model = tf.keras.Model(inputs, backbone(inputs))
        for variable in backbone.variables:
            name = variable.name.removesuffix(":0").split("/", 1)[1]
            value = weights.arrays[f"backbone/{name}"]
            if name.endswith("moving_variance"):
                value = value + (origin.batch_norm_epsilon - backbone.epsilon)
            variable.assign(value)
        return dict(zip(("c3", "c4", "c5"), (feature.numpy() for feature in model(images))))
    labels = tuple(label or f"none {index}" for index, label in enumerate(origin.labels))
    config = Config(
        labels=labels,
        input=InputConfig(image_size=image_size),
        model=ModelConfig(backbone=origin.backbone),
        train=TrainConfig(init_checkpoint=weights_path),
    )
    with tempfile.TemporaryDirectory() as new_run:
        config, found = initial_weights.prepare(config, new_run)
    assert found is not None
    model = checkpoints.make_model(config)
    # The outputs that mean no class have a name here, so that they are compared too.
    found = found._replace(origin=dataclasses.replace(found.origin, labels=labels))
    taken, anew = initial_weights.load(model, found, labels)
    assert taken == len(model.variables), anew
    predictions = model(images)
    per_location = config.input.anchor.anchors_per_location
    theirs = [scale + 3 * (2 - ratio) for scale in range(3) for ratio in range(3)]  # of each of our anchors
    order = np.argsort(theirs)

    def reordered(values: np.ndarray) -> np.ndarray:
        *batch, anchors, last = values.shape
        return values.reshape(*batch, -1, per_location, last)[..., order, :].reshape(*batch, anchors, last)

    return {
        "class_logits": reordered(predictions.class_logits.numpy()),
        "box_deltas": reordered(predictions.box_deltas.numpy())[..., [1, 0, 3, 2]],
        "anchors": reordered(make_anchors(config.input.anchor, image_size))[:, [1, 0, 3, 2]],
    }


def main() -> None:
    results = {}
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.expected.npz")):
        name = path.name.removesuffix(".expected.npz")
        with tempfile.TemporaryDirectory() as folder:
            imported = f"{folder}/weights.safetensors"
            print("\n".join(import_weights.import_weights(str(path.with_name(f"{name}.safetensors")), imported)))
            with np.load(path) as expected:
                outputs = outputs_of(imported, expected["images"])
                for output, values in outputs.items():
                    difference = float(np.abs(values - expected[output]).max())
                    results[f"{name} {output}"] = {
                        "difference": difference,
                        "largest": float(np.abs(expected[output]).max()),
                        "spread": float(np.std(expected[output])),
                    }
                    print(f"{name} {output}: differs by {difference:.2g} at most", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
