"""What settings that a recipe has not on would save: measured, modelled, or not known here."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scalekd.compatibility.check import StepFlops
from scalekd.estimating.device_memory import Memory, Needs
from scalekd.estimating.gpus import Gpu
from scalekd.estimating.step_time import Pace, modelled
from scalekd.recipe import Recipe


@dataclass(frozen=True)
class Saving:
    """What a setting would save.

    seconds: of a device's step; None where that is not known here, less than 0 where it costs.
    memory: bytes of a device; None likewise.
    said: how that is known.
    """

    setting: str
    seconds: float | None
    memory: float | None
    said: str


def estimate_savings(
    recipe: Recipe,
    needs: Needs,
    memory: Memory,
    pace: Pace,
    gflop: StepFlops,
    tail: float,
    at_once: int,
    gpu: Gpu | None,
) -> Iterator[Saving]:
    """Of bf16, compilation, a checkpointed tail and a cache of the teacher.

    Args:
        recipe: what they would be added to.
        needs: of the pair.
        memory: that it needs without them.
        pace: without them.
        gflop: an image.
        tail: GFLOP an image of the teacher's tail, forward, all views.
        at_once: images that a device computes at once.
        gpu: what the pace was modelled for; None where it was measured.
    """
    if recipe.precision == "32-true" and (gpu is None or gpu.bf16):
        half = replace(recipe, precision="bf16-mixed")
        needed = needs.of(at_once, precision="bf16-mixed")
        saved, said = None, "time not known here: --precision bf16-mixed measures it"
        if gpu is not None:
            saved = pace.middle - modelled(gpu, half, gflop, at_once, needed).middle
            said = "modelled from the two peaks and assumed shares"
        yield Saving("precision bf16-mixed", saved, memory.total - needed.total, said)
    if not recipe.compile:
        saved, said = None, "not known before it is tried: --compile true measures it"
        if gpu is not None and recipe.precision != "32-true":
            compiled = modelled(gpu, replace(recipe, compile=True), gflop, at_once, memory)
            saved = pace.middle - compiled.middle
            said = "modelled from assumed shares, for channels_last where the student is a CNN"
        yield Saving("compile", saved, None, said)
    computed = pace.middle - pace.parts["optimizer"]
    if not recipe.checkpoint_tail and tail:
        again = computed * tail / (gflop.teacher + gflop.student + gflop.rest)
        needed = needs.of(at_once, checkpoint_tail=True)
        yield Saving(
            "checkpoint_tail",
            -again,
            memory.total - needed.total,
            f"{tail:.1f} GFLOP an image more, at the same speed",
        )
    yield Saving(
        "a cache of the teacher",
        pace.parts["teacher"],
        None,
        "at most, were its features read in no time: `scalekd cache` makes one",
    )
