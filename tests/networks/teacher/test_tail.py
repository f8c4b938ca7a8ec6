"""The tail: found in networks of every form, and run on other tokens."""

import gc
import pickle
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.custom_networks import INPUT, CustomNetwork
from helpers.refusals import refused
from helpers.small_models import (
    CLASSES,
    SIZE,
    beit,
    cait,
    convnext,
    deit_distilled,
    eva02,
    hiera,
    images,
    levit,
    lively,
    mixer,
    registers,
    resnet,
    swin,
    tokens,
    vit,
)
from helpers.teachers import check_tail, count_hooks, other_tokens
from torch import Tensor, nn

from scalekd import FeatureSelection, FrozenTeacher, HookedFeatures
from scalekd.errors import InputError

TEACHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int] | None]] = {
    "Swin": (swin, None),
    "ViT": (vit, None),
    "DeiT distilled": (deit_distilled, None),
    "DINOv2 with registers": (registers, None),
    "BEiT": (beit, None),
    "EVA-02": (eva02, None),
    "CaiT": (cait, None),
    "Hiera": (hiera, SIZE),
    "LeViT": (levit, (128, 128)),
    "ResNet": (resnet, SIZE),
    "ConvNeXt": (convnext, SIZE),
    "Mixer": (mixer, SIZE),
}


def frozen(family: str) -> FrozenTeacher:
    make, size = TEACHERS[family]
    return FrozenTeacher(make(), size)


def conv(channels: int = 16) -> nn.Module:
    return nn.Conv2d(channels, 16, 3, 1, 1)


class Block(nn.Module):
    """x + conv(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv(x)
        return y


def stem() -> nn.Module:
    return nn.Conv2d(3, 16, 8, 8)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = stem()
        self.stages = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


class Wrapper(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(x)
        return y


class Twice(nn.Module):
    """One block, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.last = stem(), Block(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.block(self.block(self.block(self.stem(x)))))
        return y


NESTED: dict[str, tuple[Callable[[], nn.Module], str, str, list[str]]] = {
    "stages in an encoder in a wrapper": (
        lambda: Wrapper(Encoder()),
        "encoder.stages.0",
        "encoder.stages.1",
        ["encoder.stages.1"],
    ),
    "a wrapper of a wrapper": (
        lambda: Wrapper(Wrapper(Encoder())),
        "encoder.encoder.stem",
        "encoder",
        ["encoder.encoder.stages.0", "encoder.encoder.stages.1"],
    ),
    "out of one container into another": (
        lambda: nn.Sequential(nn.Sequential(stem(), Block()), nn.Sequential(Block(), nn.GELU())),
        "0.0",
        "1.0",
        ["0.1", "1.0"],
    ),
    "into a container that goes on": (
        lambda: nn.Sequential(stem(), nn.Sequential(Block(), nn.AdaptiveAvgPool2d(1))),
        "0",
        "1.0",
        ["1.0"],
    ),
    "past containers into a deep one that goes on": (
        lambda: nn.Sequential(
            nn.Sequential(stem(), nn.Sequential(Block(), Block())),
            Block(),
            nn.Sequential(nn.Sequential(Block(), nn.GELU(), nn.Flatten()), nn.Dropout()),
        ),
        "0.1.0",
        "2.0.1",
        ["0.1.1", "1", "2.0.0", "2.0.1"],
    ),
    "within one container": (
        lambda: nn.Sequential(nn.Sequential(stem(), Block(), Block()), nn.Flatten()),
        "0.1",
        "0.2",
        ["0.2"],
    ),
    "all calls of a shared module": (Twice, "stem", "last", ["block", "block", "block", "last"]),
    "up to the last call of a shared module": (Twice, "stem", "block", ["block"] * 3),
    "behind the last call of a shared module": (Twice, "block", "last", ["last"]),
}


@pytest.mark.parametrize("case", NESTED)
def test_the_tail_of_nested_modules_is_found(case: str) -> None:
    make, penultimate, final, tail = NESTED[case]
    teacher = FrozenTeacher(HookedFeatures(lively(make()), penultimate, final, INPUT, None))
    assert teacher.tail_modules == [f"model.{name}" for name in tail]
    check_tail(teacher)


