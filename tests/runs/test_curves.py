"""Learning curves as pictures."""

from pathlib import Path

import pytest
from PIL import Image

from scalekd.runs.curves import average_neighbours, draw_curves


@pytest.mark.parametrize("teacher_top1", [None, 0.9])
def test_curves_with_accuracies_are_drawn_as_a_png(
    tmp_path: Path, teacher_top1: float | None
) -> None:
    lines = [
        {"method": method, "seed": seed, "step": step, "seconds": step / 10, "top1": top1}
        for method in ("supervised", "scalekd")
        for seed in (1, 2)
        for step, top1 in ((1, None), (10, 0.3), (20, 0.5))
    ]
    (tmp_path / "curves.png").write_bytes(draw_curves(lines, teacher_top1))
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 600
        colours = picture.convert("RGB").getcolors(1 << 20)
    drawn = {colour for _, colour in colours or []}
    assert (255, 255, 255) in drawn
    assert len(drawn) > 10


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_curves_without_labels_are_drawn_of_the_loss(tmp_path: Path, steps: int) -> None:
    lines = [
        {
            "method": method,
            "seed": 1,
            "step": s,
            "seconds": s / 10,
            "top1": None,
            "loss": 9 - s / 1000,
        }
        for method in ("logit_kd", "scalekd")
        for s in range(1, steps + 1)
    ]
    (tmp_path / "curves.png").write_bytes(draw_curves(lines, None))
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_many_losses_are_averaged_over_neighbours() -> None:
    points = [(float(s), s / 2, float(s % 2)) for s in range(1000)]
    few = average_neighbours(points)
    assert len(few) == 100
    assert few[0] == (4.5, 2.25, 0.5)
    assert average_neighbours(points[:7]) == points[:7]
