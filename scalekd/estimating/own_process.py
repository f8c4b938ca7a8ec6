"""A process of its own for what is measured: its memory is then that of a run."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from scalekd.errors import InputError
from scalekd.processes import end_with_parent

Measured = TypeVar("Measured")


def in_own_process(measure: Callable[[], Measured], images: int, remedy: str) -> Measured:
    """Call `measure`, which runs steps of so many images, in a new process.

    Raises:
        InputError: that of `measure`; or a step does not fit into this machine's memory, for which
            `remedy` says what to do; or the process ended before it was done.
    """
    spawn = multiprocessing.get_context("spawn")
    too_large = f"a step of {images} images does not fit into this machine's memory"
    with ProcessPoolExecutor(1, spawn, initializer=end_with_parent) as pool:
        try:
            return pool.submit(measure).result()
        except torch.OutOfMemoryError as error:
            raise InputError(f"{too_large}: {remedy}") from error
        except BrokenProcessPool as error:
            raise InputError(
                f"the process that measures a step ended before it was done. Either {too_large}: "
                f"{remedy}. Or a Python script estimates outside of `if __name__ == "
                '"__main__":`, which a new process needs: put the call there'
            ) from error
