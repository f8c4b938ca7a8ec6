"""The import rule: which modules of the package a module may import, and what commands load."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scalekd
from scalekd.recipe import Data, Recipe
from scalekd.runs.folder import RunFolder

PACKAGE = Path(scalekd.__file__).parent

FLOORS = [
    {
        "errors",
        "features",
        "device",
        "flops",
        "signals",
        "notes",
        "text",
        "atomic_io",
        "reading",
        "kinds",
        "processes",
        "step",
        "drawing",
    },
    {"method", "networks", "baselines"},
    {"recipe", "digits"},
    {"cache", "distiller", "scale_kd", "fit"},
    {"data", "distributed", "runs"},
    {"training"},
    {"jobs"},
    {"compatibility", "estimating", "evaluation", "export", "analysis", "transfer"},
    {"cli"},
]
"""From the ground up. A module imports modules of its own room and of rooms on its own or a lower
floor."""

STRANGERS = {
    ("method", "networks"),
    ("method", "baselines"),
    ("networks", "method"),
    ("networks", "baselines"),
    ("baselines", "networks"),
}
"""Rooms of one floor that do not import each other."""


def floor_of(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"scalekd/{room} is on no floor: add it to FLOORS")


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of scalekd's modules in a file, also in functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; name the module"
            from_package = node.module == "scalekd"  # then the imported names may be modules
            names = [f"scalekd.{alias.name}" for alias in node.names] if from_package else []
            names = names or [node.module or ""]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("scalekd."))


def upward_imports() -> dict[str, str]:
    """Imports that break the rule, each with its line and the reason."""
    violations = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE.parent).as_posix()
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if room in ("__init__", "__main__"):  # the front doors, which no module imports
            continue
        for line, module in imported_modules(file):
            other = module.split(".")[1]
            reason = None
            if not any((PACKAGE / path).exists() for path in (other, f"{other}.py")):
                reason = "import the module that defines it, not the package"
            elif other != room and floor_of(other) > floor_of(room):
                reason = f"{other} is above {room}"
            elif (room, other) in STRANGERS:
                reason = f"{room} and {other} do not know each other"
            if reason:
                violations[f"{name} imports {module}"] = f"line {line}: {reason}"
    return violations


def test_no_module_imports_a_room_above_its_own() -> None:
    violations = upward_imports()
    found = [f"{what} ({violations[what]})" for what in sorted(violations)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os, scalekd.jobs.distill", ["scalekd.jobs.distill"]),
        ("from scalekd.runs.lock import NAME", ["scalekd.runs.lock"]),
        ("from scalekd import recipe, errors", ["scalekd.recipe", "scalekd.errors"]),
        ("def f():\n    from scalekd.training import run", ["scalekd.training"]),
        ("import scalekd\nimport scalekdx.jobs", []),
    ],
    ids=["import", "from module", "from package", "in a function", "others"],
)
def test_imports_are_found_wherever_they_are(tmp_path: Path, source: str, names: list[str]) -> None:
    (tmp_path / "module.py").write_text(source)
    assert [name for _, name in imported_modules(tmp_path / "module.py")] == names


TRAINERS = {
    "lightning",
    "lightning_fabric",
    "scalekd.training.loop",
    "scalekd.training.train",
    "scalekd.jobs",
}


@pytest.mark.parametrize(
    "command",
    [["runs", "run", "--json"], ["check", "--teacher", "test_vit", "--student", "test_resnet"]],
    ids=["runs", "check"],
)
def test_commands_that_do_not_train_load_no_trainer(tmp_path: Path, command: list[str]) -> None:
    """In a fresh interpreter, since this one has loaded everything."""
    RunFolder(tmp_path / "run").start(Recipe("swin", "resnet", Data("digits")), {}, [])
    script = f"""
import sys
from scalekd.cli.main import main
main({command!r})
loaded = sorted({TRAINERS!r} & set(sys.modules))
raise SystemExit(f"loaded: {{loaded}}" if loaded else 0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "test_vit" in ended.stdout or "swin" in ended.stdout
