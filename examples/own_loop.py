"""ScaleKD in a training loop of one's own: plain PyTorch and the packaged teacher.

python examples/own_loop.py
"""

import timm
import torch
from torch.utils.data import DataLoader

from scalekd import ScaleKD
from scalekd.digits.images import MEAN, STD, Renderings, build_test_set, load_originals

overlay = {"mean": (MEAN,), "std": (STD,), "input_size": (1, 32, 32)}
small = {"layers": (1, 1), "channels": (48, 96), "stem_chs": 64, "stem_type": "deep"}
student = timm.create_model(
    "resnetv2_18", in_chans=1, num_classes=10, pretrained_cfg_overlay=overlay, **small
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
    right = (student(images).argmax(1) == targets).float().mean()
print(f"after 300 steps: {right:.1%} of the test images right; last step's terms:")
print({name: round(term.item(), 3) for name, term in step.terms.items()})
