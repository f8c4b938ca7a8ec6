"""Damage files that the package reads, and see that its readers only ever refuse by `InputError`.

    python tests/fuzz/fuzz.py --minutes 10 --seed 1

Each example takes one intact file (of a run folder, a checkpoint, weights, a cache, a tar, an
image, a recipe), damages it in a way that the seed decides, and reads it. Another exception, more
than `SECONDS` or more than `MEMORY` bytes is a finding: it is printed with the seed of its example,
its file is kept, and the exit code is 1.
"""

import argparse
import collections
import io
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml
from helpers.pictures import png, tar_folder
from PIL import Image

from scalekd.cache.store import Cache, Manifest
from scalekd.cli.commands import COMMANDS
from scalekd.data.decoding import decode_image
from scalekd.data.webdataset import TarSamples
from scalekd.errors import InputError
from scalekd.networks import InputConfig
from scalekd.networks.weight_files import choose_weights, read_checkpoint
from scalekd.reading import read_mapping
from scalekd.recipe import Data, Recipe
from scalekd.runs.checkpoint import load_newest, load_student, previous_checkpoint
from scalekd.runs.folder import RunFolder
from scalekd.runs.result import Result, Run
from scalekd.runs.status import differing_settings, draw_comparison, read_run_folders
from scalekd.runs.table import settings_table, status_table
from scalekd.text import build_console

SECONDS, MEMORY = 60, 8 * 2**30
RECIPE = Recipe("test_vit", "test_resnet", Data("x"), seeds=[1])
# fmt: off
PIECES = [
    b"\0", b"\xff" * 8, b"{", b"[" * 200, b"]", b"}", b"null", b"NaN", b"-1", b"1e999", b"9" * 40,
    b'""', b"\n", b"a: &a [*a]\n", b"!!python/name:os.system ", b"\x1b[31m", b"\xed\xa0\x80",
    b"true", b"0", b'"x"', b"[]", b"{}", b",", b":", b"PK\x03\x04", b"\x80\x02.", b"ustar",
]
ODD_VALUES = [None, -1, 0, 1e308, 10**30, "", "x", [], {}, [[]], True, "\x1b", 0.5, [1, "a"]]
# fmt: on


@dataclass(frozen=True)
class Target:
    """A kind of file: where an intact one lies, and what reads it.

    Attributes:
        file: the file that is damaged; all files of its folder are put back for each example.
        read: reads it, as the package does.
    """

    file: Path
    read: Callable[[Path], object]


