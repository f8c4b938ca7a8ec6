"""ScaleKD in a plain PyTorch training loop, with the packaged teacher of handwritten digits.

python examples/own_loop.py
"""

import timm
import torch
from torch.utils.data import DataLoader

from scalekd import ScaleKD
from scalekd.digits.images import MEAN, STD, Renderings, build_test_set, load_originals

config = {"mean": (MEAN,), "std": (STD,), "input_size": (1, 32, 32)}
small = {"layers": (1, 1), "channels": (48, 96), "stem_chs": 64, "stem_type": "deep"}
student = timm.create_model(
    "resnetv2_18", in_chans=1, num_classes=10, pretrained_cfg_overlay=config, **small
)

distiller = ScaleKD(teacher="scalekd_digits_swin", student=student, temperature=4.0)
optimizer = torch.optim.AdamW(distiller.parameters(), lr=2e-3)
distiller.train()
digits = Renderings(load_originals("train"), 32 * 300, seed=0)
for images, targets in DataLoader(digits, 32, shuffle=True):
    step = distiller(images, targets)
    optimizer.zero_grad()
    step.loss.backward()
    optimizer.step()

student.eval()
images, targets = build_test_set().tensors
with torch.no_grad():
    accuracy = (student(images).argmax(1) == targets).float().mean()
print(f"top-1 on the test images after 300 steps: {accuracy:.1%}; terms of the last step:")
print({name: round(term.item(), 3) for name, term in step.terms.items()})
