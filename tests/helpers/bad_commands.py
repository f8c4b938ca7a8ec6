"""Bad commands over every command of the command line, made from the options that its parsers have.

`commands(root)` needs the files that `make_files(root)` writes.
"""

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from helpers.commands import overridden
from helpers.pictures import image_folder

from scalekd.cli.commands import COMMANDS

TRAINING = "distill", "train", "cache", "estimate"
LONG = "x" * 300
ODD_NAMES = ["no/such\x1b[31m", "[/red]none", "n\udcffone", "no\nne", ":bug:", "/dev/null", LONG]

NUMBERS = ["", "x", "nan", "-1", "1e400", "[1]", "{a: 1}", "1e20", "--", "true", "null"]
VALUES: dict[Any, list[str]] = {
    int: [*NUMBERS, "0.5", "99999999999999999999"],
    float: [*NUMBERS, "inf", "-inf"],
    bool: ["", "x", "2", "[true]", "null"],
    Literal: ["", "x", "[x]", "1", "null"],
    list: ["", "{a: 1}", "[[[1]]]", "x,y", "[" * 100, "[\x1b]"],
    tuple: ["", "x", "[1]", "[1,2,3]", "[0,1]", "[-1,1]", "[1e9,1e9]", "[a,b]"],
    dict: ["", "x", "[1]", "3", "{a: 1, a: 2}", "{" * 100, "{no_such_argument: 1}"],
}
"""Values that no option of the kind takes, or no option whose values are reasonable."""

UNUSED = {
    "train": (
        "--teacher_",
        "--weights",
        "--heads",
        "--temperature",
        "--compare",
        "--separable_stem",
    ),
    "cache": (
        "--student_",
        "--more_students",
        "--weights",
        "--compare",
        "--trackers",
        "--optim.lr",
    ),
}
"""Options that a command takes and has no use for: some of their values are not looked at."""


