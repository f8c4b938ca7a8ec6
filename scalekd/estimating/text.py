"""An estimate as text for a person."""

from scalekd.estimating.estimate import Estimate
from scalekd.estimating.savings import Saving


def format_estimate(found: Estimate) -> str:
    """What `scalekd estimate` prints."""
    pace, memory = found.pace, found.memory
    low, middle, high = found.step
    rows = [
        ("pair", f"{found.teacher} -> {found.student}, {found.precision}"),
        (
            "batch",
            f"{found.batch_size} images a step: {found.devices} x {found.accumulate} x "
            f"{found.at_once} (devices, accumulate, images at once)",
        ),
        (
            "GFLOP",
            f"an image {_total(found):.1f}: teacher {found.gflop.teacher:.1f}, student "
            f"{found.gflop.student:.1f}, projectors, tail and losses {found.gflop.rest:.1f}",
        ),
        ("time", pace.said),
        (
            "",
            f"a step {_seconds(middle)} ({_seconds(low)} to {_seconds(high)}), "
            f"{_number(found.images_per_second)} images/s",
        ),
        ("", ", ".join(f"{name} {_share(found, name)}" for name in pace.parts)),
        (
            "days",
            f"{_number(found.days[1])} ({_number(found.days[0])} to {_number(found.days[2])}) for "
            f"{found.epochs} epochs of {found.steps} steps, {found.images} images",
        ),
        *([("", f"of one run; the recipe makes {found.runs}")] if found.runs > 1 else []),
        ("memory", f"{_gb(memory.total)} of a device's {_gb(found.limit)}"),
        *(("", f"{name.replace('_', ' ')} {_gb(size)}") for name, size in vars(memory).items()),
        ("fits", _fits(found)),
        *(("gain", _gain(gain, pace.middle)) for gain in found.gains),
        *(("assumed", line) for line in _assumed(found)),
    ]
    return "\n".join(f"{label:<9}{text}".rstrip() for label, text in rows)


def _total(found: Estimate) -> float:
    return found.gflop.teacher + found.gflop.student + found.gflop.rest


def _share(found: Estimate, part: str) -> str:
    return f"{found.pace.parts[part] / sum(found.pace.parts.values()):.0%}"


def _fits(found: Estimate) -> str:
    if not found.largest:
        return "not even two images at once"
    most = f"at most {found.largest} images at once"
    if found.needed_accumulate in (None, found.accumulate):
        return most
    return f"{most}: --accumulate {found.needed_accumulate} is the least for this batch"


def _gain(gain: Saving, step: float) -> str:
    said = []
    if gain.seconds is not None:
        saved = f"{abs(gain.seconds) / step:.0%} of a step"
        said.append(f"saves {saved}" if gain.seconds >= 0 else f"costs {saved}")
    if gain.memory is not None:
        saves = "saves" if gain.memory >= 0 else "costs"
        said.append(f"{saves} {_gb(abs(gain.memory))}")
    return f"{gain.setting}: {', '.join([*said, gain.said])}"


def _assumed(found: Estimate) -> list[str]:
    lines = ["loading images, measuring on validation images and start-up are left out"]
    if not found.pace.measured:
        lines.append(
            "a GPU's fused attention keeps what a CPU's does; allocator "
            f"{found.memory.overhead / (found.memory.total - found.memory.runtime):.0%} of it all"
        )
    if found.devices > 1:
        lines.append(f"{found.devices} devices keep {found.together:.0%} of their speed together")
    return lines


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{_number(value)} s"
