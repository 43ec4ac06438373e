"""From image files and annotations to batches and anchor targets. It imports nothing from `model` or `trainer`."""

from input import legacy_keras as legacy_keras
