"""Makes `tf.keras` Keras 2, which the project is written for. Each folder imports this before TensorFlow.

TensorFlow 2.15 has Keras 2 itself. Later ones take Keras 3 when `tf.keras` is first used, unless this variable is set;
then they take the package `tf_keras`, which is Keras 2.
"""

import importlib.util
import os

if importlib.util.find_spec("tf_keras"):
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
