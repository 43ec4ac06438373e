"""Imports run one way, entry files -> trainer -> model -> input -> TensorFlow; and what else each room may know."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("input", "model", "trainer")  # from the lowest up
CONVERTER = "input.conversion"  # stands above the rest of `input`
ABOVE_CONVERTER = {"prepare_tfrecords", "trainer.demo"}  # its command, and what chooses the flags of this command
COMMANDS = {
    "prepare_tfrecords",
    "trainer.task",
    "trainer.evaluate",
    "trainer.compare",
    "trainer.export",
    "trainer.import_weights",
    "trainer.predict",
    "trainer.preview",
    "trainer.demo",
    "trainer.data_service",
}
TFA_CALL_SITES: set[str] = set()


def modules(root: pathlib.Path) -> dict[str, ast.Module]:
    """Every module of the project by its dotted name; a package's `__init__` by the package's name."""
    paths = [*root.glob("*.py"), *(path for room in ROOMS for path in (root / room).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in paths}
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8"))
        for path, name in names.items()
        if name != "setup"
    }


def imports(tree: ast.AST):
    """(dotted name, line) of each import; `from a import b` counts as a.b. Relative imports keep their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def floor(name: str) -> int:
    """How high up a module lives; the files at the top level stand above all rooms."""
    room = name.split(".")[0]
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def in_converter(name: str) -> bool:
    return f"{name}.".startswith(f"{CONVERTER}.")


def project_imports(name: str, project: dict[str, ast.Module]):
    """(imported module of the project, line) for each import of `name`."""
    for imported, line in imports(project[name]):
        while imported and imported not in project:
            imported = imported.rpartition(".")[0]  # `from input.boxes import area` names a function
        if imported:
            yield imported, line


def upward(project: dict[str, ast.Module]) -> list[str]:
    """Imports that run against the direction; `flags` is for commands alone, the converter for its own."""

    def is_allowed(name: str, imported: str) -> bool:
        if imported == "flags":
            return name in COMMANDS
        if in_converter(imported):
            return in_converter(name) or name in ABOVE_CONVERTER
        return floor(imported) <= floor(name)

    return [
        f"{name}:{line} imports {imported}"
        for name in project
        for imported, line in project_imports(name, project)
        if not is_allowed(name, imported)
    ]


def bare_rooms(project: dict[str, ast.Module]) -> list[str]:
    """`import input` or `import input.boxes`: hides the builtin. Relative imports: hide which room is meant."""
    return [
        f"{name}:{node.lineno}"
        for name, tree in project.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] in ROOMS for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.level)
    ]


@pytest.fixture(scope="module")
def project():
    found = modules(ROOT)
    assert {"input.config", "model.config", "trainer.config", "flags", "prepare_tfrecords"} <= set(found)
    return found


def test_no_import_runs_back_up(project):
    assert upward(project) == []


def test_the_host_stage_and_the_device_stage_do_not_import_each_other(project):
    stages = {"input.augment", "input.batch_augment"}
    for name in stages:
        assert stages.isdisjoint(imported for imported, _ in project_imports(name, project))


def test_no_circles(project):
    graph = {name: {imported for imported, _ in project_imports(name, project)} - {name} for name in project}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_rooms_are_imported_by_their_modules(project):
    tests = {f"tests.{path.stem}": ast.parse(path.read_text("utf-8")) for path in (ROOT / "tests").glob("*.py")}
    benchmarks = {
        f"benchmarks.{path.stem}": ast.parse(path.read_text("utf-8")) for path in ROOT.glob("benchmarks/*.py")
    }
    assert bare_rooms({**project, **tests, **benchmarks}) == []


def test_only_commands_read_flags(project):
    readers = {name for name, tree in project.items() for imported, _ in imports(tree) if imported == "absl.flags"}
    assert readers - COMMANDS == {"flags"}


def test_a_module_that_others_import_imports_no_flags_at_its_top(project):
    imported = {target for name in project for target, _ in project_imports(name, project)}
    for name in imported & COMMANDS:
        top = ast.Module([node for node in project[name].body if not isinstance(node, ast.FunctionDef)], [])
        assert "flags" not in {target for target, _ in imports(top)}, f"{name} is imported by others"


def test_tensorflow_addons_is_imported_where_we_know_of_it(project):
    users = {
        name
        for name, tree in project.items()
        for imported, _ in imports(tree)
        if imported.startswith("tensorflow_addons")
    }
    assert users == TFA_CALL_SITES


@pytest.mark.parametrize("command", ["prepare_tfrecords", "trainer.task", "trainer.preview"])
def test_help_does_not_wait_for_tensorflow(command):
    """In a fresh interpreter, since this one has TensorFlow already."""
    code = f"""
import importlib, sys
for name in ("input.config", "model.config", "trainer.config", {command!r}):
    importlib.import_module(name)
    if "tensorflow" in sys.modules: sys.exit(f"{{name}} imports TensorFlow")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("path", "source", "finder"),
    [
        ("input/boxes.py", "from model import losses", upward),
        ("input/boxes.py", "from input.conversion import voc", upward),
        ("model/losses.py", "def f():\n    from trainer.step import train_step", upward),
        ("trainer/step.py", "import prepare_tfrecords", upward),
        ("trainer/step.py", "import flags", upward),
        ("trainer/step.py", "import input.boxes", bare_rooms),
        ("trainer/step.py", "from . import task", bare_rooms),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, path, source, finder):
    files = (
        "input/boxes.py",
        "input/conversion/voc.py",
        "model/losses.py",
        "trainer/step.py",
        "trainer/task.py",
        "flags.py",
    )
    for file in (*files, "prepare_tfrecords.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text("from input import boxes\n" if file == "trainer/step.py" else "")
    assert finder(modules(tmp_path)) == []
    (tmp_path / path).write_text(source)
    assert len(finder(modules(tmp_path))) == 1
