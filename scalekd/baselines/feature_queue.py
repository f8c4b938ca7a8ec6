"""A queue of the latest features, the same in all ranks, which a checkpoint holds."""

import torch
from torch import Tensor, distributed, nn


class FeatureQueue(nn.Module):
    """The latest features that were added, as rows; the oldest are replaced first.

    Rows that hold no feature yet are 0. The queue is a buffer, so that a run that resumes has the
    same one.

    Args:
        size: Number of rows.
        channels: Channels of a feature.

    Attributes:
        rows: The features (size, channels), in the order of their places.
        position: The place of the next feature, a whole number as a tensor.

    Example:
        >>> import torch
        >>> from scalekd.baselines.feature_queue import FeatureQueue
        >>> queue = FeatureQueue(3, channels=1)
        >>> queue.add(torch.tensor([[1.0], [2.0]]))
        >>> queue.add(torch.tensor([[3.0], [4.0]]))
        >>> queue.rows.flatten().tolist(), queue.is_filled().tolist()
        ([4.0, 2.0, 3.0], [True, True, True])
    """

    rows: Tensor
    position: Tensor

    def __init__(self, size: int, *, channels: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, channels))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def is_filled(self) -> Tensor:
        """Return which rows hold a feature, as (size,)."""
        return self.rows.any(1)

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Put features (N, channels) of every rank, rank 0's first, in the place of the oldest.

        All ranks must call it at once, with the same N. Of more features than there are rows, the
        last are kept. A feature that is non-finite counts as an empty row, because it would spoil
        every later step until it is replaced.
        """
        size = len(self.rows)
        latest = _of_all_ranks(features.to(self.rows.dtype))[-size:]
        finite = latest.isfinite().all(1, keepdim=True)
        places = (self.position + torch.arange(len(latest), device=latest.device)) % size
        self.rows.index_copy_(0, places, latest.where(finite, 0.0))
        self.position.copy_((self.position + len(latest)) % size)


def _of_all_ranks(features: Tensor) -> Tensor:
    """The features of all ranks (ranks x N, channels), rank 0's first."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return features
    gathered = [torch.empty_like(features) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, features.contiguous())
    return torch.cat(gathered)
