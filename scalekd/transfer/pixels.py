"""Images as the bytes that travel to the device that trains."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_bytes(image: Image.Image, channels: int) -> Tensor:
    """An RGB image in bytes (channels, H, W): of 3 channels, or of 1 if it is made grey."""
    pixels = np.array(image if channels == 3 else image.convert("L"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)
