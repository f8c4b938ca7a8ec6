"""Draw docs/speed.png from benchmarks/results/: the parts of a step beside a matrix product's time.

    python benchmarks/plot_speed.py

The black line is the time of the step's FLOP at the rate of the machine's own matrix product: the
least time that exact arithmetic could take.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
PARTS = {"teacher": "#7f7f7f", "student": "#dd8a1e", "projectors, tails, losses": "#2b6cb0"}


def format_label(result: dict[str, Any]) -> str:
    """The pair, and the precision and settings that it ran with."""
    name = f"{result['teacher'].split('_patch')[0]} → {result['student']}"
    settings = [setting for setting in ("compile", "channels_last") if result[setting]]
    return "\n".join([name, ", ".join([result["precision"], *settings])])


def milliseconds_per_image(result: dict[str, Any]) -> tuple[dict[str, float], float, float | None]:
    """Milliseconds an image of a result of step.py.

    Returns:
        Our step by part, the released structure's step, and the step's FLOP at the matrix product's
        rate; None where the step was faster than that.
    """
    times = {
        name: 1e3 * result[f"{name}_seconds"]["median"] / result["batch"]
        for name in ("step", "reference", "teacher", "student")
    }
    rest = times["step"] - times["teacher"] - times["student"]
    parts = dict(zip(PARTS, (times["teacher"], times["student"], rest), strict=True))
    # A share above 1: convolutions ran in another precision (TF32) than the matrix product.
    comparable = result["matmul_share"]["median"] <= 1
    floor = 1e3 * result["gflop_per_image"] / result["matmul_gflops"]["median"]
    return parts, times["reference"], floor if comparable else None


def main() -> None:
    """Draw a panel for each machine, and a bar for each result."""
    machines = defaultdict(list)
    for file in sorted((HERE / "results").glob("*.json")):
        for result in json.loads(file.read_text()):
            threads = f", {result['threads']} threads" if result["threads"] else ""
            kernels = f", {result['kernels']}" if "kernels" in result else ""
            title = f"{result['machine']}{threads}, {result['batch']} images{kernels}"
            machines[title].append(result)
    figure, axes = plt.subplots(
        len(machines),
        1,
        figsize=(9, 1.2 + 0.85 * sum(map(len, machines.values()))),
        gridspec_kw={"height_ratios": [len(results) for results in machines.values()]},
        squeeze=False,
        layout="constrained",
    )
    for axis, (machine, results) in zip(axes[:, 0], machines.items(), strict=True):
        for row, result in enumerate(results):
            parts, reference, floor = milliseconds_per_image(result)
            left = 0.0
            for name, width in parts.items():
                axis.barh(row, width, 0.5, left, color=PARTS[name])
                left += width
            axis.plot([reference], [row], "D", color="white", markeredgecolor="black")
            if floor is not None:
                axis.plot([floor, floor], [row - 0.35, row + 0.35], color="black", linewidth=2)
        axis.set_yticks(range(len(results)), map(format_label, results))
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_title(machine, fontsize=10)
        axis.set_xlabel("milliseconds an image, forward and backward")
    for name, color in PARTS.items():
        axes[0, 0].barh(0, 0, color=color, label=name)
    axes[0, 0].plot([], [], "D", color="white", markeredgecolor="black", label="released structure")
    axes[0, 0].plot([], [], color="black", linewidth=2, label="its work, as a matrix product")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(HERE.parent / "docs" / "speed.png", dpi=110)


if __name__ == "__main__":
    main()
