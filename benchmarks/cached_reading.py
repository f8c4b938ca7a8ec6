"""Time how fast a cache of a teacher's outputs is read, in batches of 128, by 0 to 8 processes.

    python benchmarks/cached_reading.py [--workers '[0, 1, 2]'] [--rows 4096] [--json]

A cache of the size of Swin-L's outputs is written first, in float16 and in int8. Its rows are read
in a random order as a training reads them: checksum, fingerprint, decoding, collation and the
transfer to the process that trains. The images are there already, so that reading the cache is
timed alone; beside it, what one core prepares of images is in loading.py. The file system's cache
holds the parts once they are written, so that the disk is not timed; its share is bytes over what
the disk gives.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from scalekd.cache.encoding import CachePrecision, encode
from scalekd.cache.store import Cache, Manifest, pixel_fingerprint
from scalekd.data.cached import ViewsWithCachedOutputs
from scalekd.data.worker import initialize_worker, start_method
from scalekd.networks import CachedOutputs, InputConfig
from scalekd.networks.input_config import normalize_bytes

CONFIG = InputConfig(3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHANNELS, SIDE, CLASSES = 1536, 7, 1000
BATCH, ROWS_PER_PART = 128, 512
PRECISIONS: tuple[CachePrecision, ...] = ("float16", "int8")


class OneImage(Dataset[Any]):
    """One image of bytes, as often as it is asked for."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.image = torch.randint(0, 256, (3, *CONFIG.size), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, key: int) -> tuple[torch.Tensor, int]:
        return self.image.clone(), 0


def write_cache(folder: Path, images: OneImage, precision: CachePrecision) -> Cache:
    """Write a cache of random outputs for `images`."""
    manifest = Manifest(
        identity={},
        images_per_view=len(images),
        augmented_views=1,
        seed=0,
        input=CONFIG,
        precision=precision,
        rows_per_part=ROWS_PER_PART,
        library_versions={},
    )
    folder.mkdir()
    cache = Cache(folder, manifest)
    fingerprint = pixel_fingerprint(normalize_bytes(images.image, CONFIG))
    for part in range(manifest.parts):
        count = len(manifest.part_rows(part))
        outputs = CachedOutputs(
            torch.randn(count, CHANNELS, SIDE, SIDE), torch.randn(count, CLASSES), []
        )
        cache.write_part(part, encode(outputs, precision), fingerprint.repeat(count, 1))
    return cache


def read_all(cache: Cache, images: OneImage, workers: int) -> float:
    """Images a second of one epoch after the first batch of each process."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    loader = DataLoader(
        ViewsWithCachedOutputs(images, cache, CONFIG),
        BATCH,
        sampler=order,
        num_workers=workers,
        worker_init_fn=initialize_worker,
        multiprocessing_context=start_method() if workers else None,
    )
    skipped, count, began = max(1, workers), 0, 0.0
    for number, (batch, *_) in enumerate(loader):
        if number < skipped:  # processes start, and parts are opened
            began = time.perf_counter()
        else:
            count += len(batch)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=json.loads, default=[0, 1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=4096, help="Rows of the cache.")
    parser.add_argument("--rounds", type=int, default=3, help="How often each is timed.")
    parser.add_argument("--json", action="store_true", help="Print the results as JSON.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = OneImage(options.rows)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        caches = {p: write_cache(Path(folder) / p, images, p) for p in PRECISIONS}
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):  # interleaved
            for precision, cache in caches.items():
                for workers in options.workers:
                    rate = read_all(cache, images, workers)
                    rates.setdefault((precision, workers), []).append(rate)
        for (precision, workers), values in rates.items():
            parts = caches[precision].folder.glob("*.safetensors")
            row = sum(part.stat().st_size for part in parts) / options.rows
            middle = statistics.median(values)
            found.append(
                {
                    "precision": precision,
                    "workers": workers,
                    "images_per_second": [min(values), middle, max(values)],
                    "megabytes_per_second": middle * row / 1e6,
                }
            )
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "rows": options.rows, "found": found}, indent=1))
        return
    for each in found:
        low, middle, high = each["images_per_second"]
        print(
            f"{each['precision']:8} {each['workers']} processes: {middle:.0f} images/s "
            f"({low:.0f} to {high:.0f}), {each['megabytes_per_second']:.0f} MB/s"
        )


if __name__ == "__main__":
    main()
