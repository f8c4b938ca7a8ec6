"""The wheel and the source distribution hold what they need, and nothing else."""

import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("hatchling", reason="hatchling, of the extra dev, is not installed")


def packaged_files() -> set[str]:
    """All files of the package, but what Python leaves behind."""
    found = (file for file in (ROOT / "scalekd").rglob("*") if file.is_file())
    return {str(f.relative_to(ROOT)) for f in found if "__pycache__" not in f.parts}


def test_the_wheel_has_every_file_of_the_package_and_its_command(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
        commands = archive.read(entry_points).decode()
    assert {name for name in names if ".dist-info/" not in name} == packaged_files()
    assert {Path(name).suffix for name in names} >= {".py", ".yaml", ".safetensors", ".typed"}
    assert "scalekd = scalekd.cli.main:main" in commands
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_distribution_has_the_package_its_tests_and_its_pages(tmp_path: Path) -> None:
    from hatchling.builders.sdist import SdistBuilder

    (source,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert packaged_files() <= names
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "Makefile",
        "docs/conf.py",
        "docs/tutorials/photos.md",
        "examples/own_loop.py",
        "tests/package/test_wheel.py",
    ):
        assert name in names
    assert not [name for name in names if name.startswith((".venv", "runs", "docs/_build"))]
