"""The state of run folders, and the comparison of several."""

import io
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.holding import holding
from helpers.refusals import refused
from PIL import Image
from rich.console import Console

from scalekd.cli.main import main
from scalekd.recipe import Data, Method, Optim, Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Result, Run
from scalekd.runs.status import (
    RunFolderStatus,
    check_picture,
    differing_settings,
    draw_comparison,
    read_run_folder,
    read_run_folders,
)
from scalekd.runs.table import settings_table, status_table

TOPS: dict[tuple[Method, int], float] = {
    ("scalekd", 1): 0.80,
    ("scalekd", 2): 0.82,
    ("supervised", 1): 0.75,
    ("supervised", 2): 0.74,
}
RECIPE = Recipe("swin", "resnet", Data("digits"), seeds=[1, 2], compare=["supervised"])


def entry(method: Method, seed: int, step: int, top1: float | None) -> str:
    plain = {"method": method, "seed": seed, "step": step, "steps": 40, "seconds": step / 4}
    return json.dumps({**plain, "loss": 3 - step / 40, "top1": top1}) + "\n"


def make_folder(
    path: Path, recipe: Recipe = RECIPE, finished: int = 4, labels: bool = True
) -> RunFolder:
    """A run folder with its first runs `finished`, the next one at half its steps."""
    folder = RunFolder(path)
    folder.start(recipe, {}, [])
    results = []
    with folder.metrics.open("w") as metrics:
        for index, ((method, seed), top1) in enumerate(TOPS.items()):
            known = top1 if labels else None
            if index > finished:
                break
            metrics.write(
                entry(method, seed, 10, None) + entry(method, seed, 20, known and known / 2)
            )
            if index < finished:
                metrics.write(entry(method, seed, 40, known))
                results.append(Result(Run(method, seed), known, 10.0, 40, 99.0, {"task": 2.0}))
    folder.record_results(results)
    if finished == len(TOPS):
        folder.summary.write_text(json.dumps({"teacher_top1": 0.9 if labels else None}))
    return folder


