"""What is held out where there is no validation split: of each class a share, always the same."""

import shutil
import unicodedata
from pathlib import Path

import pytest
from helpers.pictures import PLAIN, class_folders, mean_byte, open_folder
from helpers.refusals import refused
from helpers.tiny import tiny

from scalekd.data.open import open_validation
from scalekd.data.source import Source
from scalekd.data.splits import SelectedSamples, first_named
from scalekd.evaluation.evaluate import evaluate
from scalekd.jobs.distill import distill
from scalekd.recipe import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images")


def held_out(source: Source, root: Path) -> set[str]:
    """The files that a source validates on, from `root`."""
    samples = source.validation_set(PLAIN)  # type: ignore[misc]
    while not isinstance(samples, SelectedSamples):
        samples = getattr(samples, "images", None) or samples.samples  # type: ignore[attr-defined]
    files = samples.samples.files  # type: ignore[attr-defined]
    return {str(Path(files[index]).relative_to(root)) for index in samples.indices}


def test_about_the_share_of_each_class_is_held_out_and_said(root: Path) -> None:
    source = open_folder(root, val_share=0.3)
    training, validation = source.splits
    assert (training.images + validation.images, validation.classes) == (60, ("ant", "bee", "cat"))
    files = held_out(source, root)
    for name in ("ant", "bee", "cat"):
        assert 2 <= sum(file.startswith(name) for file in files) <= 12
    (note,) = source.notes
    assert f"{validation.images} of the 60 images" in note.text
    assert "about 0.3" in note.text
    assert len(held_out(open_folder(root), root)) < len(files)
    assert held_out(open_folder(root, val_share=0.1), root) == held_out(open_folder(root), root)


def test_no_image_is_in_both_parts_and_each_has_its_class(root: Path) -> None:
    source = open_folder(root, val_share=0.3)
    training, validation = source.training_set(PLAIN, 0), source.validation_set(PLAIN)  # type: ignore[misc]
    values = {True: set[int](), False: set[int]()}
    for images in (training, validation):
        for index in range(len(images)):  # type: ignore[arg-type]
            image, target = images[index]
            value = mean_byte(image)
            assert value // 20 == target
            values[images is training].add(value)
    assert values[True] | values[False] == set(range(60))
    assert not values[True] & values[False]


def test_the_part_stays_when_images_are_added_and_wherever_they_lie(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = held_out(open_folder(root, val_share=0.3), root)
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    copy = tmp_path / "elsewhere" / "copy"
    assert held_out(open_folder(copy, val_share=0.3), copy) == before
    monkeypatch.chdir(root)
    assert held_out(open_folder(".", val_share=0.3), Path(".")) == before
    assert open_folder(".").identity == open_folder(copy).identity
    for index in range(20, 60):
        shutil.copy(root / "ant" / "0.png", root / "ant" / f"{index}.png")
    after = held_out(open_folder(root, val_share=0.3), root)
    assert before == {file for file in after if int(Path(file).stem) < 20}
    assert len(after) > len(before)


def test_the_part_is_the_same_under_both_unicode_forms_of_a_name(tmp_path: Path) -> None:
    parts = []
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "Käfer")
        root = class_folders(tmp_path / form, (name, "bee"))
        files = held_out(open_folder(root, val_share=0.3), root)
        parts.append({unicodedata.normalize("NFC", file) for file in files})
    assert parts[0] == parts[1]


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_each_class_with_several_images_is_in_both_parts(share: float, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images", each=2)
    class_folders(root / "more", ("one",), each=1)
    (root / "more" / "one").rename(root / "one")
    (root / "more").rmdir()
    source = open_folder(root, val_share=share)
    assert [split.images for split in source.splits] == [4, 3]
    assert any("1 of the 4 classes, for example one" in note.text for note in source.notes)


def test_classes_of_one_image_each_cannot_be_held_out(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images", each=1)
    with refused(str(root), "one image of each class"):
        open_folder(root)


def test_evaluation_takes_all_images_or_those_that_a_training_held_out(root: Path) -> None:
    everything = open_validation(Data(str(root)))
    assert everything.splits[0].images == 60
    assert "all 60 images" in str(everything.notes[0])
    part = open_validation(Data(str(root), val_share=0.3))
    assert held_out(part, root) == held_out(open_folder(root, val_share=0.3), root)
    assert f"{part.splits[0].images} of the 60 images" in str(part.notes[0])


def test_a_run_on_class_folders_is_evaluated_on_what_it_held_out(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images", side=64)
    out = distill(tiny(root), tmp_path / "out", parallel=1)
    measured = evaluate([str(out)], Data(str(root), val_share=0.1)).models[0].top1
    (result,) = (out / "results.jsonl").read_text().splitlines()
    assert f'"top1": {measured}' in result


def test_another_share_is_another_set_of_images_for_a_resumed_run(root: Path) -> None:
    one, other = open_folder(root), open_folder(root, val_share=0.5)
    assert one.identity != other.identity
    assert one.validation_identity != other.validation_identity


def test_names_of_splits_are_found_in_their_order() -> None:
    assert first_named(["Valid", "test"], ("val", "valid", "test"), "here") == "Valid"
    assert first_named(["more"], ("val", "valid"), "here") is None
