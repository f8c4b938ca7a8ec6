"""Measured images/s of networks on GPUs beside what the model of time says of them."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import SequenceMatcher
from pathlib import Path

from scalekd.errors import InputError
from scalekd.recipe import Recipe

MEASURED_RATES = Path(__file__).with_name("measured_rates.csv")
"""The table that comes with the package, written by `benchmarks/rates.py --write`."""

EAGER, COMPILED = MODES = "eager", "compiled"

FORWARD, TRAINING, DISTILLATION = WORKS = "forward", "training step", "distillation step"


@dataclass(frozen=True)
class Rate:
    """One measured speed.

    Attributes:
        model: timm's name of the network, or "TEACHER -> STUDENT" of a distillation step.
        gpu: The card's name.
        precision: What it computed in: "amp (fp16)", "amp (bf16)", "bf16" or "float32", with
            ", channels_last" where the images were in that memory format.
        mode: "eager" or "compiled".
        work: "forward", "training step" or "distillation step".
        batch: Images at once.
        image: Pixels of an image's side.
        images_per_second: As measured.
        modelled: Images/s by the model of time; None where that was not computed.
        fitted: Whether the model's constants were fitted to this speed.
    """

    model: str
    gpu: str
    precision: str
    mode: str
    work: str
    batch: int
    image: int
    images_per_second: float
    modelled: float | None = None
    fitted: bool = False

    @property
    def factor(self) -> float:
        """How many times too large or too small the modelled images/s are."""
        assert self.modelled is not None
        ratio = self.modelled / self.images_per_second
        return max(ratio, 1 / ratio)


COLUMNS = [field.name for field in fields(Rate) if field.name not in ("modelled", "fitted")]
"""What a table of measured speeds has to have."""


def read_rates(path: Path = MEASURED_RATES) -> list[Rate]:
    """Read a table of measured speeds, a CSV file with the fields of `Rate` in its first line.

    Raises:
        InputError: The file cannot be read, or a line of it has no such fields.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table of rates: {error}") from error
    rates = []
    for number, line in enumerate(lines, start=2):
        try:
            rates.append(_rate(line))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}, is not a measured speed ({error}): it needs the columns "
                f"{', '.join(COLUMNS)}"
            ) from error
    if not rates:
        raise InputError(f"{path} has no rate")
    return rates


def _rate(line: dict[str, str]) -> Rate:
    rate = Rate(
        model=line["model"],
        gpu=line["gpu"],
        precision=line["precision"],
        mode=line["mode"],
        work=line["work"],
        batch=int(line["batch"]),
        image=int(line["image"]),
        images_per_second=float(line["images_per_second"]),
        modelled=float(line["modelled"]) if line.get("modelled") else None,
        fitted=line.get("fitted") == str(True),
    )
    if rate.mode not in MODES or rate.work not in WORKS:
        raise ValueError(f"mode is {rate.mode!r} and work is {rate.work!r}")
    if rate.batch < 1 or rate.image < 1 or not rate.images_per_second > 0:
        raise ValueError("batch, image and images_per_second must be more than 0")
    return rate


def within(rates: Sequence[Rate], factor: float = 1.3) -> float:
    """Share of the rates whose modelled images/s are at most `factor` times too large or small."""
    return sum(rate.factor <= factor for rate in rates) / len(rates)


@dataclass(frozen=True)
class ExpectedError:
    """How far the model was from measured speeds that its constants were not fitted to.

    Attributes:
        count: Number of these speeds.
        gpu: The card that they were measured on; None where they are of all other cards.
        within: Share of them within 30 %.
        factor: Nine of ten are at most this many times too large or too small; where the card was
            not measured, all are.
    """

    count: int
    gpu: str | None
    within: float
    factor: float

    def __str__(self) -> str:
        card = f"on this {self.gpu}" if self.gpu else "on other cards, and none on this one,"
        bound = "nine of ten" if self.gpu else "all"
        return (
            f"of {self.count} speeds that were measured {card} {self.within:.0%} are within 30 % "
            f"of the model, and {bound} within a factor of {self.factor:.2f}"
        )


def expected_error(rates: Sequence[Rate], gpu: str) -> ExpectedError:
    """The error to expect of the model on a card, by its name in `Gpu.label`."""
    judged = [rate for rate in rates if not rate.fitted]
    on_card = [rate for rate in judged if same_card(rate, gpu)]
    if not on_card:
        return ExpectedError(len(judged), None, within(judged), max(r.factor for r in judged))
    factors = sorted(rate.factor for rate in on_card)
    nine_of_ten = factors[math.ceil(0.9 * len(factors)) - 1]
    return ExpectedError(len(on_card), gpu, within(on_card), nine_of_ten)


def nearest_rates(rates: Sequence[Rate], recipe: Recipe, gpu: str) -> tuple[Rate, ...]:
    """The measured speeds that are most like a recipe's teacher, student and step, on this card
    rather than on another one and compiled as the recipe is rather than not."""
    assert recipe.teacher is not None
    mode = COMPILED if recipe.compile else EAGER
    wanted = (
        (recipe.teacher, (FORWARD,)),
        (recipe.student, (TRAINING, FORWARD)),
        (f"{recipe.teacher} -> {recipe.student}", (DISTILLATION,)),
    )
    return tuple(
        min(
            (rate for rate in rates if rate.work in works),
            key=lambda rate: (
                -round(SequenceMatcher(None, rate.model, name).ratio(), 1),
                not same_card(rate, gpu),
                works.index(rate.work),
                rate.mode != mode,
            ),
        )
        for name, works in wanted
    )


def same_card(rate: Rate, gpu: str) -> bool:
    """Whether a speed was measured on the card of `Gpu.label`; a table may omit "GeForce"."""
    return rate.gpu in (gpu, gpu.removeprefix("GeForce "))
