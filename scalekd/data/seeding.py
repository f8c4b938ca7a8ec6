"""Random numbers that depend on where a run stands, never on how it came there.

Whatever draws from a global generator, a student's dropout or an image's augmentation, starts from
the numbers that name the step or the image. So nothing needs saving: a run that was killed goes on
with the draws that it would have had, with any number of loading processes.
"""

import hashlib
import random

import numpy as np
import torch


def seed_all(*numbers: int) -> None:
    """Seed the global generators of python, numpy and torch by all of `numbers`."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "little")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 -- what timm draws from
    torch.manual_seed(seed)
