import copy
import doctest
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import timm
import torch
from helpers.distilling import ONE_VIEW, TARGETS, TERMS, digits_student, distilling, step_of
from helpers.refusals import refused
from helpers.small_models import (
    CLASSES,
    FAMILIES,
    SIZE,
    images,
    make,
    resnet,
    swin,
    vit,
)
from helpers.warned import warned
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd import FrozenTeacher, LossWeights, ScaleKD, baselines
from scalekd.digits.images import MEAN, STD
from scalekd.method import ChannelNorm
from scalekd.networks import FeatureSelection


@pytest.mark.parametrize("family", FAMILIES)
def test_all_trained_parameters_and_none_of_the_teachers_get_gradients(family: str) -> None:
    distiller = distilling(FAMILIES[family]())
    step = step_of(distiller)
    step.loss.backward()
    for name, parameter in distiller.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for parameter in distiller.teacher.model.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None


def test_feature_terms_change_the_gradients_of_the_student() -> None:
    gradients: list[dict[str, Tensor]] = []
    for weights in (LossWeights(), LossWeights(0.0, 0.0, 0.0, 0.0, 0.5)):
        distiller = distilling(weights=weights)
        step_of(distiller).loss.backward()
        gradients.append({n: p.grad for n, p in distiller.student.named_parameters()})
    both, logits = gradients
    same = {name for name, g in both.items() if torch.allclose(g, logits[name], atol=0)}
    assert same == {"fc.weight", "fc.bias"}


def test_the_loss_is_the_sum_of_the_named_terms() -> None:
    step = step_of(distilling())
    assert set(step.terms) == {"task"} | TERMS
    assert all(term.shape == () for term in step.terms.values())
    assert step.loss.shape == ()
    torch.testing.assert_close(step.loss, sum(step.terms.values()))
    assert step.logits.shape == (4, CLASSES)


@pytest.mark.parametrize("a", [0.0, 0.25, 0.5, 1.0])
def test_the_task_is_weighted_by_one_minus_the_logits_weight(a: float) -> None:
    step = step_of(distilling(weights=LossWeights(logits=a)))
    cross_entropy = F.cross_entropy(step.logits, TARGETS)
    torch.testing.assert_close(step.terms["task"], (1 - a) * cross_entropy)
    assert ("logits" in step.terms) is (a > 0)