def damage(content: bytes, chance: random.Random) -> bytes:
    """A damaged copy of a file's content."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        at = chance.randrange(len(data) + 1)
        length = min(len(data) - at, chance.choice([1, 2, 8, 64, 512]))
        match chance.randrange(8):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + length] = b""
            case 2:
                data[at:at] = chance.choice(PIECES)
            case 3:
                data[at : at + length] = bytes(length)
            case 4:
                data[at : at + length] = chance.choice(PIECES)
            case 5:
                data[at:at] = data[at : at + length] * chance.choice([1, 3])
            case 6:
                del data[at:]
            case 7:
                other = chance.randrange(len(data) + 1)
                data[at : at + length] = data[other : other + length]
    return bytes(data)


def change_value(content: bytes, chance: random.Random) -> bytes:
    """A JSON or YAML file in which a value is another one; `damage` where it is neither."""
    first, whole = content.partition(b"\n")[0], True
    try:
        plain = yaml.safe_load(content)
    except (ValueError, yaml.YAMLError):
        whole = False
        try:
            plain = json.loads(first)
        except ValueError:
            return damage(content, chance)
    inner: Any = plain
    while isinstance(inner, dict) and inner:
        key = chance.choice(list(inner))
        if not isinstance(inner[key], dict) or not inner[key] or chance.random() < 0.3:
            if chance.random() < 0.2:
                del inner[key]
            else:
                inner[key] = chance.choice(ODD_VALUES)
            break
        inner = inner[key]
    changed = json.dumps(plain).encode() + b"\n"
    return changed if whole else content.replace(first + b"\n", changed, 1)


def read_runs(file: Path) -> None:
    folder = RunFolder(file.parent)
    statuses = read_run_folders([file.parent.parent])
    console = build_console(file=io.StringIO(), width=100)
    console.print(status_table(statuses))
    console.print(settings_table(statuses, differing_settings(statuses)))
    json.dumps(list(map(asdict, statuses)))
    if file.name == "metrics.jsonl":
        draw_comparison(statuses, file.parent / "new.svg")
    with folder.hold(RECIPE, resume=True):
        folder.finished_results(RECIPE)
        folder.check_inputs(RECIPE, {})
        folder.trim_metrics([Run("scalekd", 1)])


def read_a_checkpoint(file: Path) -> None:
    load_newest(file)
    load_student(file)


def read_weights(file: Path) -> None:
    choose_weights(read_checkpoint(file), str(file))


def read_cache(file: Path) -> None:
    cache = Cache.open_complete(file.parent)
    for row in range(min(cache.manifest.rows, 4)):
        cache[row]


def read_tar(file: Path) -> None:
    samples = TarSamples([file])
    for index in range(min(len(samples), 3)):
        samples[index]


def read_index(file: Path) -> None:
    read_tar(file.parent / "0000.tar")


def read_recipe(file: Path) -> None:
    read_mapping(file)
    try:
        with redirect_stderr(io.StringIO()):
            COMMANDS["distill"].build_parser("distill").parse(["--config", str(file)])
    except SystemExit as ended:
        if ended.code != 2:
            raise


def make_targets(root: Path) -> list[Target]:
    """Intact files of all kinds below `root`."""
    targets = []
    folder = RunFolder(root / "runs" / "run")
    folder.start(RECIPE, {"teacher": "random", "cache": None}, [])
    folder.record_results([Result(Run("scalekd", 1), 0.5, 12.5, 30, 100.0, {"task": 1.5})])
    line = {"method": "scalekd", "seed": 1, "steps": 30, "seconds": 1.0, "loss": 1.0, "top1": None}
    for step in range(3):
        folder.append_metrics({**line, "step": step, "terms": {"task": 1.0}})
    folder.summary.write_text('{\n"teacher_top1": 0.5,\n"notes": []}\n')
    (folder.path / ".lock").write_text('{"host": "node", "pid": 1, "since": "today"}\n')
    targets += [Target(file, read_runs) for file in sorted(folder.path.iterdir())]

    student = {
        "name": "test_resnet",
        "arguments": {},
        "classes": 3,
        "input": None,
        "size": (64, 64),
    }
    weights = {"student.a": torch.arange(12.0), "student.b": torch.zeros(3, 3)}
    state = {"scalekd_student": student, "step": 3, "learner": weights, "average": None}
    checkpoint = root / "checkpoints" / "scalekd-seed1.ckpt"
    checkpoint.parent.mkdir()
    torch.save(state, checkpoint)
    torch.save(state, previous_checkpoint(checkpoint))
    targets += [Target(checkpoint, read_a_checkpoint), Target(checkpoint, read_weights)]
    from safetensors.torch import save_file

    save_file(weights, checkpoint.with_name("x.safetensors"))
    targets.append(Target(checkpoint.with_name("x.safetensors"), read_weights))

    config = InputConfig(1, (2, 2), (0.0,), (1.0,))
    cache = Cache(root / "cache", Manifest({"a": 1}, 4, 1, 0, config, "float32", 2, {"x": "1"}))
    cache.folder.mkdir()
    (cache.folder / "cache.json").write_text(json.dumps(asdict(cache.manifest), indent=1) + "\n")
    for part in range(2):
        rows = {"final": torch.rand(2, 3, 2, 2), "logits": torch.rand(2, 4)}
        cache.write_part(part, rows, torch.rand(2, 8))
    targets += [
        Target(cache.folder / name, read_cache) for name in ("cache.json", "000000.safetensors")
    ]

    tars = tar_folder(root / "tars", tars=1) / "train"
    targets.append(Target(tars / "0000.tar", read_tar))
    os.environ["XDG_CACHE_HOME"] = str(tars)
    read_tar(tars / "0000.tar")
    index = next((tars / "scalekd").iterdir())
    os.rename(index, tars / index.name)
    (tars / "scalekd").rmdir()
    (tars / "scalekd").symlink_to(".")  # beside the tar, so that both are put back
    targets.append(Target(tars / index.name, read_index))

    (root / "images").mkdir()
    noise = Image.effect_noise((40, 30), 80).convert("RGB")
    for ending in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        noise.save(root / "images" / f"x.{ending}")
        file = root / "images" / f"x.{ending}"
        targets.append(Target(file, lambda path: decode_image(path.read_bytes(), path.name)))
    (root / "images" / "grey.png").write_bytes(png(3))

    recipe = root / "recipes" / "x.yaml"
    recipe.parent.mkdir()
    shutil.copy(folder.settings, recipe)
    targets.append(Target(recipe, read_recipe))
    return targets


def ring(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def try_example(target: Target, content: bytes) -> str | None:
    """Read a damaged file in place of the intact one; gives the traceback of a finding."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / target.file.parent.name
        shutil.copytree(target.file.parent, copy, symlinks=True)
        times = target.file.stat()
        (copy / target.file.name).write_bytes(content)
        os.utime(copy / target.file.name, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.environ["XDG_CACHE_HOME"] = str(copy)
        signal.alarm(SECONDS)
        try:
            target.read(copy / target.file.name)
        except InputError as error:
            if "\n" in str(error) or not str(error).isprintable():
                return f"a message of several lines: {error!r}"
        except BaseException:
            return traceback.format_exc()
        finally:
            signal.alarm(0)
    return None


def main() -> None:
    """Fuzz for the time that the command line gives, and exit with 1 where there are findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="How long to fuzz.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the first example.")
    parser.add_argument("--examples", type=int, help="Stop after so many examples.")
    options = parser.parse_args()
    logging.getLogger("scalekd").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    findings, counts = 0, collections.Counter[str]()
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as root:
        targets = make_targets(Path(root))
        for target in targets:  # intact files are read
            if (finding := try_example(target, target.file.read_bytes())) is not None:
                sys.exit(f"the intact {target.file.name} is not read: {finding}")
        for seed in itertools.count(options.seed):
            if time.monotonic() > until or seed - options.seed == options.examples:
                break
            chance = random.Random(seed)
            target = chance.choice(targets)
            change = chance.choice([damage, change_value])
            content = change(target.file.read_bytes(), chance)
            counts[target.file.suffix or target.file.name] += 1
            if (finding := try_example(target, content)) is not None:
                findings += 1
                kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{target.file.name}"
                kept.write_bytes(content)
                print(
                    f"seed {seed}, {target.read.__name__}, kept in {kept}:\n{finding}", flush=True
                )
    print(f"{sum(counts.values())} examples, {findings} findings: {dict(counts)}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
