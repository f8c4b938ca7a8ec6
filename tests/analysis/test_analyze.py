"""`scalekd analyze` of real runs: what it draws, what it leaves out and why, what it refuses."""

import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import class_folders, flat_folder, image_folder
from helpers.refusals import refused
from helpers.small_models import make
from helpers.tiny import tiny
from helpers.warned import warned
from PIL import Image
from timm.models import save_for_hf

from scalekd.analysis.analyze import analyze
from scalekd.analysis.layers import InsideView
from scalekd.analysis.models import Named, open_models
from scalekd.analysis.results import Analysis
from scalekd.analysis.text import describe
from scalekd.cli.main import main
from scalekd.data.open import open_source
from scalekd.jobs.distill import distill
from scalekd.method import LossWeights
from scalekd.recipe import Data

PICTURES = {"frequencies", "alternative_views", "attention", "similarity"}


@dataclass(frozen=True)
class Runs:
    """Finished runs of ScaleKD and logit KD, and one without the alternative view."""

    root: Path
    teacher: str
    both: Path
    one_view: Path


def saved(folder: Path, name: str, **arguments: Any) -> str:
    """The address of a model of three classes, whose weights were moved at random."""
    model = make(name, num_classes=3, **arguments)
    save_for_hf(model, folder, model_args={"num_classes": 3, **arguments})
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    images = image_folder(root / "images")
    one_view = LossWeights(tpp_alternative=0, final_alternative=0)
    model = saved(root / "teacher", "test_vit", img_size=64)
    recipe = tiny(images, teacher=model, teacher_weights="pretrained", teacher_args={})
    distill(replace(recipe, compare=["logit_kd"]), root / "both", 1)
    distill(replace(recipe, weights=one_view), root / "one", 1)
    return Runs(images, model, root / "both", root / "one")


def drawn(folder: Path) -> set[str]:
    for picture in folder.glob("*.png"):
        with Image.open(picture) as opened:
            opened.verify()
    return {picture.stem for picture in folder.glob("*.png")}


def reasons(analysis: Analysis) -> dict[str, str]:
    return {entry.picture: entry.reason for entry in analysis.left_out}


