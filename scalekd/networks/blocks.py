"""The repeated blocks of a network: the units worth compiling, sharding or running separately."""

from collections import Counter

from torch import nn


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the innermost repeated blocks of `model`: residual blocks, transformer layers.

    A block is repeated if a Sequential or ModuleList holds it, it has children of its own, and
    another block of its class is held in the same way. A block that contains repeated blocks is
    not returned; they are.
    """
    containers = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    blocks = dict.fromkeys(block for c in containers for block in c if [*block.children()])
    count = Counter(map(type, blocks))
    repeated = {block: None for block in blocks if count[type(block)] > 1}
    return [
        block
        for block in repeated
        if not any(inner in repeated for inner in block.modules() if inner is not block)
    ]
