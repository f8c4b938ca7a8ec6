"""Random numbers that depend on the position in a run, never on the history of a generator.

Code that draws from the global generators, such as a student's dropout or the augmentation of an
image, is seeded by the numbers that identify the step or the image. So no generator's state needs
saving: a run that was killed and resumes draws the same numbers as one that was not, with any
number of worker processes.
"""

import hashlib
import random

import numpy as np
import torch

from scalekd.device import best_device


def seed_all(*numbers: int) -> None:
    """Seed the generators of python, numpy and torch, on all devices, by all of `numbers`."""
    seed = hash_numbers(*numbers)
    if best_device().type == "cpu":
        _seed_cpu(seed)
    else:
        seed_generators(seed)


def seed_all_on_cpu(*numbers: int) -> None:
    """Seed the generators as `seed_all` does, but of torch's only the CPU's.

    For images, whose transforms draw on the CPU.
    """
    _seed_cpu(hash_numbers(*numbers))


def _seed_cpu(seed: int) -> None:
    """`torch.manual_seed` also records a stack trace for each kind of device that is not
    initialised, which takes longer than a small image's transform."""
    seed_python_and_numpy(seed)
    torch.default_generator.manual_seed(seed)


def seed_generators(seed: int) -> None:
    """Seed the global generators of python, numpy and torch, on all devices, by `seed` itself."""
    seed_python_and_numpy(seed)
    torch.manual_seed(seed)


def seed_python_and_numpy(seed: int) -> None:
    """Seed the global generators of python and numpy."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- timm draws from it


def hash_numbers(*numbers: int) -> int:
    """A seed of 32 bits that depends on all of `numbers`."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest(), "little")
