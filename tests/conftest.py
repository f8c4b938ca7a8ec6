"""What holds for every test: a cache folder of its own, and no warning that it does not name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.warned import no_unexpected_warning


@pytest.fixture(autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or leaves an index of tar files in the user's own cache folder."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "scalekd"


@pytest.fixture(autouse=True)
def _no_unexpected_warning() -> Iterator[None]:
    with no_unexpected_warning():
        yield
