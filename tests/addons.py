"""TensorFlow Addons, which some tests compare with. It goes with TensorFlow 2.15 only: without it they are skipped."""

from __future__ import annotations

import pytest

try:
    import tensorflow_addons as tfa
except ImportError:
    tfa = None

needs_addons = pytest.mark.skipif(tfa is None, reason="needs TensorFlow Addons, which go with TensorFlow 2.15 only")
