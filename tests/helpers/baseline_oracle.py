"""The baselines' formulas written out with loops, in float64; nothing of the package is imported.

Tests compare the package with it, in values and gradients. It is slow on purpose.
"""

import math
from collections.abc import Mapping

import torch
from helpers.oracle import distance, logit_distillation, softmax, tokens_from_map
from torch import Tensor

Weights = Mapping[str, Tensor]

__all__ = [
    "batch_norm",
    "channel_correlations",
    "dist",
    "distance",
    "logit_distillation",
    "mean_over_space",
    "ofa",
    "pearson",
    "pointwise",
    "relations",
    "resize",
    "rsd_head",
    "smooth_l1",
    "softmax",
    "stage_head",
    "tokens_from_map",
]


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def mean_over_space(feature_map: Tensor) -> Tensor:
    _, _, height, width = feature_map.shape
    total = torch.zeros_like(feature_map[:, :, 0, 0])
    for y in range(height):
        for x in range(width):
            total = total + feature_map[:, :, y, x]
    return total / (height * width)


def resize(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear interpolation between cells' centres; outside of the outer centres, the edge."""
    _, _, height, width = feature_map.shape

    def neighbours(place: int, length: int, new_length: int) -> tuple[int, int, float]:
        at = max((place + 0.5) * length / new_length - 0.5, 0.0)
        low = min(int(at), length - 1)
        return low, min(low + 1, length - 1), at - low

    rows = []
    for y in range(grid[0]):
        y0, y1, fy = neighbours(y, height, grid[0])
        row = []
        for x in range(grid[1]):
            x0, x1, fx = neighbours(x, width, grid[1])
            above = (1 - fx) * feature_map[:, :, y0, x0] + fx * feature_map[:, :, y0, x1]
            below = (1 - fx) * feature_map[:, :, y1, x0] + fx * feature_map[:, :, y1, x1]
            row.append((1 - fy) * above + fy * below)
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def pointwise(feature_map: Tensor, weights: Weights, name: str) -> Tensor:
    """A 1x1 convolution, with a bias where there is one."""
    weight = weights[f"{name}.weight"][:, :, 0, 0]
    bias = weights.get(f"{name}.bias", torch.zeros(len(weight), dtype=torch.float64))
    _, _, height, width = feature_map.shape
    rows = []
    for y in range(height):
        row = [feature_map[:, :, y, x] @ weight.T + bias for x in range(width)]
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of two vectors."""
    a, b = a - a.sum() / len(a), b - b.sum() / len(b)
    return (a * b).sum() / torch.sqrt((a * a).sum() * (b * b).sum())


def dist(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """inter and intra of the logits (N, classes), without their weights."""
    p_s = torch.stack([softmax(row / temperature) for row in s])
    p_t = torch.stack([softmax(row / temperature) for row in t])
    images, classes = s.shape
    inter, intra = zero(), zero()
    for n in range(images):
        inter = inter + pearson(p_s[n], p_t[n]) / images
    for c in range(classes):
        intra = intra + pearson(p_s[:, c], p_t[:, c]) / classes
    return temperature**2 * (1 - inter), temperature**2 * (1 - intra)


def ofa(z: Tensor, t: Tensor, labels: list[int], exponent: float, temperature: float) -> Tensor:
    total = zero()
    for n, label in enumerate(labels):
        p = softmax(z[n] / temperature)
        p_t = softmax(t[n] / temperature)
        for c in range(z.shape[1]):
            m = 1.0 if c == label else 0.0
            total = total - ((p_t[c] + m) ** exponent - m) * torch.log(p[c])
    return total / len(labels)


def batch_norm(values: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Of the batch, over all dimensions but the second."""
    channels = []
    for c in range(values.shape[1]):
        x = values[:, c]
        mean = x.sum() / x.numel()
        variance = ((x - mean) ** 2).sum() / x.numel()
        channels.append((x - mean) / torch.sqrt(variance + 1e-5) * gain[c] + shift[c])
    return torch.stack(channels, 1)


def depthwise3x3(feature_map: Tensor, weight: Tensor, stride: int) -> Tensor:
    _, channels, height, width = feature_map.shape
    maps = []
    for c in range(channels):
        rows = []
        for row in range(0, height, stride):
            cells = []
            for column in range(0, width, stride):
                total = torch.zeros_like(feature_map[:, 0, 0, 0])
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, x = row + dy, column + dx
                        if 0 <= y < height and 0 <= x < width:
                            w = weight[c, 0, dy + 1, dx + 1]
                            total = total + w * feature_map[:, c, y, x]
                cells.append(total)
            rows.append(torch.stack(cells, -1))
        maps.append(torch.stack(rows, -2))
    return torch.stack(maps, 1)


def stage_head(feature_map: Tensor, weights: Weights, strides: list[int]) -> Tensor:
    """Separable convolutions with these strides, the mean over space, a linear layer."""
    x = feature_map
    for number, stride in enumerate(strides):
        x = depthwise3x3(x, weights[f"{number}.0.weight"], stride)
        x = batch_norm(x, weights[f"{number}.1.weight"], weights[f"{number}.1.bias"])
        x = torch.where(x > 0, x, torch.zeros_like(x))
        x = pointwise(x, weights, f"{number}.3")
        x = batch_norm(x, weights[f"{number}.4.weight"], weights[f"{number}.4.bias"])
        x = torch.where(x > 0, x, torch.zeros_like(x))
    last = len(strides) + 2
    return mean_over_space(x) @ weights[f"{last}.weight"].T + weights[f"{last}.bias"]


def rsd_head(f: Tensor, weights: Weights) -> Tensor:
    x = f @ weights["head.0.weight"].T + weights["head.0.bias"]
    x = batch_norm(x, weights["head.1.weight"], weights["head.1.bias"])
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x @ weights["head.3.weight"].T + weights["head.3.bias"]


def channel_correlations(student: Tensor, teacher: Tensor) -> dict[tuple[int, int], Tensor]:
    """P_ij of the teacher's channel i and the student's channel j, over the images."""
    correlations = {}
    for i in range(teacher.shape[1]):
        for j in range(student.shape[1]):
            correlations[i, j] = pearson(teacher[:, i], student[:, j])
    return correlations


def unit(vector: Tensor) -> Tensor:
    return vector / torch.sqrt((vector**2).sum())


def divergence(p_t: Tensor, p_s: Tensor) -> Tensor:
    total = zero()
    for k in range(len(p_t)):
        total = total + p_t[k] * torch.log(p_t[k] / p_s[k])
    return total


def relations(
    students: Tensor, teachers: Tensor, others: tuple[Tensor, Tensor], tau: float
) -> Tensor:
    """The mean over vectors of KL between the softmaxes of their similarities to others.

    Args:
        students: The student's vectors (M, C).
        teachers: The teacher's vectors (M, C').
        others: What the student's and the teacher's are compared with, (K, C) and (K, C').
        tau: The temperature.
    """
    total = zero()
    for u_s, u_t in zip(students, teachers, strict=True):
        s = torch.stack([(unit(u_s) * unit(q)).sum() / tau for q in others[0]])
        t = torch.stack([(unit(u_t) * unit(q)).sum() / tau for q in others[1]])
        total = total + divergence(softmax(t), softmax(s))
    return total / len(students)


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    total = zero()
    for x in (a - b).flatten():
        total = total + (0.5 * x**2 if x.abs() < 1 else x.abs() - 0.5)
    return total / a.numel()
