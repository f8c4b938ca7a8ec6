"""Train the digits teacher that the package carries, and write it with its card.

    make teacher          # the same as: python experiments/digits_teacher.py

Ctrl-C or a crash loses at most 500 steps: the same command resumes from the last checkpoint.
Result: scalekd/digits/teacher.safetensors (float16) and teacher.json (recipe, accuracy, hash).
"""

import argparse
import hashlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.layers import set_fused_attn
from torch import Generator, nn
from torch.nn import functional as F

from scalekd.digits.images import CLUTTER, build_test_set, load_originals, render
from scalekd.digits.teacher import scalekd_digits_swin

PACKAGE = Path(__file__).parents[1] / "scalekd" / "digits"


@dataclass(frozen=True)
class Recipe:
    """Settings of the teacher's training; `clip` is the largest norm of the gradients."""

    steps: int = 10_000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 300
    label_smoothing: float = 0.05
    clip: float = 1.0
    seed: int = 0


def learning_rate(recipe: Recipe, step: int) -> float:
    """A linear warm-up and a cosine decay to 0."""
    warmup = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def initialize_xavier(model: nn.Module) -> None:
    """Initialise linear layers by Xavier.

    timm's standard deviation of 0.02 suits wide Swins: one this narrow hardly learns with it.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    model.eval()
    images, labels = build_test_set().tensors
    hits = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(250), labels.split(250), strict=True)
    )
    model.train()
    return hits / len(labels)


def train(recipe: Recipe, checkpoint: Path) -> tuple[nn.Module, float]:
    """Train the teacher, or resume its training from `checkpoint`.

    Returns:
        The trained teacher, and the seconds that its training took, resumed parts included.
    """
    torch.manual_seed(recipe.seed)
    set_fused_attn(True, experimental=True)
    model = scalekd_digits_swin().train()
    initialize_xavier(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), weight_decay=recipe.weight_decay, betas=recipe.betas
    )
    digits = load_originals("train")
    # Clutter is added piece by piece, and only while the loss is low: with all clutter from the
    # first step the loss stays at that of guessing for thousands of steps.
    step, pieces, running, seconds = 0, 0, math.log(10), 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, pieces, running, seconds = (
            state[k] for k in ("step", "pieces", "running", "seconds")
        )
        print(f"resuming from step {step} of {recipe.steps} ({checkpoint})")

    start = time.perf_counter() - seconds
    while step < recipe.steps:
        generator = Generator().manual_seed(recipe.seed * recipe.steps + step)
        batch = digits.subset(torch.randint(len(digits), (recipe.batch,), generator=generator))
        images = render(batch, digits, generator, pieces)
        loss = F.cross_entropy(model(images), batch.labels, label_smoothing=recipe.label_smoothing)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        step += 1
        running += 0.02 * (loss.item() - running)
        if step % 50 == 0 and running < 1 and pieces < CLUTTER:
            pieces += 1
        if step % 500 == 0 or step == recipe.steps:
            seconds = time.perf_counter() - start
            print(
                f"step {step}: loss {running:.3f}, {pieces} pieces of clutter, "
                f"test {accuracy(model):.2%}, {seconds:.0f} s",
                flush=True,
            )
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "pieces": pieces,
                "running": running,
                "seconds": seconds,
            }
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, partial := checkpoint.with_suffix(".part"))
            os.replace(partial, checkpoint)
    return model, seconds


def write(model: nn.Module, recipe: Recipe, seconds: float) -> None:
    weights = PACKAGE / "teacher.safetensors"
    float16_state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(float16_state, weights)
    model.load_state_dict(load_file(weights))
    card = {
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_top1_after_float16": accuracy(model),
        "recipe": asdict(recipe),
        "training_seconds": round(seconds),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "command": "python experiments/digits_teacher.py",
    }
    (PACKAGE / "teacher.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="Training steps.")
    checkpoint = Path("runs/digits-teacher.pt")
    help_text = f"File to save to and to resume from. Default: {checkpoint}."
    parser.add_argument("--checkpoint", type=Path, default=checkpoint, help=help_text)
    options = parser.parse_args()
    recipe = Recipe(steps=options.steps)
    model, seconds = train(recipe, options.checkpoint)
    write(model, recipe, seconds)


if __name__ == "__main__":
    main()
