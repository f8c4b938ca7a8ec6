"""What the package asks of a network: its features in one pass, and of a teacher its tail.

Other rooms use the names listed here, and these modules directly:

- `build`: models by name; `build_without_weights` where only the structure matters.
- `input_config`: the images that a model takes; `renormalization` between two models.
- `feature_extractor`, `feature_selection`: both features and the logits of a timm model.
- `pretrained`: what was loaded into a model, and reading weights from files.
- `student`: rebuilding and exporting a student.
- `blocks`: the repeated blocks of a network.
- `paper`: the paper's pairs and what it reports of them.
- `teacher.frozen`, `teacher.reduced_copy`: the frozen teacher, and verifying one cheaply.
"""

from scalekd.networks.build import build_model
from scalekd.networks.feature_extractor import FeatureExtractor
from scalekd.networks.feature_selection import FeatureSelection
from scalekd.networks.hooked_features import HookedFeatures
from scalekd.networks.input_config import InputConfig, input_config
from scalekd.networks.protocol import OffersFeatures
from scalekd.networks.teacher.frozen import FrozenTeacher
from scalekd.networks.teacher.tail_inputs import CachedOutputs

__all__ = [
    "CachedOutputs",
    "FeatureExtractor",
    "FeatureSelection",
    "FrozenTeacher",
    "HookedFeatures",
    "InputConfig",
    "OffersFeatures",
    "build_model",
    "input_config",
]
