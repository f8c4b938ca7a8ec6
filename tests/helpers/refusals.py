"""What every refusal must look like."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scalekd.errors import InputError


@contextmanager
def refused(*said: str) -> Iterator[None]:
    """`with refused("5", "24"):` an InputError of one line that holds these pieces."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(piece in message for piece in said), message
