"""Gives the test process two logical CPU devices, before TensorFlow starts."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The expected values are those of a CPU, and two test processes cannot share a GPU's memory.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest
import tensorflow as tf

from model import resnet
from trainer import reporting

_cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def two_replicas():
    """A MirroredStrategy over two CPU devices; it reduces on one, so that a process may have several strategies."""
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())


@pytest.fixture(scope="module")
def smallest_resnet18():
    """One block a stage instead of two: tracing takes most of the time of such tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.LAYOUTS, "resnet18", (False, (1, 1, 1, 1)))
        yield


@pytest.fixture(autouse=True)
def restore_globals():
    """A run sets what TensorFlow and the log keep for the whole process."""
    yield
    reporting.log.propagate = True  # to caplog
    tf.keras.mixed_precision.set_global_policy("float32")
    tf.config.run_functions_eagerly(False)
