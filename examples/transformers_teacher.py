"""A vision transformer from transformers as the teacher, a torchvision ResNet as the student.

pip install transformers
python examples/transformers_teacher.py
"""

import torch
from torchvision.models import resnet18
from transformers import ViTConfig, ViTForImageClassification

from scalekd import HookedFeatures, InputConfig, ScaleKD

# A tiny model with random weights, so that this runs without a download; ScaleKD warns that the
# teacher looks untrained. For pretrained weights replace the next two statements by
#     vit = ViTForImageClassification.from_pretrained("google/vit-base-patch16-224")
sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "image_size": 64}
vit = ViTForImageClassification(ViTConfig(**sizes, intermediate_size=128, num_labels=10))

# The tail will be the last sixth of the blocks. Mean and std are those of the AutoImageProcessor.
side, depth = vit.config.image_size, vit.config.num_hidden_layers
teacher_input = InputConfig(channels=3, size=(side, side), mean=(0.5,) * 3, std=(0.5,) * 3)
penultimate = f"vit.layers.{depth - 1 - max(1, depth // 6)}"
teacher = HookedFeatures(vit, penultimate, "vit.layernorm", teacher_input)

mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
student_input = InputConfig(channels=3, size=(side, side), mean=mean, std=std)
resnet = resnet18(num_classes=vit.config.num_labels)
student = HookedFeatures(resnet, "layer3", "layer4", student_input)

distiller = ScaleKD(teacher=teacher, student=student).train()
print(f"the teacher's tail: {', '.join(distiller.teacher.tail_modules)}")

optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
for step_number in range(3):
    # Images are normalised for the student; ScaleKD renormalises them for the teacher.
    images, targets = torch.randn(4, 3, side, side), torch.randint(0, vit.config.num_labels, (4,))
    step = distiller(images, targets)
    optimizer.zero_grad()
    step.loss.backward()
    optimizer.step()
    print(step_number, {name: round(term.item(), 3) for name, term in step.terms.items()})

plain = resnet18(num_classes=vit.config.num_labels)  # torchvision's class only
plain.load_state_dict(distiller.student.model.state_dict())
