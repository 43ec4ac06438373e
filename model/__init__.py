"""The RetinaNet network, its losses and its post-processing. It imports only from `input`."""

from input import legacy_keras as legacy_keras
