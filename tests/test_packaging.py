"""The wheel holds every module, and each can be imported outside the repository."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_wheel_imports_outside_the_repository(tmp_path):
    source, unpacked, elsewhere = (tmp_path / name for name in ("source", "unpacked", "elsewhere"))
    elsewhere.mkdir()
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
    built = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)

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
