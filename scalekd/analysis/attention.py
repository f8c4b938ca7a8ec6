"""Where the queries of a run's cross-attention projectors look in the student's feature map."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scalekd.analysis.results import ProjectorAttention, QueryMap
from scalekd.analysis.run_pair import RunPair

Grid = tuple[int, int]


def chosen_queries(grid: Grid) -> list[Grid]:
    """(row, column) of the queries that are shown: in the middle of each quarter of the grid."""
    rows, columns = ((length // 4, length - 1 - length // 4) for length in grid)
    return [(row, column) for row in sorted(set(rows)) for column in sorted(set(columns))]


def centres(grid: Grid) -> Tensor:
    """Places (row, column) of a grid's cells in the image, from 0 to 1, (rows columns, 2)."""
    rows, columns = ((torch.arange(length) + 0.5) / length for length in grid)
    return torch.cartesian_prod(rows, columns)


def relative_entropy(weights: Tensor) -> Tensor:
    """Entropy of weights (..., keys) that sum to 1, as a share of the entropy of equal weights."""
    if weights.shape[-1] == 1:
        return torch.zeros(weights.shape[:-1])
    entropy: Tensor = torch.special.entr(weights).sum(-1)
    return entropy / torch.log(torch.tensor(float(weights.shape[-1])))


def projector_attention(pair: RunPair, images: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Yield stage, view and attention weights (N, heads, queries, keys) of each projector.

    Args:
        pair: the run.
        images: (N, channels, H, W), normalised for the student.
    """
    distiller = pair.distiller
    criterion, tail = distiller.criterion, distiller.teacher.tail
    student = distiller.student_extractor(images)
    distiller.run_teacher(images)  # whose prefix tokens of these images the tail takes
    for view in ("original", "alternative"):
        if view in criterion.penultimate:
            projector: Any = criterion.penultimate[view]
            yield "tpp", view, projector.attention(student.penultimate)
        if view in criterion.final:
            projector = criterion.final[view]
            query = dict(criterion.project(view, student, tail)).get("tpp")
            yield "final", view, projector.attention(student.final, query)


@dataclass
class _Collected:
    """What is added up of one projector's attention."""

    heads: int
    query_grid: Grid
    key_grid: Grid
    images: int = 0
    entropy: float = 0.0
    distance: float = 0.0
    maps: list[list[QueryMap]] = field(default_factory=list)

    def add(self, weights: Tensor, shown: list[int]) -> None:
        """Add weights (N, heads, queries, keys); `shown` are numbers of images in this batch."""
        by_query = weights.mean(1)
        apart = torch.cdist(centres(self.query_grid), centres(self.key_grid))
        self.images += len(weights)
        self.entropy += float(relative_entropy(weights).mean((1, 2)).sum())
        self.distance += float((by_query * apart).sum(-1).mean(1).sum())
        for number in shown:
            maps = by_query[number].reshape(*self.query_grid, *self.key_grid)
            chosen = chosen_queries(self.query_grid)
            self.maps.append([QueryMap(query=q, weights=maps[q].tolist()) for q in chosen])


@torch.no_grad()
def measure_attention(
    pair: RunPair, batches: Iterable[Tensor], shown: set[int]
) -> tuple[list[ProjectorAttention], list[Tensor]]:
    """Measure where the queries of a run's projectors look.

    Args:
        pair: the run.
        batches: images (N, channels, H, W), normalised for the student.
        shown: numbers of the images whose maps are kept.

    Returns:
        Of each projector, those of the penultimate feature first; and the images that are shown,
        (channels, H, W) each.
    """
    found: dict[tuple[str, str], _Collected] = {}
    student, teacher = pair.distiller.student_extractor.shapes, pair.distiller.teacher.shapes
    keys = {"tpp": student.penultimate, "final": student.final}
    queries = {"tpp": teacher.penultimate, "final": teacher.final}
    before, pictures = 0, list[Tensor]()
    for batch in batches:
        here = [n - before for n in sorted(shown) if before <= n < before + len(batch)]
        for stage, view, weights in projector_attention(pair, batch):
            key, query = keys[stage], queries[stage]
            assert key is not None, "a projector has a grid of keys"
            assert query is not None, "a projector has a grid of queries"
            entry = _Collected(weights.shape[1], query[1:], key[1:])
            found.setdefault((stage, view), entry).add(weights.float().cpu(), here)
        pictures += [batch[number].cpu() for number in here]
        before += len(batch)
    return [_result(*name, found[name]) for name in sorted(found, key=_order)], pictures


def _order(name: tuple[str, str]) -> tuple[bool, bool]:
    stage, view = name
    return stage != "tpp", view != "original"


def _result(stage: str, view: str, collected: _Collected) -> ProjectorAttention:
    apart = torch.cdist(centres(collected.query_grid), centres(collected.key_grid))
    return ProjectorAttention(
        stage=stage,
        view=view,
        heads=collected.heads,
        query_grid=collected.query_grid,
        key_grid=collected.key_grid,
        entropy=collected.entropy / collected.images,
        distance=collected.distance / collected.images,
        distance_uniform=float(apart.mean()),
        maps=collected.maps,
    )