@dataclass(frozen=True)
class BadCommand:
    """Words of a command line, and what is bad about them."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return ascii(" ".join(word[:40] for word in self.words))[1:-1]


def make_files(root: Path) -> None:
    """Images, and files that are damaged or something else, in `root`."""
    image_folder(root / "images", each=2, side=16)
    (root / "empty").mkdir()
    (root / "flat").mkdir()
    (root / "thesis").mkdir()
    (root / "thesis" / "thesis.tex").write_text("mine")
    (root / "text.txt").write_text("mine")
    (root / "zeros.bin").write_bytes(bytes(1000))
    (root / "link").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    torch.save({"stray": torch.zeros(3)}, root / "other.pth")
    torch.save({"weight": torch.zeros(1000)}, root / "whole.pth")
    (root / "half.pth").write_bytes((root / "whole.pth").read_bytes()[:700])
    (root / "pickle.pth").write_bytes(pickle.dumps({"weight": Path("x")}, protocol=2))
    (root / "no.safetensors").write_text("nothing")
    for name, content in {
        "list": "[1, 2]", "twice": "epochs: 1\nepochs: 2\n", "tag": "!!python/name:os.system x",
        "other": "epoch: 3\n", "bomb": "a: &a [1]\nb: [*a, *a]\n", "deep": "[" * 500,
        "kinds": "epochs: [1]\n", "broken": "epochs: [", "empty": "", "null": "data: null\n",
        "folder": "more_students: [{name: test_resnet, folder: ..}]\n",
        "students": "more_students: [3]\n", "nested": "data: {root: {a: 1}}\n",
    }.items():  # fmt: skip
        (root / f"{name}.yaml").write_text(content)
    (root / "binary.yaml").write_bytes(bytes(range(256)))
    cache = root / "cache"
    cache.mkdir()
    (cache / "cache.json").write_text('{"format": 2, "rows_per_part": 0}')
    run = root / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "settings.yaml").write_text("a: [")


PLACES = [
    "none",
    "text.txt",
    "zeros.bin",
    "empty",
    "thesis",
    "link",
    "pipe",
    "half.pth",
    *ODD_NAMES,
]
"""Paths at which there is nothing useful."""


def base(command: str) -> list[str]:
    """Words with which the command would work, so that one bad word is what is wrong."""
    pair = ["--student=test_resnet", "--teacher=test_vit"]
    images = ["--data.root=images", "--data.workers=0", "--data.image_size=64"]
    small = ["--epochs=1", "--batch_size=2", "--optim.warmup_epochs=0", "--seeds=[1]"]
    small += ["--teacher_weights=random", "--teacher_args={img_size: 64}"]
    match command:
        case "distill" | "cache":
            return [command, *pair, *images, *small, "--out=out"]
        case "train":
            return [command, pair[0], *images, *small[:4], "--out=out"]
        case "estimate":
            return [command, *pair, *images, *small, "--gpu=a100"]
        case "check":
            return [command, *pair, "--image_size=64"]
        case "evaluate":
            return [command, "test_resnet", "--weights=random", *images[:2]]
        case "predict":
            return [command, "test_resnet", "images", "--weights=random", "--out=new.csv"]
        case "probe":
            return [command, "--model=test_resnet", "--weights=random", *images, "--out=new"]
        case "export":
            return [command, "half.pth", "--out=new"]
        case _:
            return [command]


def commands() -> Iterator[BadCommand]:
    """All bad commands."""
    for words in (*_by_kind(), *_by_place(), *_by_hand()):
        yield BadCommand(tuple(words[:-1] if words[-1:] == ["TWICE"] else overridden(words)))


def _by_kind() -> Iterator[list[str]]:
    """For each option of each command, values of other kinds."""
    for command in COMMANDS:
        kinds = dict(COMMANDS[command].build_parser(command)._kinds())
        for option, kind in kinds.items():
            for value in _bad_values(kind):
                from_the_end = value == "-1" and "_features." in option  # a negative index
                unused = option.startswith(UNUSED.get(command, ("none",)))
                if not (from_the_end or unused or option.endswith(("+", ".help"))):
                    yield [*base(command), f"{option}={value}"]


def _bad_values(kind: Any) -> list[str]:
    parts = [part for part in get_args(kind) if part is not type(None)]
    origin = get_origin(kind)
    if kind in VALUES or origin in VALUES:
        return VALUES[kind if kind in VALUES else origin]
    if is_dataclass(kind):
        return ["3", "none.yaml", "pipe", "broken.yaml"]
    if len(parts) == 1:  # of what may be None
        return [value for value in _bad_values(parts[0]) if value != "null"]
    return [""] if kind in (str, Path) else []


def _by_place() -> Iterator[list[str]]:
    """For each option that names a file or folder, places where there is nothing useful."""
    for command in ("distill", "train", "cache"):
        for place in PLACES:
            yield [*base(command), f"--data.root={place}"]
            yield [*base(command), "--config", place]
            if place in (LONG, "text.txt", "empty", "thesis", "link", "pipe", "/dev/null"):
                yield [*base(command), f"--out={place}"]
            yield [*base(command), f"--out={place}", "--resume", "--data.root=none"]
            if command != "train":
                yield [*base(command), f"--teacher_weights={place}"]
                yield [*base(command), f"--teacher=local-dir:{place}"]
                yield [*base(command), f"--teacher={place}"]
            if command == "distill":
                yield [*base(command), f"--cache={place}"]
            yield [*base(command), f"--student={place}"]
    for place in PLACES:
        yield ["evaluate", place, "--data.root=images"]
        yield ["evaluate", "test_resnet", f"--weights={place}", "--data.root=images"]
        yield ["evaluate", "test_resnet", "--weights=random", f"--data.root={place}"]
        yield ["export", place, "--out=new"]
        yield ["predict", place, "images", "--out=new.csv"]
        yield ["check", "--teacher", place, "--student=test_resnet"]
        yield ["check", "--teacher=test_vit", "--student", place]
        if place not in ("empty", "thesis"):
            yield ["runs", place]
        yield ["runs", "run", "--compare", place]
        yield ["runs", "run", "--compare", f"{place}.xyz"]
        yield ["runs", "run", "--compare", f"text.txt/{place}.png"]
        yield [f"{place}"]
    yield from (["export", "other.pth", f"--out={place}"] for place in PLACES)


def _by_hand() -> Iterator[list[str]]:
    """What needs more than one word, and odd command lines."""
    yield from ([], [""], ["--"], ["distil"], ["--help2"], ["distill", "extra"], ["runs", "--nope"])
    for command in COMMANDS:
        good = base(command)
        yield [*good, "--no_such_option=1"]
        yield [*good, "--no_such_option"]
        yield [*good, "--"]
        for word in good[1:]:
            if word.startswith("--"):
                yield [*good, word, "TWICE"]
                yield [*good, word.partition("=")[0]]  # without its value
        yield [*good, "--\x1b[31mred=1"]
        yield [*good, "--[/red]=1"]
    for command in TRAINING:
        good = base(command)
        for name in ("list", "twice", "tag", "other", "bomb", "deep", "kinds", "broken", "empty",
                     "binary", "null", "folder", "students", "nested"):  # fmt: skip
            yield [*good, f"--config={name}.yaml"]
        yield [*good, "--recipe=none"]
        yield [*good, "--recipe=../recipe"]
        yield [*good, "--recipe"]
        yield [*good, "--recipe=digits", "--recipe=digits", "TWICE"]
        yield [*good, "--optim.min_lr=1e300"]
        yield [*good, "--optim.drops=[nan]"]
        yield [*good, "--optim.warmup_epochs=9"]
        yield [*good, "--accumulate=7"]
        yield [*good, "--seeds=[1,1]"]
        yield [*good, "--seeds=[4294967296]"]
        yield [*good, "--data.image_size=1000000"]
        yield [*good, "--student_args={img_size: 1000000}"]
        yield [*good, "--student_args={num_classes: 1000000000}"]
        yield [*good, "--student_args={layers: [1000000000]}"]
        yield [*good, "--heads=[1000000,1]"]
        yield [*good, "--more_students=[{name: test_resnet, folder: ..}]"]
        yield [*good, "--more_students=[{name: test_resnet, folder: a/b}]"]
        yield [*good, "--more_students=[test_resnet]"]
        yield [*good, "--compare=[supervised,supervised]"]
        yield [*good, "--trackers=[csv,csv]"]
    for optimizer in ("adahessian", "bnbadam", "fusedadam", "none", "", "[", "fusedlamb"):
        yield [*base("distill"), f"--optim.name={optimizer}"]
        yield [*base("train"), f"--optim.name={optimizer}"]
    for devices in ("0", "-1", "1000", "1e9", "3"):
        yield [*base("distill"), f"--devices={devices}"]
    for parallel in ("0", "-1"):
        yield [*base("distill"), f"--parallel={parallel}"]
    yield [*base("distill"), "--out=out/../images"]
    yield [*base("distill"), "--out=text.txt/x"]
    yield [*base("distill"), "--out=run", "--resume"]
    yield [*base("distill"), "--out=text.txt", "--resume"]
    yield [*base("distill"), "--cache=cache"]
    yield [*base("cache"), "--out=cache", "--resume"]
    yield [*base("cache"), "--augmented_views=0"]
    yield [*base("cache"), "--augmented_views=1000000000"]
    yield ["check", "--student=test_resnet"]
    yield ["check", "--teacher=test_vit"]
    yield ["evaluate"]
    yield ["predict", "test_resnet", "images"]
    yield ["predict", "test_resnet", "none", "--weights=random", "--out=new.csv"]
    yield ["predict", "test_resnet", "images", "--weights=random", "--out=text.txt/x"]
    yield [*base("predict"), "--features=new.csv"]
    yield ["export"]
    yield ["export", "none.ckpt"]
    yield ["estimate", "--teacher=test_vit", "--student=test_resnet", "--gpu=none"]
    yield ["models", "a", "b"]
