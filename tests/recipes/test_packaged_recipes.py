"""The packaged recipes: the paper's settings, and a run of each."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from helpers.pictures import image_folder
from helpers.refusals import refused

from scalekd.cli.main import main
from scalekd.distributed import ranks
from scalekd.jobs.smoke import shrink_to_smoke_test
from scalekd.method import LossWeights
from scalekd.networks.paper import ABLATION_PAIRS, PAIRS
from scalekd.recipe import RECIPES, Data, Optim, Recipe, Student, find_recipe

FILES = sorted(RECIPES.glob("*.yaml"))
PAPERS = [file for file in FILES if file.stem != "digits"]

SGD = {"name": "momentum", "lr": 0.1, "lr_batch_size": 256, "weight_decay": 1e-4, "decay_all": True}
TRADITIONAL = Optim(**SGD, warmup_epochs=0, drops=[30, 60, 90], clip=0)  # type: ignore[arg-type]
COSINE = Optim(**SGD, warmup_epochs=0, clip=0)  # type: ignore[arg-type]
LAMB = Optim("lamb", 5e-3, 2048, 0.02, decay_all=True, warmup_epochs=5, clip=5)
ADAMW = Optim("adamw", 1e-3, 1024, 0.05, warmup_epochs=20, min_lr=1e-5, clip=5)
MIXER = Optim("adamw", 7e-4, 1536, 0.067, decay_all=True, warmup_epochs=20, min_lr=1e-5, clip=1)

OPTIM = {
    "swin_small-resnet50": TRADITIONAL,
    "swin_base-resnet50": TRADITIONAL,
    "swin_large-resnet50-traditional": TRADITIONAL,
    "swin_large-mobilenetv1": COSINE,
    "swin_large-resnet50": LAMB,
    "swin_large-resnet50-600": LAMB,
    "eva_large-resnet50": LAMB,
    "swin_large-vit_base": ADAMW,
    "swin_large-vit_small": ADAMW,
    "swin_large-swin_tiny": ADAMW,
    "swin_large-convnext_tiny": ADAMW,
    "eva_large-vit_base14": ADAMW,
    "swin_large-mixer_s16": MIXER,
    "swin_large-mixer_b16": MIXER,
    "eva_large-mixer_b14": MIXER,
}


def read(file: Path) -> Recipe:
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Recipe)
    options = parser.instantiate(parser.parse_path(file))
    return Recipe(**vars(options))


def test_each_pair_of_the_paper_has_a_recipe_and_no_other_pair_has_one() -> None:
    recipes = [read(file) for file in PAPERS]
    here = {(r.teacher, r.student, str(r.teacher_args), str(r.student_args)) for r in recipes}
    for pair in (*PAIRS, *ABLATION_PAIRS):
        fitting = [
            r
            for r in recipes
            if (r.teacher, r.student, r.teacher_args)
            == (pair.teacher, pair.student, pair.teacher_args)
            and {k: v for k, v in r.student_args.items() if k != "drop_path_rate"}
            == pair.student_args
        ]
        assert fitting, str(pair)
    assert len(here) == len(PAIRS) + len(ABLATION_PAIRS)


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_a_packaged_recipe_has_the_papers_settings(file: Path) -> None:
    recipe = read(file)
    optim = OPTIM[file.stem]
    assert recipe.optim == optim
    assert recipe.batch_size == optim.lr_batch_size
    assert recipe.learning_rate == optim.lr
    traditional = optim in (TRADITIONAL, COSINE)
    assert recipe.epochs == (100 if traditional else 600 if file.stem.endswith("600") else 300)
    strength = next((n for o, n in ((LAMB, 7), (ADAMW, 9), (MIXER, 12)) if o == optim), None)
    policy = f"rand-m{strength}-n2-mstd0.5" if strength else None
    assert (recipe.data.auto_augment, recipe.data.erasing) == (policy, 0.25 if policy else 0.0)
    assert recipe.ema == (0.9999 if optim == ADAMW else None)
    assert recipe.label_smoothing == (0.1 if optim in (ADAMW, COSINE) else 0.0)
    assert recipe.task == ("bce_sum" if optim == LAMB else "cross_entropy")
    assert recipe.teacher_weights == "pretrained"
    assert recipe.heads is None
    without = LossWeights(final_alternative=0.0, logits=0.0)
    assert recipe.weights == (without if file.stem == "swin_small-resnet50" else None)
    assert recipe.temperature == 1.0


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)
def test_the_header_of_a_recipe_has_its_command_result_and_batch_size(file: Path) -> None:
    header = " ".join(line[2:] for line in file.read_text().splitlines() if line[:1] == "#")
    recipe = read(file)
    assert f"scalekd distill --recipe {file.stem} --data.root IMAGENET" in header
    assert "Ours: not run here" in header
    assert f"global batch {recipe.batch_size}" in header
    for pair in PAIRS:
        same = (pair.teacher, pair.student) == (recipe.teacher, recipe.student)
        sized = pair.student_args.get("patch_size") == recipe.student_args.get("patch_size")
        if same and sized and recipe.epochs == 300:
            assert (
                f"the paper's {pair.scalekd:.2f}, its supervised baseline {pair.supervised:.2f}"
                in header
            )


def test_a_recipe_without_its_images_is_refused_with_the_option_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--recipe", "swin_large-mobilenetv1"])
    assert ended.value.code == 2
    assert "no folder 'imagenet'; --data.root takes" in capsys.readouterr().err


SMALL = Recipe(
    "test_vit",
    "test_resnet",
    Data("imagenet", auto_augment="rand-m9-n2-mstd0.5", erasing=0.25, workers=4, train_images=9),
    teacher_args={"img_size": 96},
    epochs=300,
    batch_size=1024,
    accumulate=8,
    optim=Optim(
        "lamb", lr=1e-3, lr_batch_size=1024, warmup_epochs=20, drops=[30, 60], decay_all=True
    ),
    task="bce_sum",
    label_smoothing=0.1,
    ema=0.9999,
    seeds=[3, 4],
    compare=["logit_kd"],
)


def test_a_smoke_test_has_few_steps_of_the_same_kind(tmp_path: Path) -> None:
    short = shrink_to_smoke_test(SMALL, tmp_path)
    for name in ("teacher", "student", "task", "label_smoothing", "ema", "compare", "weights"):
        assert getattr(short, name) == getattr(SMALL, name)
    assert short.optim.name == "lamb"
    assert short.data.auto_augment == SMALL.data.auto_augment
    assert (short.epochs, short.batch_size, short.accumulate, short.seeds) == (2, 4, 2, [3])
    assert len(list(tmp_path.glob("train/*/*.png"))) == len(list(tmp_path.glob("val/*/*.png"))) == 8


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_packaged_recipe_can_be_shrunk(file: Path, tmp_path: Path) -> None:
    assert shrink_to_smoke_test(read(file), tmp_path).epochs == 2


def test_what_the_noise_of_a_smoke_test_contradicts_is_dropped(tmp_path: Path) -> None:
    recipe = replace(
        SMALL,
        data=replace(SMALL.data, val_share=0.2, labels=True),
        teacher_classes="natural",
        student_args={"num_classes": 7, "drop_rate": 0.1},
        more_students=[Student("resnet10t", {"num_classes": 7})],
    )
    short = shrink_to_smoke_test(recipe, tmp_path)
    assert (short.data.val_share, short.data.labels, short.teacher_classes) == (None, None, None)
    assert short.student_args == {"drop_rate": 0.1}
    assert [student.args for student in short.more_students] == [{}]  # type: ignore[union-attr]


def test_each_rank_of_a_smoke_test_gets_two_images_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 3)
    short = shrink_to_smoke_test(SMALL, tmp_path)
    assert (short.batch_size, short.accumulate) == (12, 2)
    assert len(list(tmp_path.glob("train/*/*.png"))) == 24


@pytest.mark.parametrize("recipe", ["small", "digits"])
def test_a_smoke_test_runs_four_steps(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if recipe == "small":
        Path("small.yaml").write_text(yaml.safe_dump(SMALL.as_dict()))
    named = ["--config", "small.yaml"] if recipe == "small" else ["--recipe", "digits"]
    main(["distill", *named, "--smoke", "--out", "out", "--parallel", "1"])
    said: dict[str, Any] = yaml.safe_load(Path("out/summary.json").read_text())
    assert said["steps"] == 4
    assert Path("out/student/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_packaged_recipe_passes_its_smoke_test(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from scalekd.cli.main import main; main()", "distill"]
    ran = subprocess.run(
        [*command, "--recipe", file.stem, "--smoke", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load((tmp_path / "out" / "summary.json").read_text())["steps"] == 4


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"accumulate": 3}, ["accumulate is 3", "batch_size is 128"]),
        ({"accumulate": 0}, ["accumulate is 0"]),
        ({"ema": 1.0}, ["ema is 1.0", "0.9999"]),
        ({"optim": Optim(drops=[30, 100])}, ["optim.drops", "100 epochs"]),
        ({"optim": Optim(drops=[60, 30])}, ["optim.drops are [60, 30]", "rise"]),
        ({"optim": Optim(lr_batch_size=0)}, ["optim.lr_batch_size is 0"]),
        ({"max_skipped": -1}, ["max_skipped is -1"]),
        ({"save_minutes": 0}, ["save_minutes is 0"]),
        ({"save_steps": 0}, ["save_steps is 0"]),
        ({"log_every": 0}, ["log_every is 0"]),
    ],
)
def test_an_impossible_setting_of_a_recipe_is_refused_with_its_name(
    options: dict[str, Any], pieces: list[str]
) -> None:
    with refused(*pieces):
        Recipe("test_vit", "test_resnet", Data("digits"), **options)


def test_another_batch_size_changes_the_learning_rate_in_proportion_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "images", side=32)
    main(
        ["distill", "--teacher", "test_vit", "--teacher_weights", "random", "--student",
         "test_resnet", "--data.root", str(tmp_path / "images"), "--data.workers", "0",
         "--epochs", "1", "--batch_size", "6", "--optim.lr", "0.5", "--optim.lr_batch_size", "12",
         "--optim.warmup_epochs", "0", "--optim.name", "momentum", "--log_every", "1",
         "--out", str(tmp_path / "out")]
    )  # fmt: skip
    assert (
        "the learning rate is 0.25: optim.lr is 0.5 for a batch of 12 images"
        in capsys.readouterr().out
    )
    first = yaml.safe_load((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["learning_rate"] == pytest.approx(0.25)


def test_an_unknown_recipe_is_refused_with_the_names_of_all_recipes() -> None:
    with refused("nobody", "swin_large-resnet50", "digits"):
        find_recipe("nobody")
