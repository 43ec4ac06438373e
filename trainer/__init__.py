"""Training, evaluation, export and prediction: composes `input` and `model`."""

import os

# Read when TensorFlow starts, and every command passes here first: no start-up chatter, and no hold on all GPU memory.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
