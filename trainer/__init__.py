"""Training, evaluation, export and prediction, composed of `input` and `model`."""

import os

# TensorFlow reads these when it starts, and every command imports this package first. The first hides start-up
# messages; the second keeps TensorFlow from taking all memory of a GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