def test_a_run_folder_gives_all_pictures_and_their_numbers(runs: Runs, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[tuple[int, int]]()
    data = Data(str(runs.root))
    analysis = analyze(
        str(runs.both), data, out, images=10, batch_size=4, report=lambda *n: seen.append(n)
    )
    assert drawn(out) == PICTURES
    printed = describe(analysis, "out")
    assert all(f"out/{picture}.png: " in printed for picture in PICTURES)
    assert "of the energy of the teacher's final feature (64 channels of 4x4)" in printed
    assert analysis.left_out == []
    assert (analysis.images, analysis.teacher) == (10, runs.teacher)
    assert seen[-1] == (50, 50)  # frequencies, two for similarity, attention, alternative views
    assert analysis.frequencies is not None
    assert (analysis.frequencies.channels, analysis.frequencies.grid) == (64, (4, 4))
    assert analysis.similarity is not None
    assert analysis.similarity.images == 8  # CKA leaves out the last two
    assert analysis.similarity.teacher_layers[0] == "blocks.0"
    assert analysis.alternative_views is not None
    views = [(e.view, e.stage, e.weight) for e in analysis.alternative_views.distances]
    assert views == [("original", "final", 0.06), ("alternative", "final", 0.06)]
    assert all(len(e.per_image) == 10 for e in analysis.alternative_views.distances)
    assert analysis.attention is not None
    grids = [(e.stage, e.query_grid, e.key_grid) for e in analysis.attention]
    assert grids == [("tpp", (4, 4), (4, 4))] * 2 + [("final", (4, 4), (2, 2))] * 2
    written = json.loads((out / "analysis.json").read_text())
    assert written["frequencies"]["direct_energy"] == pytest.approx(
        analysis.frequencies.direct_energy, rel=1e-5
    )


def test_a_run_without_the_alternative_view_is_compared(runs: Runs, tmp_path: Path) -> None:
    checkpoint = str(runs.both / "checkpoints" / "scalekd-seed1.ckpt")
    data, compare = Data(str(runs.root)), [str(runs.one_view)]
    analysis = analyze(checkpoint, data, tmp_path / "out", compare=compare, images=4)
    assert analysis.alternative_views is not None
    entries = [(e.run, e.view, e.weight) for e in analysis.alternative_views.distances]
    assert entries == [
        (checkpoint, "original", 0.06),
        (checkpoint, "alternative", 0.06),
        (str(runs.one_view), "original", 0.0),
    ]
    (alone,) = [e for e in analysis.alternative_views.distances if e.run == str(runs.one_view)]
    itself = analyze(str(runs.one_view), data, tmp_path / "itself", images=4)
    assert itself.alternative_views is not None
    assert itself.alternative_views.distances[0].per_image == pytest.approx(alone.per_image)


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        ("both/student", "has no projectors"),
        ("both/checkpoints/logit_kd-seed1.ckpt", "a method without projectors"),
        ("moved.ckpt", "lies in no run folder"),
    ],
)
def test_without_projectors_two_pictures_are_left_out(
    student: str, reason: str, runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = runs.both.parent
    shutil.copy(home / "both" / "checkpoints" / "scalekd-seed1.ckpt", home / "moved.ckpt")
    teacher = None if "logit_kd" in student else runs.teacher
    with caplog.at_level(logging.INFO):
        analysis = analyze(
            str(home / student),
            Data(str(runs.root)),
            tmp_path / "out",
            teacher=teacher,
            images=4,
        )
    assert drawn(tmp_path / "out") == {"frequencies", "similarity"}
    assert set(reasons(analysis)) == {"attention", "alternative_views"}
    assert all(reason in text for text in reasons(analysis).values())
    assert f"attention.png is left out: {reasons(analysis)['attention']}" in caplog.messages


def test_projectors_are_left_out_under_another_teacher(runs: Runs, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", "test_convnext")
    analysis = analyze(str(runs.both), Data(str(runs.root)), tmp_path / "out", other, images=4)
    assert f"{other} is not the teacher" in reasons(analysis)["attention"]
    assert runs.teacher in reasons(analysis)["attention"]


def test_a_teacher_that_was_moved_is_known_by_its_weights(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.teacher.removeprefix("local-dir:"), tmp_path / "moved")
    moved, data = f"local-dir:{tmp_path / 'moved'}", Data(str(runs.root))
    analysis = analyze(str(runs.both), data, tmp_path / "out", moved, images=4)
    assert (analysis.left_out, analysis.teacher) == ([], moved)
    folder = runs.teacher.removeprefix("local-dir:")
    analysis = analyze(str(runs.both), data, tmp_path / "as_folder", folder, images=4)
    assert (analysis.left_out, analysis.teacher) == ([], folder)


def test_a_teacher_sees_the_digits_at_its_own_size_and_with_its_own_normalisation(
    tmp_path: Path,
) -> None:
    own = saved(tmp_path / "own", "test_vit", img_size=64, in_chans=1)
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [1, 64, 64], "mean": [0.9], "std": [0.1]}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    data = Data("digits")
    opened = open_models(Named(name=own), Named(name=own), [], open_source(data), data)
    for view in (opened.teacher, opened.student):
        assert isinstance(view, InsideView)
        assert (view.input.size, view.input.mean, view.input.std) == ((64, 64), (0.9,), (0.1,))


def test_a_final_feature_of_one_position_has_no_frequencies(runs: Runs, tmp_path: Path) -> None:
    teacher = saved(tmp_path / "teacher", "test_resnet")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 32, 32]
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    analysis = analyze(str(runs.both), Data(str(runs.root)), tmp_path / "out", teacher, images=4)
    assert "1x1" in reasons(analysis)["frequencies"]
    assert drawn(tmp_path / "out") == {"similarity"}


