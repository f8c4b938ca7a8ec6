"""A custom module that is not in timm, as the teacher and as the student: docs/own-modules.md.

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


class Network(nn.Module):
    """Images 1x16x16 to features of width x 8x8 and 2 width x 4x4, and 10 logits."""

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


digits = load_digits()  # 1,797 images of 8x8 pixels with values from 0 to 16
images = F.interpolate(torch.tensor(digits.images[:, None] / 16).float(), Network.input.size)
images = (images - Network.input.mean[0]) / Network.input.std[0]
targets = torch.tensor(digits.target).long()


def train(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = torch.randint(0, 1000, (32,))
        optimizer.zero_grad()
        loss(images[batch], targets[batch]).backward()
        optimizer.step()


def accuracy(model: Network) -> float:
    with torch.no_grad():
        correct = model.eval()(images[1000:]).argmax(1) == targets[1000:]
    return correct.float().mean().item()


torch.manual_seed(0)
teacher, student = Network(32), Network(16)
train(teacher, lambda x, y: F.cross_entropy(teacher(x), y), 100)

distiller = ScaleKD(teacher=teacher, student=student).train()
train(distiller, lambda x, y: distiller(x, y).loss, 100)

print(f"the teacher's tail: {', '.join(distiller.teacher.tail_modules)}")
print(f"top-1 on 797 test digits: teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
