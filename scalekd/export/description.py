"""What an exported file says about its images and classes, as JSON in its metadata."""

import json
from dataclasses import dataclass

from scalekd.networks import InputConfig

METADATA_KEY = "scalekd"
"""Under which ONNX's `metadata_props`, and the extra files of a .pt2 file, have the JSON."""


@dataclass(frozen=True, kw_only=True)
class FileDescription:
    """How the images of an exported file are made, and what its outputs are called.

    Attributes:
        input: the images that the model was trained on.
        label_names: names of its classes in the order of its logits; empty where it has no names.
        normalization_inside: whether the file normalises images with values from 0 to 1 itself.
    """

    input: InputConfig
    label_names: tuple[str, ...]
    normalization_inside: bool

    def to_json(self) -> str:
        """The description under timm's words for preprocessing."""
        images = self.input
        return json.dumps(
            {
                "label_names": list(self.label_names),
                "input_size": [images.channels, *images.size],
                "mean": list(images.mean),
                "std": list(images.std),
                "crop_pct": images.crop,
                "crop_mode": images.crop_mode,
                "interpolation": images.interpolation,
                "normalization_inside": self.normalization_inside,
            }
        )
