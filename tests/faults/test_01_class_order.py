"""A teacher whose classes are in another order than the data's taught what is wrong, silently.

timm's data sets sort folders naturally (DC-3 before DC-10), torchvision and this package by code
point (DC-10 before DC-3).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers.evaluating import top1_of
from helpers.pictures import tar
from helpers.refusals import refused
from helpers.tiny import tiny
from helpers.trained_teacher import IMAGENET, coloured_folder, fit_teacher
from helpers.warned import warned
from timm.models import save_for_hf

from scalekd.jobs.build_cache import build_cache
from scalekd.jobs.distill import distill
from scalekd.jobs.preflight import run_preflight
from scalekd.recipe import Data, Recipe
from scalekd.training.prepare import prepare
from scalekd.training.teacher_classes import natural_order, put_classes_in_order

CLASSES = [f"DC-{number}" for number in range(1, 13)]
REVERSED = CLASSES[::-1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("images"), CLASSES)


def recipe_with_teacher(
    images: Path, order: Sequence[str], file: Path, **changes: object
) -> Recipe:
    torch.save(fit_teacher(images, order, img_size=64).state_dict(), file)
    return tiny(images, teacher_weights=str(file), **changes)


def test_a_teacher_in_natural_order_is_refused_with_the_option_to_set(
    images: Path, tmp_path: Path
) -> None:
    assert natural_order(CLASSES) != sorted(CLASSES)
    recipe = recipe_with_teacher(images, natural_order(CLASSES), tmp_path / "t.pth")
    with refused("on 8.3% of", "--teacher_classes natural on 100.0%", "--teacher_classes data"):
        run_preflight(prepare(recipe))
    with refused("--teacher_classes natural on 100.0%"):
        build_cache(recipe, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_natural_order_is_put_right_by_its_option(images: Path, tmp_path: Path) -> None:
    recipe = recipe_with_teacher(
        images, natural_order(CLASSES), tmp_path / "t.pth", teacher_classes="natural"
    )
    pair = run_preflight(prepare(recipe))
    assert pair.teacher_top1 == 1
    notes = [note.text for note in pair.notes]
    assert any("11 of the model's 12 classes were put in another place" in n for n in notes)


def test_the_order_of_the_data_can_be_insisted_on(images: Path, tmp_path: Path) -> None:
    recipe = recipe_with_teacher(
        images, natural_order(CLASSES), tmp_path / "t.pth", teacher_classes="data"
    )
    assert run_preflight(prepare(recipe)).teacher_top1 == pytest.approx(1 / 12)


def test_any_order_is_put_right_by_a_file_of_names(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(REVERSED))
    recipe = recipe_with_teacher(images, REVERSED, tmp_path / "t.pth", teacher_classes=str(file))
    assert run_preflight(prepare(recipe)).teacher_top1 == 1


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (None, "cannot be read"),
        ([*CLASSES[:-1], "Boeing"], "DC-12"),
        (CLASSES[:-1], "11 names for the data's 12"),
        ([*CLASSES, "DC-1"], "13 names for the data's 12"),
    ],
    ids=["no file", "another name", "too few", "a name twice"],
)
def test_a_wrong_file_of_names_is_refused(
    images: Path, tmp_path: Path, names: list[str] | None, reason: str
) -> None:
    file = tmp_path / "classes.txt"
    if names is not None:
        file.write_text("\n".join(names))
    recipe = tiny(
        images, teacher_args={"img_size": 64, "num_classes": 12}, teacher_classes=str(file)
    )
    with refused("teacher_classes", reason):
        prepare(recipe)


def test_an_order_that_no_program_makes_is_found_by_the_images(
    images: Path, tmp_path: Path
) -> None:
    recipe = recipe_with_teacher(images, REVERSED, tmp_path / "t.pth")
    with refused("--teacher_classes FILE", "in the order DC-12, DC-11, DC-10 …"):
        run_preflight(prepare(recipe))


def test_an_order_by_code_point_is_found_where_the_data_has_numbers(tmp_path: Path) -> None:
    """Classes of tar files are numbers in their own order, of folders by code point."""
    numbers = [str(number) for number in range(12)]
    folder = coloured_folder(tmp_path / "images", numbers)
    for split in ("train", "val"):
        members: dict[str, bytes] = {}
        for file in sorted((folder / split).glob("*/*.png")):
            key = f"{file.parent.name}-{file.stem}"
            members |= {f"{key}.png": file.read_bytes(), f"{key}.cls": file.parent.name.encode()}
        tar(tmp_path / "tars" / split / "0.tar", members)
    torch.save(fit_teacher(folder, sorted(numbers), img_size=64).state_dict(), tmp_path / "t.pth")
    recipe = tiny(tmp_path / "tars", teacher_weights=str(tmp_path / "t.pth"))
    with refused("--teacher_classes sorted on 100.0%"):
        run_preflight(prepare(recipe))
    assert run_preflight(prepare(replace(recipe, teacher_classes="sorted"))).teacher_top1 == 1


def test_a_run_resumes_with_the_same_order_from_another_file_only(
    images: Path, tmp_path: Path
) -> None:
    one, copy, other = (tmp_path / name for name in ("one.txt", "copy.txt", "other.txt"))
    one.write_text("\n".join(REVERSED))
    copy.write_text("\n".join(REVERSED))
    other.write_text("\n".join(natural_order(CLASSES)))
    recipe = recipe_with_teacher(images, REVERSED, tmp_path / "t.pth", teacher_classes=str(one))
    out = distill(recipe, tmp_path / "out")
    distill(replace(recipe, teacher_classes=str(copy)), out, resume=True)
    with refused("another order of the teacher's classes"):
        distill(replace(recipe, teacher_classes=str(other)), out, resume=True)


def test_evaluate_names_the_order_and_the_statistics_that_would_be_far_better(
    images: Path, tmp_path: Path
) -> None:
    file = str(tmp_path / "t.pth")
    torch.save(fit_teacher(images, natural_order(CLASSES), img_size=64).state_dict(), file)
    data = Data(str(images), 64, workers=0)
    with warned("right on 8.3% as it is set up, and on 100.0% with --classes natural"):
        assert top1_of("test_vit", data, file) == pytest.approx(1 / 12)
    assert top1_of("test_vit", data, file, classes="natural") == 1
    teacher = fit_teacher(images, natural_order(CLASSES), IMAGENET, img_size=64)
    torch.save(teacher.state_dict(), file)
    with warned("--data.mean '\\[0.485,0.456,0.406\\]' --data.std '\\[0.229,0.224,0.225\\]'"):
        top1_of("test_vit", data, file, classes="natural")
    mean, std = map(list, IMAGENET)
    data = replace(data, mean=mean, std=std)
    assert top1_of("test_vit", data, file, classes="natural") == 1


def test_names_of_another_number_of_classes_are_refused(images: Path) -> None:
    recipe = tiny(
        images, teacher_args={"img_size": 64, "num_classes": 7}, teacher_classes="natural"
    )
    with refused("'natural'", "7 classes", "12"):
        prepare(recipe)


@pytest.mark.parametrize("as_mapping", [False, True], ids=["a list", "by label"])
def test_names_in_the_teachers_own_folder_decide(
    images: Path, tmp_path: Path, as_mapping: bool
) -> None:
    names = {str(label): name for label, name in enumerate(REVERSED)} if as_mapping else REVERSED
    teacher = fit_teacher(images, REVERSED, img_size=64)
    save_for_hf(teacher, tmp_path / "teacher", model_config={"label_names": names})
    folder = f"local-dir:{tmp_path / 'teacher'}"
    recipe = tiny(images, teacher=folder, teacher_weights="pretrained", teacher_args={})
    pair = run_preflight(prepare(recipe))
    assert pair.teacher_top1 == 1
    assert any("of the model's 12 classes were put" in note.text for note in pair.notes)


def test_other_names_in_the_teachers_folder_are_a_warning(images: Path, tmp_path: Path) -> None:
    names = [f"plane {number}" for number in range(12)]
    teacher = fit_teacher(images, sorted(CLASSES), img_size=64)
    save_for_hf(teacher, tmp_path / "teacher", model_config={"label_names": names})
    folder = f"local-dir:{tmp_path / 'teacher'}"
    recipe = tiny(images, teacher=folder, teacher_weights="pretrained", teacher_args={})
    warnings = [n.text for n in run_preflight(prepare(recipe)).notes if n.level == "warning"]
    assert any("plane 0 ... plane 11" in text for text in warnings)


def test_a_few_classes_in_another_place_are_found_among_many(tmp_path: Path) -> None:
    """Two of forty classes change places, on which few random images would fall."""
    names = [f"a{number:02}" for number in range(38)] + ["z10", "z9"]
    images = coloured_folder(tmp_path / "images", names, each=20)
    order = natural_order(names)
    assert sum(a != b for a, b in zip(order, sorted(names), strict=True)) == 2
    teacher = fit_teacher(images, order, img_size=64)
    torch.save(teacher.state_dict(), tmp_path / "t.pth")
    with refused("--teacher_classes natural"):
        run_preflight(prepare(tiny(images, teacher_weights=str(tmp_path / "t.pth"))))


def test_a_deits_two_classifiers_are_both_put_in_order() -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3).eval()
    torch.nn.init.normal_(model.head_dist.weight)
    x = torch.randn(2, 3, 224, 224)
    before = model(x)
    order = put_classes_in_order(model, "natural", ["a1", "a10", "a2"])
    assert order.is_known
    assert order.places == (0, 2, 1)
    torch.testing.assert_close(model(x), before[:, [0, 2, 1]])
