"""The examples in the docstrings of the transfers run."""

import doctest
from importlib import import_module

import pytest

MODULES = [
    "backbone",
    "segmentation.segmenter",
    "segmentation.inference",
    "segmentation.scores",
    "detection.masks",
    "detection.pyramid",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(name: str) -> None:
    result = doctest.testmod(import_module(f"scalekd.transfer.{name}"))
    assert result.attempted
    assert not result.failed
