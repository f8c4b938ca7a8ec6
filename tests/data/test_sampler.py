"""The shares of a batch."""

import pytest

from scalekd.data.sampler import ResumableBatchSampler


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_ranks_learn_together_from_the_batches_of_one(ranks: int, parts: int, start: int) -> None:
    alone = list(ResumableBatchSampler(50, 40, 16, 3, 2, start))
    shares = [
        list(ResumableBatchSampler(50, 40, 16, 3, 2, start, parts, r, ranks)) for r in range(ranks)
    ]
    assert {len(share) for share in shares} == {len(alone) * parts}
    for step, batch in enumerate(alone):
        seen = [
            name for s in shares for part in s[step * parts : (step + 1) * parts] for name in part
        ]
        assert seen == batch
    assert all(len(part) == 16 // ranks // parts for share in shares for part in share)
    assert len(ResumableBatchSampler(50, 40, 16, 3, 2, start, parts, 0, ranks)) == len(shares[0])
