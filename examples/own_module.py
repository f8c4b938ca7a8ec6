"""A module that timm has never seen, as a teacher and as a student: docs/own-modules.md.

python examples/own_module.py
"""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd import Features, InputConfig, ScaleKD


def stage(channels: int, width: int) -> nn.Module:
    convolution = nn.Conv2d(channels, width, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))


class Own(nn.Module):
    """16x16 -> WIDTHx8x8 -> 2*WIDTHx4x4 -> 10 logits."""

    input = InputConfig(channels=1, size=(16, 16), mean=(0.3,), std=(0.35,))

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = stage(1, width), stage(width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def features(self, images: Tensor) -> Features:
        penultimate = self.first(images)
        final = self.last(penultimate)
        return Features(penultimate, final, self.head(final.mean((2, 3))))

    def forward(self, images: Tensor) -> Tensor | None:
        return self.features(images).logits


digits = load_digits()  # 1,797 of 8x8 pixels, of 0 to 16
images = F.interpolate(torch.tensor(digits.images[:, None] / 16).float(), Own.input.size)
images = (images - Own.input.mean[0]) / Own.input.std[0]
targets = torch.tensor(digits.target).long()


def train(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(steps):
        chosen = torch.randint(0, 1000, (32,))
        optimizer.zero_grad()
        loss(images[chosen], targets[chosen]).backward()
        optimizer.step()


def accuracy(model: Own) -> float:
    with torch.no_grad():
        right = model.eval()(images[1000:]).argmax(1) == targets[1000:]
    return right.float().mean().item()


torch.manual_seed(0)
teacher, student = Own(32), Own(16)
train(teacher, lambda x, y: F.cross_entropy(teacher(x), y), 100)

distiller = ScaleKD(teacher=teacher, student=student).train()
train(distiller, lambda x, y: distiller(x, y).loss, 100)

print(f"the teacher's tail: {', '.join(distiller.teacher.tail_modules)}")
print(f"right of 797 digits: teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
