"""Train the teachers of the evidence, and write the one that the repository carries.

    make evidence-teachers                      # all, one after another; goes on where it stopped
    python experiments/teachers.py small

Each is trained in two parts: on strongly augmented images, and then on nearly uncropped ones, as
it will see them. It is a folder of timm, runs/teachers/NAME-finished/student; the small one is also
written to experiments/teachers/small with its weights in float16.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
RECIPES = sorted((HERE / "teachers").glob("*.yaml"))
COMMITTED = "small"
WEIGHTS = "model.safetensors"
FINISH = {
    "data.crop_area": "0.8",
    "data.erasing": "0",
    "epochs": "10",
    "optim.lr": "1e-3",
    "optim.warmup_epochs": "0.5",
    "validate_every": "1",
}
"""What the second part changes of the recipe."""


def train(recipe: Path) -> Path:
    """Train a teacher, or go on; returns its folder."""
    first, finished = (Path("runs/teachers") / f"{recipe.stem}{part}" for part in ("", "-finished"))
    changes = [word for name, value in FINISH.items() for word in (f"--{name}", value)]
    run(recipe, first, [])
    run(recipe, finished, ["--student_weights", str(first / "student"), *changes])
    return finished / "student"


def run(recipe: Path, out: Path, options: list[str]) -> None:
    """Train by a recipe with further options, or go on."""
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
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        raise SystemExit(f"there is no teacher {min(unknown)!r}: choose of {', '.join(names)}")
    for recipe in sorted(
        RECIPES, key=lambda recipe: ("small", "medium", "large").index(recipe.stem)
    ):
        if recipe.stem in options.names:
            folder = train(recipe)
            if recipe.stem == COMMITTED:
                commit_in_half_precision(folder)


if __name__ == "__main__":
    main()
