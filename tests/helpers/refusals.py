"""What every refusal must look like."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scalekd.errors import InputError


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """Expect an InputError of one line that contains all `parts`.

    Example:
        with refused("devices is 0", "1 or more"):
            check_devices(0)
    """
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
