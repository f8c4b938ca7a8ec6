"""How far projected students are from their teacher in the alternative view, as in Figure 6.

The distance of an image is that of the loss, a mean over tokens instead of a sum:

    d_n = 1/L sum_l || s_nl / ||s_nl|| - t_nl / ||t_nl|| ||^2,

with s and t the tokens without their spatial mean. The picture shows the differences in the root,
as vectors of L C numbers, projected to their two main directions: the right singular vectors of all
of them together, not centred, so that no difference stays at the origin.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scalekd.analysis.results import AlternativeViews, Distances
from scalekd.analysis.run_pair import RunPair
from scalekd.method import alternative_view
from scalekd.method.mimicking import EPSILON
from scalekd.networks.layout import tokens_from_map

PROJECTED = 200
"""So many images at most are projected to two dimensions."""


def differences(student: Tensor, teacher: Tensor) -> Tensor:
    """Differences of unit-length tokens in the alternative view.

    Args:
        student, teacher: tokens (N, L, C).

    Returns:
        (N, L C), divided by sqrt(L): their squared lengths are the distances, from 0 to 4.
    """
    s, t = (
        F.normalize(alternative_view(tokens.float()), dim=-1, eps=EPSILON)
        for tokens in (student, teacher)
    )
    scaled: Tensor = (s - t).flatten(1) / s.shape[1] ** 0.5
    return scaled


@dataclass
class _Projector:
    """What is collected of one projector."""

    stage: str
    view: str
    distances: list[Tensor] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def collect_differences(pair: RunPair, batches: Iterable[Tensor]) -> list[_Projector]:
    """Distances of all images, and the first images' differences, by projector of a run.

    Of each view it is the final projector, or without one the tokens after the teacher's tail.

    Args:
        pair: the run.
        batches: images (N, channels, H, W), normalised for the student.
    """
    found: dict[str, _Projector] = {}
    distiller, images = pair.distiller, 0
    for batch in batches:
        student, teacher = distiller.student_extractor(batch), distiller.run_teacher(batch)
        for view in ("original", "alternative"):
            projected = dict(distiller.criterion.project(view, student, distiller.teacher.tail))
            for stage in ("final", "tpp"):
                if stage in projected:
                    vectors = differences(projected[stage], tokens_from_map(teacher.final)).cpu()
                    entry = found.setdefault(view, _Projector(stage, view))
                    entry.distances.append(vectors.square().sum(1))
                    entry.vectors.append(vectors[: max(0, PROJECTED - images)])
                    break
        images += len(batch)
    return list(found.values())


def project_to_plane(vectors: list[Tensor]) -> tuple[list[Tensor], float]:
    """Project sets of vectors (N, D) to the two main directions of all of them together.

    Returns:
        The projected sets (N, 2), and the share of the squared lengths that they keep.
    """
    together = torch.cat(vectors).double()
    gram = together @ together.T
    values, directions = torch.linalg.eigh(gram)
    values, directions = values.clamp(min=0), directions * values.clamp(min=0).sqrt()
    plane = directions[:, [-1, -2]] if len(values) > 1 else F.pad(directions, (0, 1))
    plane = plane * torch.where(plane.sum(0) < 0, -1, 1)  # an eigenvector's sign is arbitrary
    share = float(values[-2:].sum() / values.sum()) if values.sum() > 0 else 1.0
    return list(plane.split([len(v) for v in vectors])), share


def measure_distances(runs: list[tuple[RunPair, list[_Projector]]]) -> AlternativeViews:
    """Distances of the projectors of several runs, projected to one plane."""
    entries = [(pair, projector) for pair, found in runs for projector in found]
    planes, share = project_to_plane([torch.cat(entry.vectors) for _, entry in entries])
    measured = []
    for (pair, entry), plane in zip(entries, planes, strict=True):
        distances = torch.cat(entry.distances)
        weights = pair.distiller.criterion.weights
        measured.append(
            Distances(
                run=pair.name,
                view=entry.view,
                weight=getattr(weights, f"{entry.stage}_alternative"),
                stage=entry.stage,
                per_image=distances.tolist(),
                median=float(np.median(distances.numpy())),
                projected=plane.tolist(),
            )
        )
    return AlternativeViews(projected_share=share, distances=measured)
