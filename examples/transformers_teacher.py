"""A vision transformer out of transformers as the teacher, a ResNet out of torchvision as student.

pip install transformers
python examples/transformers_teacher.py
"""

import torch
from torchvision.models import resnet18
from transformers import ViTConfig, ViTForImageClassification

from scalekd import HookedFeatures, InputConfig, ScaleKD

# A tiny one with random weights, so that this runs without a download, and ScaleKD warns rightly
# that it looks untrained. For pretrained weights replace the next two statements by
#     vit = ViTForImageClassification.from_pretrained("google/vit-base-patch16-224")
sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "image_size": 64}
vit = ViTForImageClassification(ViTConfig(**sizes, intermediate_size=128, num_labels=10))

# The tail is to be the last sixth of its blocks. Mean and std are its AutoImageProcessor's.
side, depth = vit.config.image_size, vit.config.num_hidden_layers
half = InputConfig(channels=3, size=(side, side), mean=(0.5,) * 3, std=(0.5,) * 3)
penultimate = f"vit.layers.{depth - 1 - max(1, depth // 6)}"
teacher = HookedFeatures(vit, penultimate, "vit.layernorm", half)

imagenet = InputConfig(3, (side, side), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
resnet = resnet18(num_classes=vit.config.num_labels)
student = HookedFeatures(resnet, "layer3", "layer4", imagenet)

distiller = ScaleKD(teacher=teacher, student=student).train()
print(f"the teacher's tail: {', '.join(distiller.teacher.tail_modules)}")

optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
for number in range(3):
    # Images normalised for the student; the teacher sees them at its own mean and std.
    images, targets = torch.randn(4, 3, side, side), torch.randint(0, vit.config.num_labels, (4,))
    step = distiller(images, targets)
    optimizer.zero_grad()
    step.loss.backward()
    optimizer.step()
    print(number, {name: round(term.item(), 3) for name, term in step.terms.items()})

plain = resnet18(num_classes=vit.config.num_labels)  # knows nothing of this package
plain.load_state_dict(distiller.student.model.state_dict())