def test_images_without_labels_are_analysed(runs: Runs, tmp_path: Path) -> None:
    images = flat_folder(tmp_path / "flat")
    (images / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    with refused("broken.jpg"):
        analyze(str(runs.both), Data(str(images)), out)
    data = Data(str(images), corrupt_images="skip")
    with warned("broken.jpg"):
        analysis = analyze(str(runs.both), data, out, batch_size=4)
    assert analysis.images == 8
    assert drawn(out) == PICTURES


def test_what_cannot_be_analysed_is_refused_and_nothing_is_written(
    runs: Runs, tmp_path: Path
) -> None:
    out, data, run = tmp_path / "out", Data(str(runs.root)), str(runs.both)
    before = sorted(tmp_path.rglob("*"))
    with refused("exists and is not overwritten"):
        analyze(run, data, runs.root)
    with refused("images is 3", "4 or more"):
        analyze(run, data, out, images=3)
    with refused("batch_size is 1", "4 or more"):
        analyze(run, data, out, batch_size=1)
    with refused("no --teacher is given", "has no projectors", "name a teacher"):
        analyze("test_resnet", data, out)
    with refused("teacher_weights is 'random'", "--teacher"):
        analyze(run, data, out, teacher_weights="random")
    with refused("compare is", "has no projectors", "--compare"):
        analyze("test_resnet", data, out, teacher=runs.teacher, compare=[run])
    with refused(f"{runs.both}/student", "has no projectors"):
        analyze(run, data, out, compare=[str(runs.both / "student")])
    with refused("no folder"):
        analyze(run, Data(str(tmp_path / "none")), out)
    with refused("channels"):
        analyze(run, Data("digits"), out)
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_under_other_teachers_are_not_compared(runs: Runs, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs.one_view, other)
    settings = other / "settings.yaml"
    settings.write_text(settings.read_text().replace("teacher_prefix: own", "teacher_prefix: none"))
    with refused(str(other), "teacher_prefix none", "own"):
        analyze(str(runs.both), Data(str(runs.root)), tmp_path / "out", compare=[str(other)])


def test_damaged_run_folders_are_refused_or_left_out(runs: Runs, tmp_path: Path) -> None:
    run, data = tmp_path / "run", Data(str(runs.root))
    shutil.copytree(runs.one_view, run)
    (run / "settings.yaml").write_text("teacher: 3\nepochs: many\n")
    with refused("settings.yaml", "no recipe"):
        analyze(str(run), data, tmp_path / "out")
    shutil.copy(runs.one_view / "settings.yaml", run)
    (run / "checkpoints" / "scalekd-seed1.ckpt").write_bytes(b"no checkpoint")
    analysis = analyze(str(run), data, tmp_path / "out", images=4)
    assert "is damaged" in reasons(analysis)["attention"]


def test_json_is_all_that_stdout_has(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--student={runs.both}", f"--data.root={runs.root}", "--images=4"]
    main(["analyze", *options, f"--out={tmp_path / 'second'}", "--json"])
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((tmp_path / "second" / "analysis.json").read_text())
    with pytest.raises(SystemExit) as ended:
        main(["analyze", *options, f"--out={tmp_path / 'second'}"])
    assert ended.value.code == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_class_folders_alone_are_analysed(runs: Runs, tmp_path: Path) -> None:
    images = class_folders(tmp_path / "images", each=4, side=64)
    analysis = analyze(
        str(runs.both / "student"),
        Data(str(images)),
        tmp_path / "out",
        teacher=str(runs.one_view),
        images=12,
    )
    assert analysis.images == 12
    assert analysis.similarity is not None
    assert analysis.similarity.student_layers == analysis.similarity.teacher_layers
