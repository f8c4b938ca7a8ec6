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


def seed_all(*numbers: int) -> None:
    """Seed the global generators of python, numpy and torch by all of `numbers`."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    seed_generators(int.from_bytes(digest, "little"))


def seed_generators(seed: int) -> None:
    """Seed the global generators of python, numpy and torch by `seed` itself."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- timm draws from it
    torch.manual_seed(seed)