def test_step_logits_are_the_students_and_the_teachers_logits_are_distilled() -> None:
    distiller = distilling(temperature=2.0).eval()
    step = step_of(distiller)
    assert torch.equal(step.logits, distiller.student(images(4)))
    teacher_logits = distiller.teacher_logits(images(4)) / 2
    kd = -4 * (teacher_logits.softmax(1) * (step.logits / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(step.terms["logits"], 0.5 * kd)


def test_label_smoothing_is_applied_to_the_task() -> None:
    step = step_of(
        distilling(task=nn.CrossEntropyLoss(label_smoothing=0.1), weights=LossWeights(logits=0.0))
    )
    expected = F.cross_entropy(step.logits, TARGETS, label_smoothing=0.1)
    torch.testing.assert_close(step.terms["task"], expected)
    assert not torch.isclose(expected, F.cross_entropy(step.logits, TARGETS))


def test_training_mode_does_not_reach_the_teacher() -> None:
    distiller = distilling(teacher=swin(drop_path_rate=0.9).train())
    assert distiller.student.training
    assert not any(m.training for m in distiller.teacher.model.modules())
    distiller.teacher.model.train()
    first, second = (distiller.teacher(images(4)).final for _ in range(2))
    assert torch.equal(first, second)


def test_the_teacher_is_in_no_parameters_and_no_state_dict() -> None:
    distiller = distilling()
    teacher_parameters = {id(p) for p in distiller.teacher.model.parameters()}
    assert teacher_parameters.isdisjoint(id(p) for p in distiller.parameters())
    assert distiller.teacher.model not in list(distiller.modules())
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "criterion"}
    pointers = {p.data_ptr() for p in distiller.teacher.model.parameters()}
    assert pointers.isdisjoint(t.data_ptr() for t in distiller.state_dict().values())


def test_casting_the_distiller_to_float64_casts_all_its_parts() -> None:
    distiller = distilling().double()
    step = distiller(images(4).double(), TARGETS)
    step.loss.backward()
    assert step.loss.dtype == step.logits.dtype == torch.float64
    assert all(p.grad.dtype == torch.float64 for p in distiller.parameters())
    single = step_of(distilling())
    for name, term in step.terms.items():
        torch.testing.assert_close(term.float(), single.terms[name], atol=1e-3, rtol=1e-3)


def test_a_copied_distiller_trains_independently_and_shares_the_teacher() -> None:
    distiller = distilling()
    twin = copy.deepcopy(distiller)
    assert twin.teacher is distiller.teacher
    assert torch.equal(step_of(twin).loss, step_of(distiller).loss)
    before = copy.deepcopy(distiller.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    step_of(twin).loss.backward()
    optimizer.step()
    assert all(p.grad is None for p in distiller.parameters())
    assert all(torch.equal(t, before[name]) for name, t in distiller.state_dict().items())
    moved = [not torch.equal(p, before[name]) for name, p in twin.named_parameters()]
    assert sum(moved) > len(moved) / 2
    assert not torch.equal(step_of(twin).logits, step_of(distiller).logits)


@pytest.mark.parametrize("family", ["ResNet", "Swin", "ViT"])
def test_the_students_state_dict_loads_into_the_plain_timm_model(family: str) -> None:
    distiller = distilling(FAMILIES[family]())
    step_of(distiller).loss.backward()
    plain = FAMILIES[family]()
    state = distiller.student.state_dict()
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    assert torch.equal(plain(images()), distiller.student.eval()(images()))


def test_a_loaded_state_dict_restores_a_distiller() -> None:
    distiller, other = distilling(), distilling(FAMILIES["ResNet"]())
    step_of(distiller)
    other.load_state_dict(distiller.state_dict())
    assert torch.equal(step_of(other.eval()).loss, step_of(distiller.eval()).loss)


def test_logits_are_skipped_with_a_note_if_the_classes_differ() -> None:
    distiller = distilling(teacher=swin(num_classes=7))
    assert distiller.criterion.weights.logits == 0
    (note,) = (n for n in distiller.notes if "logit" in n.text)
    assert "7" in note.text
    assert str(CLASSES) in note.text
    assert "\n" not in note.text
    step = step_of(distiller)
    assert set(step.terms) == {"task"} | TERMS - {"logits"}
    torch.testing.assert_close(step.terms["task"], F.cross_entropy(step.logits, TARGETS))


def test_logits_are_skipped_with_a_note_if_the_teacher_has_no_head() -> None:
    distiller = distilling(teacher=swin(num_classes=0))
    assert any("logit" in note.text and "no classes" in note.text for note in distiller.notes)
    assert "logits" not in step_of(distiller).terms
    with refused("no classifier"):
        distiller.teacher_logits(images())


def test_logits_that_are_switched_off_get_no_note() -> None:
    off = LossWeights(logits=0.0)
    assert not any(
        "logit" in n.text for n in distilling(teacher=swin(num_classes=7), weights=off).notes
    )


def test_a_random_teacher_gets_a_warning_note() -> None:
    distiller = ScaleKD("scalekd_digits_swin", digits_student(), teacher_weights="random")
    assert any(note.level == "warning" and "RANDOM" in note.text for note in distiller.notes)


def test_a_teacher_smaller_than_its_student_gets_a_note() -> None:
    assert any("smaller" in note.text for note in distilling().notes)
    assert distilling(vit(depth=4)).notes == []


def test_a_pretrained_larger_teacher_gets_only_a_note_of_its_weights() -> None:
    (note,) = ScaleKD("scalekd_digits_swin", digits_student(), size=(32, 32)).notes
    assert note.level == "info"
    assert "pretrained" in note.text
    assert "75 of 75 tensors" in note.text


def test_a_student_by_name_is_built_for_the_teachers_classes() -> None:
    distiller = distilling("test_vit", size=(160, 160))
    assert distiller.student.num_classes == CLASSES
    assert distilling("test_vit", size=(160, 160), num_classes=3).student.num_classes == 3


def test_the_teacher_gets_images_at_its_own_normalisation() -> None:
    overlay = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    student = resnet(pretrained_cfg_overlay=overlay)
    distiller = distilling(student)
    teacher_inputs: list[Tensor] = []
    hook = lambda m, i: teacher_inputs.append(i[0])  # noqa: E731
    distiller.teacher.model.patch_embed.register_forward_pre_hook(hook)
    pixels = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(1))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    distiller(normalised(overlay["mean"], overlay["std"]), TARGETS)
    config = distiller.teacher.input
    assert config.mean != overlay["mean"]
    torch.testing.assert_close(teacher_inputs[0], normalised(config.mean, config.std))


def test_images_pass_unchanged_between_equal_normalisations() -> None:
    overlay = {"mean": (MEAN,), "std": (STD,), "input_size": (1, 32, 32)}
    student = make("test_vit", in_chans=1, pretrained_cfg_overlay=overlay, img_size=32)
    distiller = ScaleKD("scalekd_digits_swin", student)
    x = images(channels=1, size=(32, 32))
    assert torch.equal(distiller.teacher_logits(x), distiller.teacher(x).logits)


@pytest.mark.parametrize("size", [(96, 96), (64, 96)])
def test_the_teacher_gets_images_at_its_own_resolution(size: tuple[int, int]) -> None:
    distiller = distilling(size=size)
    teacher_inputs: list[Tensor] = []
    hook = lambda m, i: teacher_inputs.append(i[0])  # noqa: E731
    distiller.teacher.model.patch_embed.register_forward_pre_hook(hook)
    distiller(images(4, size), TARGETS).loss.backward()
    assert tuple(teacher_inputs[0].shape[2:]) == SIZE


def test_a_student_of_other_input_channels_than_the_teachers_is_refused() -> None:
    with refused("1 channels", "3", "in_chans"):
        distilling(resnet(in_chans=1))


def test_images_of_another_size_than_the_distillers_are_refused() -> None:
    with refused("96x96", "64x64", "size=(96, 96)"):
        distilling()(images(4, (96, 96)), TARGETS)


@pytest.mark.parametrize(
    ("name", "arguments", "heads"),
    [
        ("swin_small_patch4_window7_224", {"embed_dim": 24, "num_heads": (1, 2, 4, 8)}, (3, 6)),
        ("swin_base_patch4_window7_224", {"embed_dim": 16, "num_heads": (1, 2, 4, 8)}, (8, 16)),
        ("swin_large_patch4_window7_224", {"embed_dim": 24, "num_heads": (1, 2, 4, 8)}, (16, 24)),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 48, "num_heads": (1, 2, 4, 8)}, (3, 6)),
    ],
)
def test_heads_are_the_papers_or_one_for_64_channels(
    name: str, arguments: dict[str, Any], heads: tuple[int, int]
) -> None:
    teacher = make(name, img_size=64, window_size=2, depths=(1, 1, 1, 1), **arguments)
    criterion = distilling(teacher=teacher, weights=ONE_VIEW).criterion
    assert (criterion.penultimate["original"].heads, criterion.final["original"].heads) == heads


