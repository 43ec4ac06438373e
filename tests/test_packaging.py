"""The wheel holds every module, each can be imported outside the repository, and it requires a pair of versions."""

from __future__ import annotations

import email
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build_wheel(folder: pathlib.Path, tf: str = "") -> pathlib.Path:
    """Builds the wheel, with `tf` as the environment variable TF; returns where it is unpacked."""
    source, unpacked = (folder / name for name in ("source", "unpacked"))
    shutil.copytree(
        ROOT,
        source,
        ignore=lambda folder, names: (
            {name for name in names if name not in ("input", "model", "trainer") and not (ROOT / name).is_file()}
            if pathlib.Path(folder) == ROOT
            else {"__pycache__"}
        ),
    )
    # Calls the build backend directly: nothing is downloaded, and nothing is left in the repository.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    built = subprocess.run(
        [sys.executable, "-c", build, folder], cwd=source, capture_output=True, text=True, env={**os.environ, "TF": tf}
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def required_pair(unpacked: pathlib.Path, python: str) -> set[str]:
    """What the wheel and its extras require on a version of Python, of TensorFlow, Keras and Addons."""
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    requirements = map(Requirement, email.message_from_string(metadata.read_text()).get_all("Requires-Dist", []))
    environments = [{"python_version": python, "extra": extra} for extra in ("", "test", "and-cuda")]
    return {
        str(item).partition(";")[0]
        for item in requirements
        if item.name in ("tensorflow", "tf-keras", "tensorflow-addons")
        and (item.marker is None or any(map(item.marker.evaluate, environments)))
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


FIRST_PAIR = {"tensorflow==2.15.1", "tensorflow[and-cuda]==2.15.1", "tensorflow-addons==0.23.0"}
SECOND_PAIR = {"tensorflow==2.21.0", "tensorflow[and-cuda]==2.21.0", "tf-keras==2.21.0"}


def test_python_chooses_the_pair_of_versions(wheel):
    for python in ("3.9", "3.10", "3.11"):
        assert required_pair(wheel, python) == FIRST_PAIR
    for python in ("3.12", "3.13"):
        assert required_pair(wheel, python) == SECOND_PAIR


def test_the_variable_tf_chooses_the_pair_of_versions(tmp_path):
    assert required_pair(build_wheel(tmp_path, tf="2.21"), "3.11") == SECOND_PAIR
    refused = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TF": "2.16"},
    )
    assert "TF=2.16: use 2.15 or 2.21." in refused.stderr


def test_wheel_imports_outside_the_repository(wheel, tmp_path):
    unpacked, elsewhere = wheel, tmp_path

    files = [
        *ROOT.glob("*.py"),
        *(path for room in ("input", "model", "trainer") for path in (ROOT / room).rglob("*.py")),
    ]
    files = {str(path.relative_to(ROOT)) for path in files} - {"setup.py"}
    assert {str(path.relative_to(unpacked)) for path in unpacked.rglob("*.py")} == files

    modules = sorted(file[:-3].replace("/", ".").removesuffix(".__init__") for file in files)
    code = """
import importlib, sys
unpacked, *modules = sys.argv[1:]
sys.path.insert(0, unpacked)
for name in modules:
    path = importlib.import_module(name).__file__
    assert path.startswith(unpacked), f"{name} comes from {path}"
"""
    # The converter has its own process, since two commands may define a flag of the same name.
    for names in ([name for name in modules if name != "prepare_tfrecords"], ["prepare_tfrecords"]):
        # -I: neither the current folder nor PYTHONPATH leads back to the repository.
        imported = subprocess.run(
            [sys.executable, "-I", "-c", code, unpacked, *names], cwd=elsewhere, capture_output=True, text=True
        )
        assert imported.returncode == 0, imported.stderr
