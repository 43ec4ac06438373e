"""The settings of the smallest training run."""

import dataclasses

import toy_shards

from input.config import AnchorConfig, AugmentConfig, InputConfig
from model.config import DetectConfig, ModelConfig
from trainer.config import Config, OptimizerConfig, TrainConfig

CONFIG = Config(
    labels=toy_shards.LABELS,
    input=InputConfig(
        image_size=(32, 64),
        batch_size=2,
        max_boxes=3,
        shuffle_buffer=4,
        anchor=AnchorConfig(sizes=(8.0, 16.0, 32.0, 64.0, 128.0), scales=(1.0,)),
        augment=AugmentConfig.preset("default"),
    ),
    model=ModelConfig(backbone="resnet18", neck_filters=8, head_convs=1),
    detect=DetectConfig(score_threshold=0.005),
    train=TrainConfig(
        train_steps=6,
        steps_per_loop=2,
        eval_every=4,
        distribution="one_device",
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=0),
    ),
)


def config(train=None, **settings):
    """CONFIG with some settings replaced; `train` is a dict of those of its TrainConfig."""
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **(train or {})), **settings)
