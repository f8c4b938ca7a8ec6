"""The structure of the released code, for comparison: the same losses with more work.

Each view has its own passes, even where the weight of its term is 0; the alternative view
multiplies by the matrices of a discrete cosine transform; the projector's own queries are repeated
over the batch before they are projected; attention stores its matrix; logits go through a softmax
and then a logarithm.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.features import Features
from scalekd.method import CrossAttentionProjector, LossWeights, ScaleKDLoss
from scalekd.method.perception import Tail


class ReleasedStructure(nn.Module):
    """Computes the terms of a `ScaleKDLoss`, with its projectors, as the released code does.

    Args:
        loss: The loss, with projectors for every view of the stages that it has.
        weights: Weights of the terms; terms of weight 0 are computed, too.
        grid: (H, W) of the teacher's final feature.
    """

    def __init__(self, loss: ScaleKDLoss, weights: LossWeights, grid: tuple[int, int]) -> None:
        super().__init__()
        self.loss, self.weights = loss, weights
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", _cosines(grid[0]), persistent=False)
        self.register_buffer("columns", _cosines(grid[1]), persistent=False)

    def forward(self, student: Features, teacher: Features, tail: Tail) -> dict[str, Tensor]:
        """The weighted terms by name; the arguments are those of `ScaleKDLoss.forward`."""
        terms: dict[str, Tensor] = {}
        for view in ("original", "alternative"):
            z: Tensor | None = None
            if self.loss.penultimate:
                assert student.penultimate is not None
                z = tail(_project(self.loss.penultimate[view], student.penultimate, None))
                terms[f"tpp_{view}"] = self._compare(view, z, teacher.final)
            w = _project(self.loss.final[view], student.final, z)
            terms[f"final_{view}"] = self._compare(view, w, teacher.final)
        if self.weights.logits:
            assert student.logits is not None
            assert teacher.logits is not None
            terms["logits"] = self._distil(student.logits, teacher.logits)
        return {name: getattr(self.weights, name) * term for name, term in terms.items()}

    def _compare(self, view: str, tokens: Tensor, target: Tensor) -> Tensor:
        projected = tokens.transpose(1, 2).unflatten(2, target.shape[2:])
        if view == "alternative":
            projected, target = map(self._without_direct_component, (projected, target))
        s, t = (
            F.normalize(x.flatten(2).transpose(1, 2), dim=-1, eps=1e-12)
            for x in (projected, target)
        )
        return F.mse_loss(s, t, reduction="sum") / len(tokens)

    def _without_direct_component(self, maps: Tensor) -> Tensor:
        rows, columns = self.rows.to(maps), self.columns.to(maps)
        spectrum = rows @ maps @ columns.T
        mask = torch.ones_like(spectrum)
        mask[:, :, 0, 0] = 0
        return rows.T @ (spectrum * mask) @ columns

    def _distil(self, student: Tensor, teacher: Tensor) -> Tensor:
        t = self.loss.temperature
        logarithm = torch.log(F.softmax(student / t, dim=1))
        return -(t**2) * (F.softmax(teacher / t, dim=1) * logarithm).sum(1).mean()


def disable_fused_attention(model: nn.Module) -> None:
    """Let a timm model's attention store its matrix, as the released code's teacher does."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _project(cap: nn.Module, features: Tensor, query: Tensor | None) -> Tensor:
    assert isinstance(cap, CrossAttentionProjector)
    if query is None:
        assert cap.own_query is not None
        query = cap.own_query.repeat(len(features), 1, 1)
    keys = (cap.stem(features) + cap.position).flatten(2).transpose(1, 2)
    q, k, v = (
        x.unflatten(2, (cap.heads, -1)).transpose(1, 2)
        for x in (cap.to_query(cap.query_stem(query)), cap.to_key(keys), cap.to_value(keys))
    )
    weights = torch.softmax(q @ k.transpose(2, 3) * cap.scale, dim=-1)
    y = cap.norm(cap.to_output((weights @ v).transpose(1, 2).flatten(2)))
    out: Tensor = y + cap.feed_forward(y)
    return out


def _cosines(length: int) -> Tensor:
    """The matrix of the orthonormal DCT-II: row u is the cosine of frequency u."""
    u, x = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
    matrix = torch.cos(math.pi * (x.double() + 0.5) * u / length) * math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix
