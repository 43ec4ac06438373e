"""Packaging. The modules keep the names that the commands use, so they are listed one by one."""

from pathlib import Path

from setuptools import setup

_BEAM = "apache-beam>=2.77; python_version >= '3.10'"

setup(
    name="retinanet-tf",
    version="0.1.0",
    description="Train a RetinaNet detector on a Pascal VOC-style dataset with TensorFlow.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=["input", "input.conversion", "model", "trainer"],
    py_modules=["flags", "prepare_tfrecords"],
    python_requires=">=3.9,<3.12",
    install_requires=[
        "tensorflow==2.15.1",
        "tensorflow-addons==0.23.0",  # no longer works on any later TensorFlow
        "numpy<2",
        "lxml",
        "protobuf>=4.25",  # tf.Example without importing TensorFlow; earlier versions crash on maps of messages
        "google-crc32c",  # the checksum of TFRecords, without the seconds that importing TensorFlow takes
        "absl-py",
        "tqdm",
        "Pillow>=10.1",  # the first whose default font scales
        "pycocotools",
        "PyYAML",
        "setuptools<81",  # TensorBoard 2.15 imports pkg_resources, which later ones no longer have
    ],
    extras_require={
        "and-cuda": ["tensorflow[and-cuda]==2.15.1"],
        "beam": [_BEAM],
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", _BEAM],
    },
)
