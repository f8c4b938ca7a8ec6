"""The shares of a batch."""

import pytest

from scalekd.data.sampler import ResumableBatchSampler


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_ranks_learn_together_from_the_batches_of_one(ranks: int, parts: int, start: int) -> None:
    alone = list(
        ResumableBatchSampler(
            images=50, images_per_epoch=40, batch_size=16, seed=3, epochs=2, start_step=start
        )
    )
    shares = [
        list(
            ResumableBatchSampler(
                images=50,
                images_per_epoch=40,
                batch_size=16,
                seed=3,
                epochs=2,
                start_step=start,
                micro_batches=parts,
                rank=r,
                world_size=ranks,
            )
        )
        for r in range(ranks)
    ]
    assert {len(share) for share in shares} == {len(alone) * parts}
    for step, batch in enumerate(alone):
        seen = [
            name for s in shares for part in s[step * parts : (step + 1) * parts] for name in part
        ]
        assert seen == batch
    assert all(len(part) == 16 // ranks // parts for share in shares for part in share)
    assert len(
        ResumableBatchSampler(
            images=50,
            images_per_epoch=40,
            batch_size=16,
            seed=3,
            epochs=2,
            start_step=start,
            micro_batches=parts,
            rank=0,
            world_size=ranks,
        )
    ) == len(shares[0])
