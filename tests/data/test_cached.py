"""The fingerprint of the teacher's image is found from a few pixels of the student's."""

import pytest
import torch

from scalekd.cache.store import pixel_fingerprint
from scalekd.data.cached import FingerprintPixels
from scalekd.networks import InputConfig
from scalekd.networks.input_config import normalize_bytes, renormalization

CONFIGS = [
    InputConfig(3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    InputConfig(3, (30, 17), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    InputConfig(1, (28, 28), (0.13,), (0.31,)),
    InputConfig(1, (2, 2), (0.5,), (0.5,)),  # fewer values than a fingerprint has
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.channels}x{config.size}")
def test_a_fingerprint_is_that_of_the_whole_image_normalised_for_the_teacher(
    config: InputConfig,
) -> None:
    channels = config.channels
    made_for = InputConfig(channels, config.size, (0.5,) * channels, (0.25,) * channels)
    image = torch.randint(0, 256, (channels, *config.size), dtype=torch.uint8)
    scale, shift = (part[0] for part in renormalization(config, made_for))
    expected = pixel_fingerprint(normalize_bytes(image, config) * scale + shift)
    found = FingerprintPixels(config, made_for)
    assert torch.equal(found(image), expected)
    assert torch.equal(found(normalize_bytes(image, config)), expected)