class ReturnsBoth(Wrapper):
    """Its encoder hands out its intermediate maps beside the last one."""

    class Inner(Encoder):
        def forward(self, x: Tensor) -> Any:
            maps = [self.stem(x)]
            for stage in self.stages:
                maps.append(stage(maps[-1]))
            return {"last": maps[-1], "all": tuple(maps)}

    def __init__(self) -> None:
        super().__init__(self.Inner())

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.encoder(x)["last"]
        return last


def test_an_encoder_may_return_its_intermediate_maps_too() -> None:
    hooked = HookedFeatures(
        lively(ReturnsBoth()), "encoder.stages.0", "encoder.stages.1", INPUT, None
    )
    teacher = FrozenTeacher(hooked)
    assert teacher.tail_modules == ["model.encoder.stages.1"]
    check_tail(teacher)


@dataclass
class Output:
    feature: Tensor


Named = namedtuple("Named", "number feature")

WRAPPED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "a tuple": (lambda x: (x, 3), lambda y: y[0]),
    "a nested tuple": (lambda x: ("a", (None, [x])), lambda y: y[1][1][0]),
    "a dict": (lambda x: {"mean": x.mean(), "feature": x}, lambda y: y["feature"]),
    "an ordered dict": (lambda x: OrderedDict(a=1, feature=x), lambda y: y["feature"]),
    "a named tuple": (lambda x: Named(1, x), lambda y: y.feature),
}


class Wraps(nn.Module):
    def __init__(self, module: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.module = module
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.module(x))


class Unwraps(Wraps):
    def forward(self, given: Any) -> Tensor:
        y: Tensor = self.module(self.wrap(given))
        return y


