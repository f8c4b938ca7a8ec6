"""Where run folders stand, and how they compare."""

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
from scalekd.recipe import Baseline, Data, Optim, Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Method, Result, Run
from scalekd.runs.status import (
    RunFolderStatus,
    check_picture,
    differing_settings,
    draw_comparison,
    read_run_folders,
    standing,
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


def made(path: Path, recipe: Recipe = RECIPE, finished: int = 4, labels: bool = True) -> RunFolder:
    """A run folder with its first runs `finished`, the next one at half its steps."""
    folder = RunFolder(path)
    folder.make(recipe)
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
    folder.keep(results)
    if finished == len(TOPS):
        folder.summary.write_text(json.dumps({"teacher_top1": 0.9 if labels else None}))
    return folder


def shown(*each: RunFolderStatus, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(status_table(each))
    return console.export_text()


def test_a_finished_folder(tmp_path: Path) -> None:
    found = standing(made(tmp_path / "run").path)
    assert (found.state, found.step, found.steps, found.wrong) == ("finished", 160, 160, [])
    assert (found.teacher, found.student) == ("swin", "resnet")
    assert (found.methods, found.seeds) == (["scalekd", "supervised"], [1, 2])
    assert found.top1 == {"supervised": {1: 0.75, 2: 0.74}, "scalekd": {1: 0.80, 2: 0.82}}
    assert found.gain == {"supervised": pytest.approx([5.0, 8.0])}
    assert found.teacher_top1 == 0.9
    assert found.seconds == 40.0
    said = shown(found, width=120)
    for piece in ("finished, 160 steps", "81.00 (1.41)", "+6.50 (2.12)", "teacher 90.00"):
        assert piece in said
    assert "swin -> resnet" in said
    assert "2 methods x 2 seeds" in said
    assert "40 s of training" in said
    assert json.loads(json.dumps(asdict(found)))["state"] == "finished"


def test_a_folder_that_stopped_says_at_which_step(tmp_path: Path) -> None:
    found = standing(made(tmp_path / "run", finished=0).path)
    assert (found.state, found.step, found.steps) == ("stopped", 20, 160)
    assert (found.top1, found.so_far, found.wrong) == ({}, 0.4, [])
    said = shown(found)
    assert "stopped at 20 of 160" in said
    assert "ScaleKD 40.00 so far" in said
    partly = standing(made(tmp_path / "run", finished=2).path)
    assert (partly.step, partly.so_far, partly.gain) == (100, None, {})
    assert "stopped at 100 of 160" in shown(partly)


def test_without_labels_the_losses_are_shown(tmp_path: Path) -> None:
    found = standing(made(tmp_path / "run", labels=False).path)
    assert found.loss == {"supervised": {1: 2.0, 2: 2.0}, "scalekd": {1: 2.0, 2: 2.0}}
    assert "ScaleKD: loss 2.000 (0.000)" in shown(found)


def test_a_student_alone_has_one_arm(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.make(replace(RECIPE, teacher=None, compare=[]))
    assert standing(tmp_path).methods == ["supervised"]
    assert "resnet alone" in shown(standing(tmp_path))


def test_running_is_what_is_trained_in_and_what_was_killed_is_not(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", finished=1)
    with holding(folder.path) as (holder, _):
        found = standing(folder.path)
        with refused("run", f"process {holder.pid}"):
            folder.finished(RECIPE)
        with refused("run", f"process {holder.pid}"), folder.taken(RECIPE, []):
            pass
        holder.kill()
        holder.join()
        assert standing(folder.path).state == "stopped"
    assert found.state == "running"
    assert found.trainer is not None
    assert str(holder.pid) in shown(found)
    assert len(folder.finished(RECIPE)) == 1


def test_of_another_machine_it_says_perhaps(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", finished=1)
    began = {"host": "node7", "pid": 12, "since": "2026-01-01 00:00:00+00:00"}
    (folder.path / ".lock").write_text(json.dumps(began))
    said = shown(standing(folder.path))
    assert "perhaps running" in said
    assert "node7, 12" in said


def broken(folder: RunFolder, how: str) -> None:
    if how == "settings.yaml is missing":
        folder.settings.rename(folder.path / "settings.part")
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
def test_what_is_wrong_is_said_in_the_table(tmp_path: Path, how: str) -> None:
    folder = made(tmp_path / "run")
    broken(folder, how)
    found = standing(folder.path)
    assert how in found.wrong
    assert how.split(",")[0] in shown(found, width=140)
    assert [each.folder for each in read_run_folders([tmp_path])] == [str(folder.path)]


def test_a_folder_killed_while_it_was_made_is_listed_and_can_be_resumed(tmp_path: Path) -> None:
    for name in (".lock", "settings.part"):
        (tmp_path / name).touch()
    found = standing(tmp_path)
    assert (found.state, found.wrong) == ("stopped", ["settings.yaml is missing"])
    assert "stopped at 0 of ?" in shown(found)
    assert RunFolder(tmp_path).finished(RECIPE) == []
    with RunFolder(tmp_path).taken(RECIPE, []):
        assert standing(tmp_path).wrong == []


def test_folders_are_found_below_once_and_the_newest_comes_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "deep/middle", "deep/er/old")):
        folder = made(tmp_path / name)
        for file in folder.path.iterdir():
            os.utime(file, (1e9 - 1000 * age,) * 2)
    (tmp_path / "none").mkdir()
    found = read_run_folders([tmp_path, tmp_path / "deep", tmp_path / "new"])
    assert [Path(each.folder).name for each in found] == ["new", "middle", "old"]
    assert read_run_folders([tmp_path / "none"]) == []
    with refused("nowhere"):
        read_run_folders([tmp_path / "nowhere"])


def test_no_line_is_longer_than_the_terminal(tmp_path: Path) -> None:
    name = "beitv2_large_patch16_224.in1k_ft_in22k_in1k"
    compare: list[Baseline] = ["supervised", "logit_kd"]
    folder = made(tmp_path / "run", replace(RECIPE, teacher=name, student=name, compare=compare))
    for width in (80, 100):
        said = shown(replace(standing(folder.path), folder="runs/" + name), width=width)
        assert max(map(len, said.splitlines())) <= width
        assert "…" not in said
        assert name.rpartition(".")[2][-8:] in said.replace("\n", "")


def test_settings_that_differ_are_told_by_dotted_names(tmp_path: Path) -> None:
    other = replace(RECIPE, optim=Optim(lr=0.25), student_args={"depth": 3})
    one, two = (standing(made(tmp_path / n, r).path) for n, r in (("a", RECIPE), ("b", other)))
    said = differing_settings([one, two])
    assert said["optim.lr"] == [RECIPE.optim.lr, 0.25]
    assert said["student_args.depth"] == [None, 3]
    assert "epochs" not in said
    assert differing_settings([one, one]) == {}
    assert settings_table([one, two], said).row_count == len(said)


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
def test_curves_of_folders_are_in_one_picture_in_a_colour_each(
    tmp_path: Path, labels: bool
) -> None:
    both = [standing(made(tmp_path / name, labels=labels).path) for name in "ab"]
    draw_comparison(both[:1], tmp_path / "one.png")
    draw_comparison(both, tmp_path / "two.png")
    one, two = colours(tmp_path / "one.png"), colours(tmp_path / "two.png")
    assert near(BLUE, one)
    assert not near(ORANGE, one)
    assert near(ORANGE, two)  # drawn over the first, whose numbers are the same


def test_a_picture_is_not_overwritten_and_its_format_is_known(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_text("precious")
    with refused("mine.png", "not overwritten"):
        draw_comparison([], tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_text() == "precious"
    with refused("mine.txt", "png", "svg"):
        check_picture(tmp_path / "mine.txt")
    with refused("nothing to draw"):
        draw_comparison([], tmp_path / "new.png")
    with refused("cannot be written"):
        draw_comparison([standing(made(tmp_path / "run").path)], tmp_path / "no" / "new.png")


def parsed(text: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(text)
    return plain


def test_the_command_lists_draws_and_gives_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["runs"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "no run folders in runs" in said
    made(Path("runs/a"))
    made(Path("runs/b"), replace(RECIPE, epochs=7))
    main(["runs"])
    said = capsys.readouterr().out
    assert "runs/a" in said
    assert "epochs" not in said
    main(["runs", "runs/a", "runs/b", "--compare", "both.png"])
    assert "epochs" in capsys.readouterr().out
    assert Path("both.png").stat().st_size > 10_000
    main(["runs", "--json"])
    assert [each["state"] for each in parsed(capsys.readouterr().out)["runs"]] == ["finished"] * 2
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--compare", "both.png"])
    assert ended.value.code == 2
    assert "not overwritten" in capsys.readouterr().err
