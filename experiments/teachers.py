"""Train the teachers of the evidence, and write the one that the repository carries.

    make evidence-teachers                      # all, one after another; goes on where it stopped
    python experiments/teachers.py small
    python experiments/teachers.py small --images 5500     # fewer images, in as many steps

Each is trained in two parts: on strongly augmented images, and then on nearly uncropped ones, as
it will see them. It is a folder of timm, runs/teachers/NAME-finished/student; the small one is also
written to experiments/teachers/small with its weights in float16.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
RECIPES = sorted((HERE / "teachers").glob("*.yaml"))
COMMITTED = "small"
WEIGHTS = "model.safetensors"
ALL_IMAGES = 55_000
FINISH: dict[str, Any] = {
    "data.crop_area": 0.8,
    "data.erasing": 0,
    "epochs": 10,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 0.5,
}
"""What the second part changes of the recipe."""


def train(recipe: Path, images: int | None) -> Path:
    """Train a teacher, or go on; returns its folder. Of `images` it sees each one more often, so
    that the steps are as many."""
    name = recipe.stem if images is None else f"{recipe.stem}-{images}"
    first, finished = (Path("runs/teachers") / f"{name}{part}" for part in ("", "-finished"))
    settings = yaml.safe_load(recipe.read_text())
    repeats = 1 if images is None else round(ALL_IMAGES / images)
    epochs = [{"epochs": repeats * part["epochs"]} for part in (settings, FINISH)]
    fewer = {} if images is None else {"data.train_images": images}
    run(recipe, first, fewer | epochs[0])
    start = {"student_weights": first / "student"}
    run(recipe, finished, start | FINISH | fewer | epochs[1])
    return finished / "student"


def run(recipe: Path, out: Path, changes: dict[str, Any]) -> None:
    """Train by a recipe with some settings changed, or go on."""
    options = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    command = ["train", "--config", str(recipe), *options, "--out", str(out), "--resume"]
    subprocess.run([sys.executable, "-m", "scalekd", *command], check=True)


def commit_in_half_precision(folder: Path) -> None:
    """Copy a folder of timm with its weights in float16; statistics and counts stay as they are."""
    target = HERE / "teachers" / COMMITTED
    shutil.copytree(folder, target, dirs_exist_ok=True)
    state = load_file(folder / WEIGHTS)
    save_file(
        {n: t.half() if t.is_floating_point() else t for n, t in state.items()}, target / WEIGHTS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [recipe.stem for recipe in RECIPES]
    parser.add_argument("names", nargs="*", default=names, help=f"Of {', '.join(names)}.")
    parser.add_argument("--images", type=int, help="Train on so many images, default all.")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        raise SystemExit(f"there is no teacher {min(unknown)!r}: choose of {', '.join(names)}")
    for recipe in sorted(
        RECIPES, key=lambda recipe: ("small", "medium", "large").index(recipe.stem)
    ):
        if recipe.stem in options.names:
            folder = train(recipe, options.images)
            if recipe.stem == COMMITTED and options.images is None:
                commit_in_half_precision(folder)


if __name__ == "__main__":
    main()