class InOutputs(CustomNetwork):
    """What its stages return holds the feature somewhere, and what they are given too."""

    def __init__(self, wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.first = Wraps(stem(), wrap)
        self.middle = Wraps(Unwraps(Block(), unwrap), wrap)
        self.last = Unwraps(nn.Conv2d(16, 24, 2, 2), unwrap)
        self.unwrap = unwrap

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.first(x)
        return self.unwrap(outputs), self.last(self.middle(outputs))


@pytest.mark.parametrize("case", WRAPPED)
def test_features_inside_of_module_outputs_are_found(case: str) -> None:
    teacher = FrozenTeacher(lively(InOutputs(*WRAPPED[case])))
    assert teacher.tail_modules == ["middle", "last"]
    check_tail(teacher)


def test_features_in_a_dataclass_are_taken_from_a_later_module_or_refused() -> None:
    class TakenOut(InOutputs):
        """A module within it gives the feature itself."""

        def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
            penultimate = self.first(x).feature
            return penultimate, self.last.module(penultimate)

    teacher = FrozenTeacher(lively(TakenOut(Output, lambda y: y.feature)))
    assert teacher.tail_modules == ["last.module"]
    check_tail(teacher)
    with refused("InOutputs", "Unwraps"):
        FrozenTeacher(lively(InOutputs(Output, lambda y: y.feature)))


class ByKeyword(CustomNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.ModuleDict({"a": Keywords(), "b": Keywords(), "c": nn.Conv2d(16, 24, 2, 2)})

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        y = self.last["a"](factor=2.0, feature=penultimate)
        y = self.last["b"](0.5, feature={"in": y})
        return penultimate, self.last["c"](input=y)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, factor: float, *, feature: Any) -> Tensor:
        y: Tensor = factor * self.conv(feature["in"] if isinstance(feature, dict) else feature)
        return y


def test_features_in_keyword_arguments_are_found() -> None:
    teacher = FrozenTeacher(lively(ByKeyword()))
    assert teacher.tail_modules == ["last.a", "last.b", "last.c"]
    check_tail(teacher)


def by_window(rows: Tensor) -> Tensor:
    """Tokens of an 8x8 grid, row by row -> (N, windows, cells, C) of 4x4 windows."""
    x = rows.unflatten(1, (2, 4, 2, 4)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def by_row(windows: Tensor) -> Tensor:
    """And back, to (N, H, W, C)."""
    x = windows.unflatten(1, (2, 2)).unflatten(3, (4, 4)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


class Windows(CustomNetwork):
    """Between its modules the feature is turned about: by row, by window, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.windows, self.last = nn.Linear(16, 16), InWindow(), nn.Linear(16, 24)

    def windowed(self, x: Tensor) -> Tensor:
        y: Tensor = self.windows(by_window(x))
        return by_row(y)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        y = self.windowed(self.rows(tokens(penultimate)))
        return penultimate, self.last(y).permute(0, 3, 1, 2)


class InWindow(nn.Module):
    """The order of the cells in a window tells here, and which belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x + (x * self.weight).mean(-2, keepdim=True)


class WindowsInTheBatch(Windows):
    """Windows of all images stand in one batch, as inside of a Swin's blocks."""

    def windowed(self, x: Tensor) -> Tensor:
        y: Tensor = self.windows(by_window(x).flatten(0, 1))
        return by_row(y.unflatten(0, (-1, 4)))


def test_features_rearranged_between_modules_are_followed() -> None:
    grid = torch.arange(64.0).reshape(1, 64, 1)
    assert torch.equal(by_row(by_window(grid)).flatten(1, 2), grid)
    assert not torch.equal(by_window(grid).flatten(1, 2), grid)
    teacher = FrozenTeacher(lively(Windows()))
    assert teacher.tail_modules == ["rows", "windows", "last"]
    check_tail(teacher)


class Table(nn.Module):
    """Positions, as large as a feature; of the images where it is given some."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 16, 8, 8))

    def forward(self, x: Tensor | None = None) -> Tensor:
        return self.table if x is None else self.table * x.mean((1, 2, 3), keepdim=True)


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * (1 + other)
        return y


class WithTable(CustomNetwork):
    """A side module is called between the stages, and used by the last one."""

    def __init__(self, of_images: bool, just_before: bool = False) -> None:
        super().__init__()
        self.table, self.middle, self.last = Table(), Block(), Adds()
        self.head = nn.Linear(16, CLASSES)
        self.of_images, self.just_before = of_images, just_before

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        given = x if self.of_images else None
        penultimate = self.first(x)
        if self.just_before:
            return penultimate, self.last(self.middle(penultimate), self.table(given))
        table = self.table(given)
        return penultimate, self.last(self.middle(penultimate), table)


def check_table(of_images: bool, just_before: bool) -> None:
    teacher = FrozenTeacher(lively(WithTable(of_images, just_before)))
    assert teacher.tail_modules == ["middle", "last"]
    check_tail(teacher)
    given = other_tokens(teacher(images(seed=1)).penultimate)
    first = teacher.tail(given)
    teacher(images(seed=2))
    assert torch.equal(teacher.tail(given), first) is not of_images


@pytest.mark.parametrize("of_images", [False, True])
def test_a_side_module_between_the_stages_is_not_replayed_but_its_output_is_used(
    of_images: bool,
) -> None:
    check_table(of_images, just_before=False)


@pytest.mark.parametrize("of_images", [False, True])
def test_a_side_module_just_before_the_call_that_uses_it_is_not_replayed(of_images: bool) -> None:
    check_table(of_images, just_before=True)


def test_blocks_of_a_class_token_that_comes_later_are_not_replayed() -> None:
    model = cait()
    teacher = FrozenTeacher(model)
    assert any("blocks_token_only" in name for name, _ in model.named_modules())
    assert teacher.tail_modules == ["blocks.3", "norm"]


class SideStream(CustomNetwork):
    """Two maps run from block to block; where the second begins is up to the case."""

    def __init__(self, begins: str) -> None:
        super().__init__()
        self.begins = begins
        self.last = nn.ModuleList([Both(), Both()])
        self.head = nn.Linear(16, CLASSES)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        side = {
            "at the images": x[:, :1, ::8, ::8].repeat(1, 16, 1, 1),
            "at the penultimate feature": penultimate,
        }[self.begins]
        y = penultimate
        for block in self.last:
            y, side = block(y, side)
        return penultimate, y


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = conv(), conv()

    def forward(self, x: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        return self.main(x) + side, self.side(side)


def test_a_side_stream_that_begins_at_the_images_is_reused() -> None:
    teacher = FrozenTeacher(lively(SideStream("at the images")))
    assert teacher.tail_modules == ["last.0", "last.1"]
    check_tail(teacher)


class CrossedStream(SideStream):
    """The second map takes up the first on its way."""

    def __init__(self) -> None:
        super().__init__("at the images")
        self.last = nn.ModuleList([Crossed(), Crossed()])


class Crossed(Both):
    def forward(self, x: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        return self.main(x) + side, self.side(side) + x


class MergedAtTheEnd(CustomNetwork):
    """A second path leaves the penultimate feature and comes back at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.middle, self.last = conv(), Block(), Adds()
        self.head = nn.Linear(16, CLASSES)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(self.middle(penultimate), self.side(penultimate))


class GivenTwice(CustomNetwork):
    """One call has the feature in three of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        q = tokens(penultimate)
        return penultimate, self.last(q, q, q)[0].transpose(1, 2).unflatten(2, (8, 8))


class BetweenModules(CustomNetwork):
    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(2 * penultimate)


class Dead(CustomNetwork):
    """No value of its last stage is above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Conv2d(16, 24, 2, 2), nn.ReLU())

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.last[0].bias.fill_(-1e3)
        return super().stages(x)


class InPlace(CustomNetwork):
    """What a module returned is changed in place."""

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        penultimate = self.first(x)
        return penultimate, self.last(penultimate).mul_(2)


class ManyLinks(BetweenModules):
    """Each of its modules gives what the one before was given, so that many chains lead back."""

    def __init__(self) -> None:
        super().__init__()
        doubled = [m for _ in range(12) for m in (nn.Conv2d(16, 16, 1), nn.Identity())]
        self.last = nn.Sequential(*doubled, nn.Conv2d(16, 24, 2, 2))


REFUSED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "a side stream": (
        lambda: SideStream("at the penultimate feature"),
        ["differs from its output by"],
    ),
    "streams that cross": (CrossedStream, ["differs from its output by"]),
    "a second path": (MergedAtTheEnd, ["differs from its output by"]),
    "code between modules": (BetweenModules, ["no chain of modules", "code between"]),
    "code before many chains": (ManyLinks, ["no chain of modules", "code between"]),
    "windows in the batch": (WindowsInTheBatch, ["no chain of modules", "code between"]),
    "a change in place": (InPlace, []),
    "a dead final feature": (Dead, ["zero"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_teacher_that_cannot_be_replayed_is_refused_and_keeps_no_hook(case: str) -> None:
    make, said = REFUSED[case]
    model = lively(make())
    with refused(type(model).__name__, "cannot be replayed", *said):
        FrozenTeacher(model)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_refused_as_a_teacher_is_unchanged(case: str) -> None:
    model = lively(REFUSED[case][0]())
    before = model(images())
    with pytest.raises(InputError):
        FrozenTeacher(model)
    assert torch.equal(model(images()), before)


def test_a_feature_given_in_several_arguments_is_replayed_or_refused() -> None:
    model = lively(GivenTwice())
    try:
        teacher = FrozenTeacher(model)
    except InputError:
        assert count_hooks(model) == 0
    else:
        check_tail(teacher)


@pytest.mark.parametrize("family", TEACHERS)
def test_only_the_modules_of_the_tail_keep_a_hook(family: str) -> None:
    teacher = frozen(family)
    modules = {teacher.model.get_submodule(name) for name in teacher.tail_modules}
    hooked = {m for m in teacher.model.modules() if m._forward_pre_hooks}
    assert modules <= hooked
    assert count_hooks(teacher.model) == len(hooked)
    teacher(images(2, teacher.input.size))
    assert count_hooks(teacher.model) == len(hooked)


def test_a_teacher_without_its_final_norm_keeps_no_hooks_of_the_first_attempt() -> None:
    teacher = FrozenTeacher(lively(BehindCode()), SIZE)
    assert teacher.tail_modules == ["last"]
    assert count_hooks(teacher.model) == 1


class BehindCode(nn.Module):
    """timm's methods; its final norm is behind code of its own."""

    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.norm = stem(), conv(), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward_intermediates(
        self, x: Tensor, indices: Any = None, norm: bool = False, output_fmt: str = "NCHW"
    ) -> tuple[Tensor, list[Tensor]]:
        maps = [self.first(x)]
        maps.append(self.last(maps[0]))
        return self.norm(2 * maps[1]), [maps[i] for i in indices or (0, 1)]

    def forward_head(self, y: Tensor) -> Tensor:
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("family", TEACHERS)
def test_the_tail_works_at_any_batch_size(family: str, batch: int) -> None:
    teacher = frozen(family)
    seen = teacher(images(batch, teacher.input.size, seed=batch))
    given = other_tokens(seen.penultimate)
    out = teacher.tail(given)
    final = tokens(seen.final)
    assert out.shape == final.shape
    own = teacher.tail(tokens(seen.penultimate))
    torch.testing.assert_close(own, final, atol=1e-5, rtol=1e-4)
    # No image hears of another: each alone gives the same.
    for i in range(batch):
        teacher(images(batch, teacher.input.size, seed=batch)[i : i + 1])
        alone = teacher.tail(given[i : i + 1])
        torch.testing.assert_close(alone, out[i : i + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["ViT", "DINOv2 with registers", "EVA-02", "DeiT distilled"])
def test_recorded_inputs_do_not_outlive_the_next_pass(family: str) -> None:
    teacher, fresh = frozen(family), frozen(family)
    x, y = (images(3, teacher.input.size, seed=seed) for seed in (1, 2))
    given = other_tokens(teacher(x).penultimate)
    teacher(y)
    teacher(x[:1])
    fresh(x[:1])
    assert torch.equal(teacher.tail(given[:1]), fresh.tail(given[:1]))
    teacher(y)
    assert not torch.equal(teacher.tail(given)[:1], fresh.tail(given[:1]))


def test_a_pickle_of_the_model_contains_no_recorded_inputs() -> None:
    teacher = frozen("ViT")
    teacher(images(1, teacher.input.size))
    few = len(pickle.dumps(teacher.model))
    teacher(images(8, teacher.input.size))
    assert len(pickle.dumps(teacher.model)) == few


@pytest.mark.parametrize("family", ["Swin", "ViT"])
def test_the_activations_of_an_earlier_pass_are_freed(family: str) -> None:
    teacher = frozen(family)
    first = teacher.model.get_submodule(teacher.tail_modules[0])
    kept: list[weakref.ref[Tensor]] = []
    hook = first.register_forward_pre_hook(lambda m, given: kept.append(weakref.ref(given[0])))
    for _ in range(3):
        teacher(images(2, teacher.input.size))
    hook.remove()
    gc.collect()
    assert [given() is None for given in kept] == [True, True, False]


def test_passes_outside_of_the_teacher_are_not_recorded() -> None:
    teacher, x = frozen("ViT"), images()
    given = other_tokens(teacher(x).penultimate)
    expected = teacher.tail(given)
    with torch.no_grad():
        teacher.model(images(4, seed=9))
        teacher.extractor(images(4, seed=9))
    assert torch.equal(teacher.tail(given), expected)


@pytest.mark.parametrize(("first", "second"), [("own", "none"), ("none", "own"), ("own", "own")])
def test_two_teachers_of_one_model_record_inputs_separately(first: str, second: str) -> None:
    model = vit()
    one = FrozenTeacher(model, features=FeatureSelection(penultimate=3), prefix=first)
    two = FrozenTeacher(model, features=FeatureSelection(penultimate=2), prefix=second)
    given = other_tokens(one(images(2, seed=1)).penultimate)
    expected = one.tail(given)
    two(images(3, seed=2))
    assert torch.equal(one.tail(given), expected)
    seen = two(images(3, seed=3))
    one(images(1, seed=4))
    alone = FrozenTeacher(vit(), features=FeatureSelection(penultimate=2), prefix=second)
    alone(images(3, seed=3))
    given = other_tokens(seen.penultimate)
    assert torch.equal(two.tail(given), alone.tail(given))


def ran_directly(
    tail: Callable[[Tensor], Tensor], direct: Callable[[Tensor], Tensor], given: Tensor
) -> None:
    """Both give the same output and the same gradient, exactly."""
    results = []
    for run in (tail, direct):
        asked = given.clone().requires_grad_()
        out = run(asked)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
        (out * weight).sum().backward()
        assert asked.grad is not None
        results.append((out, asked.grad))
    (out, gradient), (expected, of_direct) = results
    assert torch.equal(out, expected)
    assert torch.equal(gradient, of_direct)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("penultimate", [None, 0, 2])
@pytest.mark.parametrize(("make", "prefix"), [(vit, 1), (deit_distilled, 2), (registers, 5)])
def test_the_tail_of_a_vit_is_its_last_blocks_with_the_images_own_prefix(
    make: Callable[[], Any], prefix: int, penultimate: int | None
) -> None:
    model = make()
    teacher = FrozenTeacher(model, features=FeatureSelection(penultimate=penultimate))
    first = teacher.extractor.selection.penultimate + 1
    kept: list[Tensor] = []
    hook = model.blocks[first].register_forward_pre_hook(lambda m, given: kept.append(given[0]))
    given = other_tokens(teacher(images(3, teacher.input.size)).penultimate)
    hook.remove()
    own = kept[0][:, :prefix]

    def direct(asked: Tensor) -> Tensor:
        x = torch.cat([own, asked], 1)
        for block in model.blocks[first:]:
            x = block(x)
        normed: Tensor = model.norm(x)
        return normed[:, prefix:]

    assert teacher.prefix_tokens == prefix
    assert own.std() > 0
    ran_directly(teacher.tail, direct, given)


def test_the_tail_of_a_swin_is_its_last_stage_and_norm() -> None:
    model: Any = swin()
    teacher = FrozenTeacher(model)
    given = other_tokens(teacher(images(3)).penultimate)

    def direct(asked: Tensor) -> Tensor:
        normed: Tensor = model.norm(model.layers[1](asked.unflatten(1, (16, 16))))
        return normed.flatten(1, 2)

    ran_directly(teacher.tail, direct, given)


def test_the_tail_of_a_beit_has_the_biases_of_its_prefix() -> None:
    model: Any = beit()
    teacher = FrozenTeacher(model, features=FeatureSelection(penultimate=1))
    kept: list[Tensor] = []
    hook = model.blocks[2].register_forward_pre_hook(lambda m, given: kept.append(given[0]))
    given = other_tokens(teacher(images(3)).penultimate)
    hook.remove()

    def direct(asked: Tensor) -> Tensor:
        x = torch.cat([kept[0][:, :1], asked], 1)
        for block in model.blocks[2:]:
            x = block(x)
        return x[:, 1:]

    ran_directly(teacher.tail, direct, given)


def test_the_tail_of_a_rotary_model_has_its_rotations() -> None:
    model: Any = eva02()
    teacher = FrozenTeacher(model, features=FeatureSelection(penultimate=1))
    kept: list[tuple[Tensor, Tensor]] = []
    hook = model.blocks[2].register_forward_pre_hook(
        lambda m, given, named: kept.append((given[0], named["rope"])), with_kwargs=True
    )
    given = other_tokens(teacher(images(3, (56, 56))).penultimate)
    hook.remove()
    x, rope = kept[0]

    def direct(asked: Tensor) -> Tensor:
        y = torch.cat([x[:, :1], asked], 1)
        for block in model.blocks[2:]:
            y = block(y, rope=rope)
        return y[:, 1:]

    assert rope is not None
    ran_directly(teacher.tail, direct, given)


def test_the_tail_of_a_resnet_is_its_last_stage() -> None:
    model: Any = resnet()
    teacher = FrozenTeacher(model, SIZE)
    seen = teacher(images(3))
    grid = tuple(seen.penultimate.shape[2:])
    ran_directly(
        teacher.tail,
        lambda asked: tokens(model.layer4(asked.transpose(1, 2).unflatten(2, grid))),
        other_tokens(seen.penultimate),
    )


@pytest.mark.parametrize("family", TEACHERS)
def test_the_tail_does_not_change_its_tokens(family: str) -> None:
    teacher = frozen(family)
    given = other_tokens(teacher(images(2, teacher.input.size)).penultimate)
    before = given.clone()
    teacher.tail(given)
    assert torch.equal(given, before)


class BeginsInPlace(CustomNetwork):
    """Its last stage begins with an activation in place, which changes nothing of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        self.last = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(16, 24, 2, 2))


def test_a_tail_that_works_in_place_does_not_change_its_tokens() -> None:
    teacher = FrozenTeacher(lively(BeginsInPlace()))
    given = other_tokens(teacher(images()).penultimate)
    before = given.clone()
    first = teacher.tail(given)
    assert torch.equal(given, before)
    assert torch.equal(teacher.tail(given.requires_grad_()), first)


class Transformed(CustomNetwork):
    """Fourier's, by a module of its own: its output is complex."""

    class Forth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x)

    class Back(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.real + x.imag

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(stem(), self.Forth(), self.Back())


def test_complex_values_before_the_penultimate_feature_do_no_harm() -> None:
    teacher = FrozenTeacher(lively(Transformed()))
    assert teacher.tail_modules == ["last"]
    check_tail(teacher)


def test_more_prefix_tokens_than_cells_are_found() -> None:
    teacher = FrozenTeacher(registers(img_size=28))
    assert teacher.shapes.final == (48, 2, 2)
    assert teacher.prefix_tokens == 5
    seen = teacher(images(3, (28, 28)))
    replayed = teacher.tail(tokens(seen.penultimate))
    torch.testing.assert_close(replayed, tokens(seen.final), atol=1e-5, rtol=1e-4)
