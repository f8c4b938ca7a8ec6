"""Time how many training images of a size like ImageNet's one core prepares in a second.

    python benchmarks/loading.py [--rounds 5] [--json]

JPEG files are written first, as loop.py does. An image is read, decoded, augmented and put into a
batch of 32, as a loading process does it; the transfer to the process that trains, whose bytes are
printed, is not in it. Seconds are of the processor, not of the clock, so that other programs on
the machine matter less. The augmentations are timed interleaved.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from loop import write_images
from torch.utils.data import default_collate

from scalekd.data.open import open_source
from scalekd.networks import InputConfig
from scalekd.recipe import Data

CONFIG = InputConfig(3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crops": {},
    "RandAugment and erasing": {"auto_augment": "rand-m9-n2-mstd0.5", "erasing": 0.25},
}

BATCH, BATCHES = 32, 4


def time_rounds(root: Path, rounds: int) -> dict[str, Any]:
    """Images a second of one core by augmentation, for each round, and the bytes of a batch."""
    sets = {
        name: open_source(Data(str(root), workers=0, **options)).training_set(CONFIG, 0)
        for name, options in AUGMENTATIONS.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in sets}
    size = 0
    for number in range(rounds + 1):  # the first fills the caches of the file system and of PIL
        for name, images in sets.items():
            began = time.process_time()
            for first in range(0, BATCH * BATCHES, BATCH):
                batch, _ = default_collate([images[first + key] for key in range(BATCH)])
            if number:
                rates[name].append(BATCH * BATCHES / (time.process_time() - began))
            size = batch.nbytes
    return {"images_per_second": rates, "batch_bytes": size}


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="How often each is timed.")
    parser.add_argument("--json", action="store_true", help="Print the results as JSON.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        write_images(Path(temporary))
        results = time_rounds(Path(temporary), options.rounds)
    if options.json:
        print(json.dumps(results))
        return
    for name, rates in results["images_per_second"].items():
        low, high = min(rates), max(rates)
        print(f"{name}: {statistics.median(rates):.0f} images/s ({low:.0f} to {high:.0f})")
    print(f"a batch of {BATCH} images has {results['batch_bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
