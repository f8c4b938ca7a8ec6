"""CITATION.cff names the paper, and the same version as the package."""

import tomllib
from pathlib import Path

import yaml

import scalekd

ROOT = Path(__file__).parents[2]


def test_the_citation_has_the_keys_that_its_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= set(paper)
    assert paper["title"] == "ScaleKD: Strong Vision Transformers Could Be Excellent Teachers"
    assert [author["family-names"] for author in paper["authors"]] == ["Fan", "Li", "Liu", "Yao"]
    assert paper["identifiers"][0]["value"] == "arXiv:2411.06786"


def test_version_and_licence_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"] == scalekd.__version__
    assert citation["license"] == project["license"]
