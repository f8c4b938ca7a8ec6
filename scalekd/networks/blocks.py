"""The repeated blocks of a network: what is worth compiling, sharding or running on its own."""

from collections import Counter

from torch import nn


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The innermost repeated parts, each of several modules: residual blocks, transformer layers.

    Repeated are those of a class that stands several times in a Sequential or ModuleList.
    """
    containers = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    parts = dict.fromkeys(part for c in containers for part in c if [*part.children()])
    count = Counter(map(type, parts))
    repeated = {part: None for part in parts if count[type(part)] > 1}
    return [
        part for part in repeated if not any(p in repeated for p in part.modules() if p is not part)
    ]
