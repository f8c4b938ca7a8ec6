"""The estimate of a transfer as text for the terminal."""

from scalekd.estimating.text import format_bytes, format_number, format_range
from scalekd.estimating.transfer.estimate import TransferEstimate


def format_transfer_estimate(estimate: TransferEstimate) -> str:
    """Format what `scalekd estimate segment` and `scalekd estimate detect` print."""
    memory, (height, width) = estimate.memory, estimate.size
    seconds = format_range(estimate.step_seconds, "s")
    rows = [
        (
            "network",
            f"{estimate.head} on {estimate.backbone}, precision {estimate.precision}, images of "
            f"{height}x{width} pixels",
        ),
        (
            "batch",
            f"{estimate.batch_size} images a step: devices {estimate.devices}, micro-batches of "
            f"{estimate.micro_batch} images",
        ),
        ("work", f"{format_number(estimate.gflop)} GFLOP an image, forward and backward"),
        ("time", estimate.basis),
        (
            "",
            f"a step takes {seconds}, {format_number(estimate.images_per_second)} images/s",
        ),
        (
            "days",
            f"the run takes {format_range(estimate.days, 'days')}: {estimate.steps} steps, "
            f"{estimate.images_per_epoch} images an epoch",
        ),
        (
            "memory",
            f"one GPU needs {format_bytes(memory.total)}, modelled; by part:",
        ),
        *(
            ("", f"{name.replace('_', ' ')} {format_bytes(size)}")
            for name, size in vars(memory).items()
        ),
    ]
    if estimate.measured_peak is not None:
        count = estimate.measured_images
        images = f"{count} image" + "s" * (count != 1)
        peak, limit = format_bytes(estimate.measured_peak), format_bytes(estimate.memory_limit)
        rows.append(("", f"a real step of {images} took {peak} of the {limit} here"))
    if estimate.largest_micro_batch is not None:
        limit = format_bytes(estimate.memory_limit)
        count = estimate.largest_micro_batch
        fits = f"a micro-batch of at most {count} images fits into {limit}"
        rows.append(("fits", fits if count else f"not even two images at once fit into {limit}"))
    rows += [("assumed", line) for line in _assumptions(estimate)]
    return "\n".join(f"{label:<9}{text}".rstrip() for label, text in rows)


def _assumptions(estimate: TransferEstimate) -> list[str]:
    lines = ["the time of loading images, of validation and of start-up is not counted"]
    if estimate.head in ("mask_rcnn", "faster_rcnn"):
        lines.append(
            "512 regions of each image are trained on, 128 of them with masks; a modelled step "
            "counts neither proposals and matching nor cutting out regions"
        )
    if estimate.devices > 1:
        lines.append(
            f"each of {estimate.devices} devices keeps {estimate.efficiency:.0%} of its speed "
            "while they exchange gradients"
        )
    return lines
