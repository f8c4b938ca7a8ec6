"""What holds for every test: a cache folder of its own, no process that outlives it, and no warning
that it does not name."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import kill_what_is_left
from helpers.warned import no_unexpected_warning
from hypothesis import HealthCheck, settings

# A loaded machine is slow, and no fault of what is tested.
settings.register_profile("scalekd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("scalekd")


@pytest.fixture(autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or leaves an index of tar files in the user's own cache folder."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "scalekd"


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    kill_what_is_left()


@pytest.fixture(autouse=True)
def _no_unexpected_warning() -> Iterator[None]:
    with no_unexpected_warning():
        yield