def rendered(*statuses: RunFolderStatus, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(status_table(statuses))
    return console.export_text()


def test_the_status_of_a_finished_folder_has_accuracies_gains_and_steps(tmp_path: Path) -> None:
    status = read_run_folder(make_folder(tmp_path / "run"))
    assert (status.state, status.step, status.steps, status.problems) == ("finished", 160, 160, [])
    assert (status.teacher, status.student) == ("swin", "resnet")
    assert (status.methods, status.seeds) == (["scalekd", "supervised"], [1, 2])
    assert status.top1 == {"supervised": {1: 0.75, 2: 0.74}, "scalekd": {1: 0.80, 2: 0.82}}
    assert status.gain == {"supervised": pytest.approx([5.0, 8.0])}
    assert status.teacher_top1 == 0.9
    assert status.seconds == 40.0
    text = rendered(status, width=120)
    for piece in ("finished, 160 steps", "81.00 (1.41)", "+6.50 (2.12)", "teacher 90.00"):
        assert piece in text
    assert "swin -> resnet" in text
    assert "2 methods x 2 seeds" in text
    assert "40 s of training" in text
    assert json.loads(json.dumps(asdict(status)))["state"] == "finished"


def test_a_stopped_folder_is_shown_with_its_step_and_newest_accuracy(tmp_path: Path) -> None:
    status = read_run_folder(make_folder(tmp_path / "run", finished=0))
    assert (status.state, status.step, status.steps) == ("stopped", 20, 160)
    assert (status.top1, status.current_top1, status.problems) == ({}, 0.4, [])
    text = rendered(status)
    assert "stopped at 20 of 160" in text
    assert "ScaleKD 40.00 so far" in text
    half = read_run_folder(make_folder(tmp_path / "run", finished=2))
    assert (half.step, half.current_top1, half.gain) == (100, None, {})
    assert "stopped at 100 of 160" in rendered(half)


def test_without_labels_losses_are_shown_in_place_of_accuracies(tmp_path: Path) -> None:
    status = read_run_folder(make_folder(tmp_path / "run", labels=False))
    assert status.loss == {"supervised": {1: 2.0, 2: 2.0}, "scalekd": {1: 2.0, 2: 2.0}}
    assert "ScaleKD: loss 2.000 (0.000)" in rendered(status)


def test_a_supervised_recipe_has_one_method(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start(replace(RECIPE, teacher=None, compare=[]), {}, [])
    assert read_run_folder(RunFolder(tmp_path)).methods == ["supervised"]
    assert "resnet, supervised" in rendered(read_run_folder(RunFolder(tmp_path)))


def test_a_folder_is_running_until_the_process_that_trains_is_killed(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path / "run", finished=1)
    with holding(folder.path) as (holder, _):
        status = read_run_folder(folder)
        with refused("run", f"process {holder.pid}"), folder.hold(RECIPE, resume=True):
            pass
        holder.kill()
        holder.join()
        assert read_run_folder(folder).state == "stopped"
    assert status.state == "running"
    assert status.process is not None
    assert str(holder.pid) in rendered(status)
    assert len(folder.finished_results(RECIPE)) == 1


def test_a_folder_that_another_machine_trains_in_is_perhaps_running(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", finished=1)
    began = {"host": "node7", "pid": 12, "since": "2026-01-01 00:00:00+00:00"}
    (folder.path / ".lock").write_text(json.dumps(began))
    text = rendered(read_run_folder(folder))
    assert "perhaps running" in text
    assert "node7, 12" in text


def damage(folder: RunFolder, how: str) -> None:
    if how == "settings.yaml is missing":
        folder.settings.unlink()
        (folder.path / ".lock").touch()
    elif how == "settings.yaml cannot be read":
        folder.settings.write_text("a: [")
    elif how == "settings.yaml is no recipe":
        folder.settings.write_text("a: 1")
    elif how == "settings.yaml is empty or no mapping":
        folder.settings.write_bytes(b"")
    elif how == "metrics.jsonl has broken lines: 3":
        cut = '{"method": "sca' + entry("scalekd", 1, 30, None)
        folder.metrics.write_text(cut + "[]\n{}\n" + folder.metrics.read_text() + '{"method"')
    elif how == "results.jsonl has broken lines: 1":
        folder.results.write_text('{"run": {"method": "supervised"}}\n')
    elif how == "summary.json is missing, which --resume writes":
        folder.summary.unlink()
    elif how == "summary.json cannot be read":
        folder.summary.write_text('{"a": "')


@pytest.mark.parametrize(
    "how",
    [
        "settings.yaml is missing",
        "settings.yaml cannot be read",
        "settings.yaml is no recipe",
        "settings.yaml is empty or no mapping",
        "metrics.jsonl has broken lines: 3",
        "results.jsonl has broken lines: 1",
        "summary.json is missing, which --resume writes",
        "summary.json cannot be read",
    ],
)
def test_files_that_cannot_be_read_are_listed_in_the_table(tmp_path: Path, how: str) -> None:
    folder = make_folder(tmp_path / "run")
    damage(folder, how)
    status = read_run_folder(folder)
    assert any(problem.startswith(how) for problem in status.problems)
    assert how.split(",")[0] in " ".join(rendered(status, width=140).split())
    assert [each.folder for each in read_run_folders([tmp_path])] == [str(folder.path)]


def test_a_folder_whose_creation_was_killed_is_listed_and_can_be_resumed(tmp_path: Path) -> None:
    for name in (".lock", ".scalekd-0123456789abcdef.part"):
        (tmp_path / name).touch()
    status = read_run_folder(RunFolder(tmp_path))
    assert (status.state, status.problems) == ("stopped", ["settings.yaml is missing"])
    assert "stopped at 0 of ?" in rendered(status)
    assert RunFolder(tmp_path).finished_results(RECIPE) == []
    with RunFolder(tmp_path).hold(RECIPE, resume=True):
        RunFolder(tmp_path).start(RECIPE, {}, [])
        assert read_run_folder(RunFolder(tmp_path)).problems == []


def test_a_stopped_run_without_settings_is_listed_with_accuracies_of_no_method(
    tmp_path: Path,
) -> None:
    supervised = Recipe(None, "resnet", Data("digits"), seeds=[1])
    folder = make_folder(tmp_path / "run", supervised, finished=0)
    folder.metrics.write_text(entry("supervised", 1, 20, 0.5))
    folder.settings.unlink()
    status = read_run_folder(folder)
    assert (status.methods, status.current_top1) == ([], None)
    assert status.problems
    status_table([status])


def test_a_cache_is_no_run_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "run")
    for name in (".lock", "cache.json"):
        (tmp_path / "cache" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cache" / name).touch()
    assert [status.folder for status in read_run_folders([tmp_path])] == [str(tmp_path / "run")]


def test_run_folders_below_several_roots_are_listed_once_newest_first(
    tmp_path: Path,
) -> None:
    for age, name in enumerate(("new", "deep/middle", "deep/er/old")):
        folder = make_folder(tmp_path / name)
        for file in folder.path.iterdir():
            os.utime(file, (1e9 - 1000 * age,) * 2)
    (tmp_path / "none").mkdir()
    statuses = read_run_folders([tmp_path, tmp_path / "deep", tmp_path / "new"])
    assert [Path(each.folder).name for each in statuses] == ["new", "middle", "old"]
    assert read_run_folders([tmp_path / "none"]) == []
    with refused("nowhere"):
        read_run_folders([tmp_path / "nowhere"])


def test_no_line_of_the_table_is_longer_than_the_terminal(tmp_path: Path) -> None:
    name = "beitv2_large_patch16_224.in1k_ft_in22k_in1k"
    compare: list[Method] = ["supervised", "logit_kd"]
    folder = make_folder(
        tmp_path / "run", replace(RECIPE, teacher=name, student=name, compare=compare)
    )
    for width in (80, 100):
        text = rendered(replace(read_run_folder(folder), folder="runs/" + name), width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert name.rpartition(".")[2][-8:] in text.replace("\n", "")


def test_differing_settings_have_dotted_names(tmp_path: Path) -> None:
    other = replace(RECIPE, optim=Optim(lr=0.25), student_args={"depth": 3})
    one, two = (
        read_run_folder(make_folder(tmp_path / n, r)) for n, r in (("a", RECIPE), ("b", other))
    )
    differences = differing_settings([one, two])
    assert differences["optim.lr"] == [RECIPE.optim.lr, 0.25]
    assert differences["student_args.depth"] == [None, 3]
    assert "epochs" not in differences
    assert differing_settings([one, one]) == {}
    assert settings_table([one, two], differences).row_count == len(differences)


def colours(picture: Path) -> set[tuple[int, ...]]:
    with Image.open(picture) as drawn:
        counted = drawn.convert("RGB").getcolors(1 << 20) or []
    return {colour for count, colour in counted if count > 20}  # type: ignore[misc]


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def near(wanted: tuple[int, ...], seen: set[tuple[int, ...]]) -> bool:
    """As it is, or lightened by the lines' transparency."""
    light = tuple(round(0.8 * c + 51) for c in wanted)
    return any(max(abs(a - b) for a, b in zip(light, c, strict=True)) < 12 for c in seen)


@pytest.mark.parametrize("labels", [True, False])
def test_curves_of_several_folders_are_drawn_in_one_picture_in_a_colour_each(
    tmp_path: Path, labels: bool
) -> None:
    both = [read_run_folder(make_folder(tmp_path / name, labels=labels)) for name in "ab"]
    draw_comparison(both[:1], tmp_path / "one.png")
    draw_comparison(both, tmp_path / "two.png")
    one, two = colours(tmp_path / "one.png"), colours(tmp_path / "two.png")
    assert near(BLUE, one)
    assert not near(ORANGE, one)
    assert near(ORANGE, two)  # drawn over the first, whose numbers are the same


def test_a_picture_is_not_overwritten_and_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_text("precious")
    with refused("mine.png", "not overwritten"):
        draw_comparison([], tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_text() == "precious"
    with refused("mine.txt", "png", "svg"):
        check_picture(tmp_path / "mine.txt")
    with refused("nothing to draw"):
        draw_comparison([], tmp_path / "new.png")
    with refused("cannot be written"):
        draw_comparison(
            [read_run_folder(make_folder(tmp_path / "run"))], tmp_path / "no" / "new.png"
        )


def parsed(text: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(text)
    return plain


def test_the_runs_command_lists_folders_draws_curves_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["runs"])
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert "no run folders in runs" in text
    make_folder(Path("runs/a"))
    make_folder(Path("runs/b"), replace(RECIPE, epochs=7))
    main(["runs"])
    text = capsys.readouterr().out
    assert "runs/a" in text
    assert "epochs" not in text
    main(["runs", "runs/a", "runs/b", "--compare", "both.png"])
    assert "epochs" in capsys.readouterr().out
    assert Path("both.png").stat().st_size > 10_000
    main(["runs", "--json"])
    assert [each["state"] for each in parsed(capsys.readouterr().out)["runs"]] == ["finished"] * 2
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--compare", "both.png"])
    assert ended.value.code == 2
    assert "not overwritten" in capsys.readouterr().err
