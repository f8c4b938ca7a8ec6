"""A second implementation of the method, formula by formula, which imports nothing of the package.

Plain functions in float64 over a dictionary of weights, whose names are the package's; a loop
wherever a formula has an index. It is slow on purpose: tests compare the package with it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
StemNorm = Literal["batch", "running", "channel"]

EPS = 1e-5
"""Added to the variance in batch norm and layer norm."""


def tokens_from_map(feature_map: Tensor) -> Tensor:
    """A map (N, C, H, W) as tokens (N, H*W, C), row by row."""
    n, c, h, w = feature_map.shape
    rows = [feature_map[:, :, y, x] for y in range(h) for x in range(w)]
    return torch.stack(rows, 1).reshape(n, h * w, c)


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max())
    return e / e.sum()


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Layer norm over the last dimension."""
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / torch.sqrt(variance + EPS) * gain + shift


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution with stride 1 and zero padding."""
    n, _, h, w = x.shape
    images = []
    for i in range(n):
        pixels = []
        for row in range(h):
            for column in range(w):
                total = bias
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, z = row + dy, column + dx
                        if 0 <= y < h and 0 <= z < w:
                            total = total + weight[:, :, dy + 1, dx + 1] @ x[i, :, y, z]
                pixels.append(total)
        images.append(torch.stack(pixels, 1).reshape(-1, h, w))
    return torch.stack(images)


def stem_norm(x: Tensor, weights: Weights, norm: StemNorm) -> Tensor:
    """Batch norm (of the batch or with running statistics), or layer norm over channels."""
    gain, shift = weights["stem.1.weight"], weights["stem.1.bias"]
    channels = []
    if norm == "channel":
        return layer_norm(x.permute(0, 2, 3, 1), gain, shift).permute(0, 3, 1, 2)
    for c in range(x.shape[1]):
        values = x[:, c]
        if norm == "batch":
            mean = values.sum() / values.numel()
            variance = ((values - mean) ** 2).sum() / values.numel()
        else:
            mean, variance = weights["stem.1.running_mean"][c], weights["stem.1.running_var"][c]
        channels.append((values - mean) / torch.sqrt(variance + EPS) * gain[c] + shift[c])
    return torch.stack(channels, 1)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, sharpness: float) -> Tensor:
    n, queries, channels = q.shape
    d = channels // heads
    images = []
    for i in range(n):
        tokens = []
        for j in range(queries):
            parts = []
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                scores = k[i, :, part] @ q[i, j, part] * sharpness / math.sqrt(d)
                parts.append(softmax(scores) @ v[i, :, part])
            tokens.append(torch.cat(parts))
        images.append(torch.stack(tokens))
    return torch.stack(images)


def projector(
    weights: Weights,
    x: Tensor,
    query: Tensor | None,
    heads: int,
    norm: StemNorm = "batch",
    sharpness: float = 5.0,
) -> Tensor:
    """CAP: cross-attention of `query`, or the projector's own where it is None, over `x`."""
    if query is None:
        query = torch.stack([weights["own_query"]] * len(x))
    p = relu(stem_norm(conv3x3(x, weights["stem.0.weight"], weights["stem.0.bias"]), weights, norm))
    t = tokens_from_map(p + weights["position"])
    q = linear(relu(linear(query, weights, "query_stem.0")), weights, "to_query")
    k = linear(t, weights, "to_key")
    v = linear(t, weights, "to_value")
    o = linear(attention(q, k, v, heads, sharpness), weights, "to_output")
    y = layer_norm(o, weights["norm.weight"], weights["norm.bias"])
    hidden = relu(linear(y, weights, "feed_forward.0"))
    return y + linear(hidden, weights, "feed_forward.2")


def dct_matrix(length: int) -> Tensor:
    """The matrix of the orthonormal DCT-II: row u is the cosine of frequency u."""
    matrix = torch.zeros(length, length, dtype=torch.float64)
    for u in range(length):
        size = math.sqrt((1.0 if u == 0 else 2.0) / length)
        for x in range(length):
            matrix[u, x] = size * math.cos(math.pi * (x + 0.5) * u / length)
    return matrix


def without_direct_component(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse DCT of each channel's 2-D DCT, whose coefficient (0, 0) is set to 0."""
    rows, columns = dct_matrix(grid[0]), dct_matrix(grid[1])
    images = []
    for image in tokens:
        channels = []
        for c in range(image.shape[1]):
            spectrum = rows @ image[:, c].reshape(grid) @ columns.T
            mask = torch.ones_like(spectrum)
            mask[0, 0] = 0.0
            channels.append((rows.T @ (spectrum * mask) @ columns).reshape(-1))
        images.append(torch.stack(channels, 1))
    return torch.stack(images)


def distance(s: Tensor, t: Tensor) -> Tensor:
    total = torch.zeros((), dtype=s.dtype)
    for n in range(s.shape[0]):
        for i in range(s.shape[1]):
            a = s[n, i] / torch.sqrt((s[n, i] ** 2).sum())
            b = t[n, i] / torch.sqrt((t[n, i] ** 2).sum())
            total = total + ((a - b) ** 2).sum()
    return total / s.shape[0]


def logit_distillation(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=s.dtype)
    for n in range(s.shape[0]):
        p, q = softmax(t[n] / temperature), softmax(s[n] / temperature)
        total = total - (p * torch.log(q)).sum()
    return temperature**2 * total / s.shape[0]


@dataclass(frozen=True)
class StepInputs:
    """The inputs of one step: maps (N, C, H, W), logits (N, classes), and a tail over tokens."""

    s3: Tensor
    s4: Tensor
    t4: Tensor
    student_logits: Tensor
    teacher_logits: Tensor
    tail: Callable[[Tensor], Tensor]


def scalekd(
    weights: Weights,
    step: StepInputs,
    heads: tuple[int, int],
    term_weights: Mapping[str, float],
    temperature: float,
    norm: StemNorm = "batch",
) -> dict[str, Tensor]:
    """The weighted terms by name, without those of weight 0."""

    def cap(stage: str, view: str) -> Weights:
        prefix = f"{stage}.{view}."
        return {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}

    def in_view(tokens: Tensor, view: str) -> Tensor:
        grid = (step.t4.shape[2], step.t4.shape[3])
        return tokens if view == "original" else without_direct_component(tokens, grid)

    target = tokens_from_map(step.t4)
    terms = {}
    for view in ("original", "alternative"):
        z = None
        if term_weights[f"tpp_{view}"] > 0:
            z = step.tail(projector(cap("penultimate", view), step.s3, None, heads[0], norm))
            term = distance(in_view(z, view), in_view(target, view))
            terms[f"tpp_{view}"] = term_weights[f"tpp_{view}"] * term
        if term_weights[f"final_{view}"] > 0:
            w = projector(cap("final", view), step.s4, z, heads[1], norm)
            term = distance(in_view(w, view), in_view(target, view))
            terms[f"final_{view}"] = term_weights[f"final_{view}"] * term
    if term_weights["logits"] > 0:
        kd = logit_distillation(step.student_logits, step.teacher_logits, temperature)
        terms["logits"] = term_weights["logits"] * kd
    return terms
