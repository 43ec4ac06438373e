"""Training, evaluation, export and prediction, composed of `input` and `model`."""

import os

from input import legacy_keras as legacy_keras

# TensorFlow reads these when it starts, and every command imports this package first. The first hides what its C++ part
# logs (at 2 every start still shows three false errors about CUDA; true errors are raised as exceptions all the same);
# the second keeps TensorFlow from taking all memory of a GPU; the third gives each GPU threads of its own to launch
# kernels, so that the input pipeline's threads do not delay them. What the user has set stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("TF_GPU_THREAD_MODE", "gpu_private")
