"""The kernels that a GPU starts for a pass: one an operation, or fused ones of a compiler."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scalekd.estimating.operations import Kind, Operation, Work

FUSED_KINDS = Kind.BATCH_NORM, Kind.OTHER
"""What a compiler joins with its neighbours; each operation of another kind has its own kernel."""


@dataclass(frozen=True)
class Kernel:
    """What a GPU starts at once.

    Attributes:
        work: What it computes.
        traffic: Bytes that it reads and writes.
    """

    work: Work
    traffic: int


def eager_kernels(operations: Iterable[Operation]) -> Counter[Kernel]:
    """One kernel for each operation, which reads and writes all of its operands.

    Returns:
        How often each kernel is started.
    """
    return Counter(
        Kernel(operation.work, sum(operation.read.values()) + sum(operation.written.values()))
        for operation in operations
    )


def compiled_kernels(operations: Sequence[Operation]) -> Counter[Kernel]:
    """The kernels of a compiler that fuses all that stands between two products.

    A product, a convolution or an attention has a kernel of its own. The operations between two of
    them are one kernel, which reads once what comes from outside of it, and writes what is read
    after it. Convolutions are computed in channels_last.

    Returns:
        How often each kernel is started.
    """
    last_read: dict[int, int] = {}
    for index, operation in enumerate(operations):
        last_read.update(dict.fromkeys(operation.read, index))
    kernels: Counter[Kernel] = Counter()
    chain: list[Operation] = []
    for index, operation in enumerate(operations):
        if operation.work.kind in FUSED_KINDS:
            chain.append(operation)
            continue
        if chain:
            kernels[_fused(chain, index - 1, last_read)] += 1
            chain = []
        work = replace(operation.work, channels_last=True)
        kernels += eager_kernels([replace(operation, work=work)])
    if chain:
        kernels[_fused(chain, len(operations) - 1, last_read)] += 1
    return kernels


def _fused(chain: Sequence[Operation], end: int, last_read: dict[int, int]) -> Kernel:
    """The kernel of a chain whose last operation has the index `end`."""
    read: dict[int, int] = {}
    written: dict[int, int] = {}
    for operation in chain:
        for storage, size in operation.read.items():
            if storage not in written:
                read[storage] = max(read.get(storage, 0), size)
        for storage, size in operation.written.items():
            written[storage] = max(written.get(storage, 0), size)
    kept = sum(size for storage, size in written.items() if last_read.get(storage, -1) > end)
    return Kernel(Work(Kind.OTHER), sum(read.values()) + kept)