def test_heads_of_the_packaged_teacher_follow_the_rule() -> None:
    criterion = ScaleKD("scalekd_digits_swin", digits_student(), size=(32, 32)).criterion
    assert (criterion.penultimate["original"].heads, criterion.final["original"].heads) == (1, 2)


def test_heads_can_be_chosen_and_must_divide_the_channels() -> None:
    criterion = distilling(heads=(4, 12)).criterion
    assert (criterion.penultimate["original"].heads, criterion.final["original"].heads) == (4, 12)
    with refused("5 heads", "24"):
        distilling(heads=(5, 12))


@pytest.mark.parametrize("family", ["ResNet", "ConvNeXt", "Swin", "ViT", "Mixer"])
def test_the_projectors_stem_has_channel_norm_for_convnext_only(family: str) -> None:
    criterion = distilling(FAMILIES[family]()).criterion
    norms = [p.stem[1] for m in (criterion.penultimate, criterion.final) for p in m.values()]
    expected = ChannelNorm if family == "ConvNeXt" else nn.BatchNorm2d
    assert len(norms) == 4
    assert all(type(norm) is expected for norm in norms)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pit_ti_224"])
def test_a_transformer_with_depthwise_convolutions_gets_batch_norm_stems(name: str) -> None:
    size = (224, 224) if name.startswith("pit") else SIZE
    criterion = distilling(make(name), size=size, weights=ONE_VIEW).criterion
    assert type(criterion.final["original"].stem[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("family", ["ResNet", "Swin"])
def test_names_exempt_from_weight_decay_are_names_of_parameters(family: str) -> None:
    distiller = distilling(FAMILIES[family]())
    names = dict(distiller.named_parameters())
    exempt = distiller.no_weight_decay()
    assert exempt <= names.keys()
    assert sum(name.endswith(".position") for name in exempt) == 4
    assert sum(name.endswith(".own_query") for name in exempt) == 2


@pytest.mark.parametrize("family", ["Swin", "ViT", "DeiT distilled", "ResNet"])
def test_timms_optimizer_decays_neither_positions_nor_what_the_student_exempts(family: str) -> None:
    distiller = distilling(FAMILIES[family]())
    optimizer = create_optimizer_v2(distiller, opt="adamw", lr=1e-3, weight_decay=0.1)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    names = dict(distiller.named_parameters())
    assert decay.keys() == {id(p) for p in names.values()}
    exemptions: Callable[[], set[str]] = getattr(distiller.student, "no_weight_decay", set)
    exempt = {f"student.{name}" for name in exemptions()} & names.keys()
    assert family == "ResNet" or exempt
    exempt |= {name for name in names if name.endswith((".position", ".own_query"))}
    for name, parameter in names.items():
        expected = 0.0 if name in exempt or parameter.dim() < 2 else 0.1
        assert decay[id(parameter)] == expected, name


@pytest.mark.parametrize("wrong", [CLASSES, -1, 1000])
def test_targets_out_of_range_are_refused(wrong: int) -> None:
    targets = TARGETS.clone()
    targets[2] = wrong
    with refused(str(wrong), f"{CLASSES} classes"):
        distilling()(images(4), targets)


def test_an_empty_batch_is_refused() -> None:
    with refused("0 images"):
        distilling()(images(0), TARGETS[:0])


@pytest.mark.parametrize("count", [0, 3, 5])
def test_different_numbers_of_images_and_targets_are_refused(count: int) -> None:
    with refused("4 images", f"{count} targets"):
        distilling()(images(4), torch.zeros(count, dtype=torch.long))


def test_one_image_under_batch_norm_is_refused_only_in_training() -> None:
    distiller = distilling()
    with refused("1 image", "BatchNorm"):
        distiller(images(1), TARGETS[:1])
    assert distiller.eval()(images(1), TARGETS[:1]).loss.isfinite()
    assert distilling(vit())(images(1), TARGETS[:1]).loss.isfinite()


def test_a_one_token_grid_is_refused_or_dropped_with_a_warning() -> None:
    with refused("1x1", "final_alternative"):
        distilling(size=(32, 32))
    with warned("final_alternative"):
        distiller = distilling(size=(32, 32), one_token="drop")
    step = distiller(images(4, (32, 32)), TARGETS)
    assert "final_alternative" not in step.terms
    assert step.loss.isfinite()


def test_a_student_that_is_its_own_teacher_is_refused() -> None:
    model = swin()
    with refused("student"):
        ScaleKD(model, model)


@pytest.mark.parametrize("index", [0, 2])
def test_the_students_penultimate_feature_can_be_chosen(index: int) -> None:
    distiller = distilling(student_features=FeatureSelection(penultimate=index))
    grid = distiller.criterion.penultimate["original"].position.shape[2:]
    assert tuple(grid) == {0: (32, 32), 2: (8, 8)}[index]
    assert step_of(distiller).loss.isfinite()
    with refused("9"):
        distilling(student_features=FeatureSelection(penultimate=9))


@pytest.mark.parametrize(
    ("student", "teacher"), [("ResNet", swin), ("ConvNeXt", vit), ("ViT", swin)]
)
def test_bfloat16_autocast_gives_finite_gradients(
    student: str, teacher: Callable[[], nn.Module]
) -> None:
    distiller = distilling(FAMILIES[student](), teacher=teacher())
    in_float32 = copy.deepcopy(distiller)
    with torch.autocast("cpu", torch.bfloat16):
        step = step_of(distiller)
    step.loss.backward()
    assert step.loss.dtype == torch.float32
    assert step.logits.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in distiller.parameters())
    for name, term in step_of(in_float32).terms.items():
        torch.testing.assert_close(step.terms[name].float(), term, atol=0.1, rtol=0.1)


def test_terms_are_float32_under_bfloat16_autocast() -> None:
    distiller = distilling()
    with torch.autocast("cpu", torch.bfloat16):
        step = step_of(distiller)
    assert {name: t.dtype for name, t in step.terms.items() if t.dtype != torch.float32} == {}


@pytest.mark.parametrize(
    "teacher",
    [
        swin,
        lambda: FrozenTeacher(swin()),
        vit,
        FAMILIES["DeiT distilled"],
        lambda: FrozenTeacher(resnet(), SIZE),
    ],
    ids=["module", "frozen", "ViT", "two prefix tokens", "convolutions"],
)
def test_any_teacher_with_a_tail_gives_all_terms(teacher: Callable[[], Any]) -> None:
    distiller = distilling(vit(), teacher=teacher())
    step = step_of(distiller)
    step.loss.backward()
    assert set(step.terms) == {"task"} | TERMS
    assert all(p.grad is not None for p in distiller.criterion.parameters())


def test_two_distillers_share_one_teacher() -> None:
    teacher = FrozenTeacher(swin())
    first, second = distilling(teacher=teacher), distilling(vit(), teacher=teacher)
    before = step_of(first.eval()).terms
    step_of(second)
    again = step_of(first).terms
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_two_distillers_can_share_one_teacher_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = FrozenTeacher(swin())
    pair = distilling(teacher=teacher).eval(), distilling(vit(), teacher=teacher).eval()
    apart = [step_of(distiller).terms for distiller in pair]
    outputs = pair[0].run_teacher(images(4))
    monkeypatch.setattr(FrozenTeacher, "__call__", None)  # no further pass is possible
    for distiller, expected in zip(pair, apart, strict=True):
        terms = distiller(images(4), TARGETS, outputs).terms
        assert all(torch.equal(terms[name], expected[name]) for name in expected)


def test_a_step_does_not_depend_on_earlier_teacher_passes() -> None:
    distiller = distilling().eval()
    expected = step_of(distiller).loss
    distiller.teacher_logits(images(7, seed=3))
    assert torch.equal(step_of(distiller).loss, expected)


def test_a_plain_pytorch_loop_lowers_every_term() -> None:
    torch.manual_seed(0)
    distiller = ScaleKD("scalekd_digits_swin", digits_student(), size=(32, 32)).train()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=2e-3)
    x = images(8, (32, 32), 1)
    targets = distiller.teacher_logits(x).argmax(1)
    history = []
    for _ in range(8):
        step = distiller(x, targets)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        history.append({name: term.item() for name, term in step.terms.items()})
    assert all(history[-1][name] < history[0][name] for name in history[0])


def test_a_teacher_by_name_is_pretrained_by_default() -> None:
    distiller = ScaleKD("scalekd_digits_swin", digits_student(), size=(32, 32))
    pretrained = timm.create_model("scalekd_digits_swin", pretrained=True).state_dict()
    state = distiller.teacher.model.state_dict()
    assert all(torch.equal(state[name], t) for name, t in pretrained.items())


BASELINES = sorted({getattr(baselines, name).__module__ for name in baselines.__all__})


@pytest.mark.parametrize("name", ["scalekd.distiller", "scalekd.scale_kd", *BASELINES])
def test_the_examples_in_the_docstrings_run(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted
    assert not result.failed
