"""Images in batches, loaded by threads while the model computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def load_batches(
    load: Callable[[int], Item], count: int, batch_size: int, threads: int
) -> Iterator[list[Item]]:
    """Load items by their number, in order; one batch is loaded ahead.

    Args:
        load: loads the item of a number; called by several threads at once.
        count: how many items there are.
        batch_size: items in each batch but the last.
        threads: how many load.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = None
        for start in range(0, count, batch_size):
            loading = [pool.submit(load, i) for i in range(start, min(start + batch_size, count))]
            if waiting is not None:
                yield [item.result() for item in waiting]
            waiting = loading
        if waiting is not None:
            yield [item.result() for item in waiting]
    finally:
        pool.shutdown(cancel_futures=True)
