"""The command line: functions by name, their options made from their signatures."""

import argparse
import difflib
import itertools
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from scalekd.cli.logs import shown_logs
from scalekd.errors import InputError
from scalekd.signals import remember_ctrl_c

EXAMPLES = """\
  scalekd distill                                    digits: 2 CPU cores, no download
  scalekd check --teacher swin_small_patch4_window7_224 --student resnet50
  scalekd distill --teacher swin_small_patch4_window7_224 --student resnet50 --data.root DIR
  scalekd runs
  scalekd estimate --recipe swin_large-resnet50 --devices 8 --gpu h100
  scalekd evaluate runs/digits/student --data.root digits
  scalekd export runs/digits/checkpoints/scalekd-seed4.ckpt --out student
  scalekd models "*dinov3*"
"""


COMMANDS = {
    "distill": "train a student under a teacher, compare",
    "train": "train the student alone, by the same recipe",
    "runs": "run folders: where they stand, how they compare",
    "check": "how a teacher and a student fit, before any training",
    "cache": "the teacher's features on disk, for trainings without its passes",
    "estimate": "time, memory and days of a recipe, before anyone pays",
    "models": "models that are known to fit",
    "evaluate": "measure a model on validation images",
    "export": "a checkpoint's student, for plain timm",
}


class Parser(jsonargparse.ArgumentParser):
    """Says what is wrong in one line.

    given: what was typed; jsonargparse names of a nested option only the last part.
    """

    given: Sequence[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with 2."""
        line = re.sub(r"\s+", " ", _plainly(message)).strip()
        line = re.sub(r"^Option '(\w+)' is not accepted", r"Unrecognized arguments: --\1", line)
        near = self._nearest(line)
        for option in (a.partition("=")[0] for a in self.given if re.match(r"--\w+\.", a)):
            beginning, _, last = option.rpartition(".")
            line, found = re.subn(rf"--{re.escape(last)}(?![\w.-])", option, line)
            near = re.sub("--(?!help)", f"{beginning}.", near) if found else near
        # jsonargparse cuts off long lists.
        line = re.sub(r"\{distill,[^}]*\}", f"{{{', '.join(COMMANDS)}}}", line)
        line = re.sub(r"\bevaluate\.model\b", "model", line)
        line = re.sub(rf"\b({'|'.join(COMMANDS)})\.(?=[a-z])", "--", line)
        _fail(line + near)

    def _nearest(self, message: str) -> str:
        unknown = re.search(r"[Uu]nrecognized arguments?: (--[\w.-]+)", message)
        if not unknown:
            return ""
        options = [o for action in self._actions for o in action.option_strings]
        for action in self._actions:
            for parser in getattr(action, "_name_parser_map", {}).values():
                options += [o for a in parser._actions for o in a.option_strings]
        near = difflib.get_close_matches(unknown[1], options, n=2, cutoff=0.75)
        return f"; did you mean {' or '.join(near)}?" if near else "; --help lists the options"


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exits with 2 after bad input (one line) and with 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with shown_logs(), remember_ctrl_c():
            _run(_readable(_with_recipe(arguments)))
    except InputError as error:
        _refuse(arguments, str(error))
    except ValueError as error:  # jsonargparse wraps what a class refuses
        if not isinstance(error.__cause__, InputError):
            raise
        _refuse(arguments, str(error.__cause__))
    except KeyboardInterrupt:
        print("scalekd: stopped at once; what a run wrote before is in its folder", file=sys.stderr)
        sys.exit(130)


def _run(arguments: list[str]) -> None:
    parser = _parser(arguments)
    options = parser.instantiate(parser.parse_args(arguments))
    chosen = options[options.subcommand]
    if options.subcommand in ("distill", "train"):
        _fit(options.subcommand, chosen, arguments)
        return
    run: Callable[[Any], None] = {
        "runs": _runs,
        "check": _check,
        "cache": _cache,
        "estimate": _estimate,
        "models": _models,
        "evaluate": _evaluate,
        "export": _export,
    }[options.subcommand]
    run(chosen)


# What a command needs is imported when it is run: the trainer alone takes seconds.


def _fit(command: str, chosen: Any, arguments: list[str]) -> None:
    from scalekd.distributed import ranks
    from scalekd.distributed.launch import check_devices, launch
    from scalekd.jobs.distill import distill
    from scalekd.jobs.smoke import shrink_to_smoke_test
    from scalekd.recipe import Recipe
    from scalekd.signals import Interrupted

    chosen.pop("config")
    chosen.pop("recipe")
    out, parallel, resume = (chosen.pop(name) for name in ("out", "parallel", "resume"))
    devices, shrunk = chosen.pop("devices"), chosen.pop("smoke")
    if command == "train":
        chosen.teacher, chosen.compare = None, []
    elif chosen.teacher is None:
        raise InputError("no --teacher is named: name one, or `scalekd train` the student alone")
    recipe = Recipe(**vars(chosen))
    check_devices(devices)
    if devices > 1 and ranks.launch_environment().world_size == 1:
        sys.exit(launch(devices, arguments))
    try:
        with tempfile.TemporaryDirectory() as images:
            recipe = shrink_to_smoke_test(recipe, Path(images)) if shrunk else recipe
            distill(recipe, out, parallel, resume)
    except ranks.AnotherRankFailed:
        sys.exit(2)
    except InputError as error:
        raise InputError(f"rank {ranks.rank()}: {error}" if ranks.rank() else str(error)) from error
    except Interrupted as stopped:
        if ranks.rank() == 0:
            print(f"scalekd: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)


def _cache(chosen: Any) -> None:
    from scalekd.jobs.build_cache import build_cache
    from scalekd.recipe import Recipe
    from scalekd.signals import Interrupted

    chosen.pop("config")
    chosen.pop("recipe")
    how = {name: chosen.pop(name) for name in ("out", "views", "keep", "resume")}
    if chosen.teacher is None:
        raise InputError("no --teacher is named: name the one whose features are to be kept")
    try:
        build_cache(Recipe(**vars(chosen)), **how)
    except Interrupted as stopped:
        print(f"scalekd: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)


def _runs(chosen: Any) -> None:
    from rich.console import Console

    from scalekd.runs.status import (
        check_picture,
        differing_settings,
        draw_comparison,
        read_run_folders,
    )
    from scalekd.runs.table import settings_table, status_table

    if chosen.compare is not None:
        check_picture(chosen.compare)
    begun = chosen.folders or Path("runs").is_dir()
    found = read_run_folders(chosen.folders or [Path("runs")]) if begun else []
    differ = differing_settings(found) if chosen.compare is not None else {}
    if chosen.json:
        print(json.dumps({"runs": [asdict(each) for each in found], "differences": differ}))
    elif not found:
        where = ", ".join(map(str, chosen.folders)) or "runs"
        print(f"no run folders in {where}; `scalekd distill` makes one")
    else:
        Console(highlight=False).print(status_table(found))
    if chosen.compare is not None and found:
        draw_comparison(found, chosen.compare)
        if not chosen.json:
            Console(highlight=False).print(settings_table(found, differ))
            print(f"{chosen.compare}: their learning curves")


def _check(chosen: Any) -> None:
    from scalekd.compatibility.check import check_pair
    from scalekd.compatibility.text import format_report

    as_json = chosen.pop("json")
    checked = check_pair(**vars(chosen))
    print(json.dumps(asdict(checked), indent=2) if as_json else format_report(checked))


def _estimate(chosen: Any) -> None:
    from scalekd.estimating.estimate import estimate
    from scalekd.estimating.text import format_estimate
    from scalekd.recipe import Recipe

    chosen.pop("config")
    chosen.pop("recipe")
    as_json = chosen.pop("json")
    asked = {name: chosen.pop(name) for name in ("devices", "gpu", "memory", "images")}
    found = estimate(Recipe(**vars(chosen)), **asked)
    print(json.dumps(asdict(found), indent=2) if as_json else format_estimate(found))


def _models(chosen: Any) -> None:
    from scalekd.compatibility.text import format_known_models

    print(format_known_models(chosen.pattern))


def _evaluate(chosen: Any) -> None:
    from scalekd.evaluation.evaluate import evaluate

    print(f"top-1 {evaluate(chosen.model, chosen.data, chosen.weights):.2%}")


def _export(chosen: Any) -> None:
    from scalekd.export.checkpoint import export_checkpoint

    export_checkpoint(chosen.checkpoint, chosen.out)
    print(f'timm.create_model("local-dir:{chosen.out}", pretrained=True)')


def _parser(arguments: Sequence[str]) -> Parser:
    """All commands, of which only the first argument has its options."""
    command = arguments[0] if arguments else ""

    class Given(Parser):  # a class, since jsonargparse makes more of it for nested options
        given = arguments

    parser = Given(
        prog="scalekd",
        description="Knowledge distillation from vision transformers into any small network.",
        epilog="examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(required=True)
    of = Given(allow_abbrev=False)
    if command in ("distill", "train"):
        of.description = {
            "distill": "Train a student under a teacher, and compare. Without a teacher, student "
            "or data: digits.",
            "train": "Train the student of a recipe alone: what its distillation is compared with.",
        }[command]
        _add_recipe(of)
        of.add_argument("--out", type=Path | None, help="run folder to write; must not exist")
        of.add_argument("--parallel", type=int | None, help="runs side by side")
        of.add_argument(
            "--devices", type=int, default=1, help="of this machine, for each run: a process each"
        )
        of.add_argument(
            "--smoke", action="store_true", help="the same in a minute, on noise: does it run?"
        )
        of.add_argument("--resume", action="store_true", help="go on with what is in --out")
    elif command == "runs":
        of.description = "Where the runs of folders stand; compare draws and tells them apart."
        of.add_argument("folders", nargs="*", type=Path, help="run folders, or above; default runs")
        of.add_argument("--compare", type=Path | None, help="picture to draw of their curves")
        of.add_argument("--json", action="store_true", help="the same as data")
    elif command == "check":
        from scalekd.compatibility.check import check_pair

        of.add_function_arguments(check_pair)
        of.add_argument("--json", action="store_true", help="the same as data")
    elif command == "cache":
        from scalekd.jobs.build_cache import build_cache

        of.description = (
            "Keep what a teacher says of images, so that trainings read it (--cache). Takes what "
            "distill takes, of which the teacher, the data, the first of the seeds, batch_size and "
            "precision matter, and a student's size and normalisation where it is named."
        )
        _add_recipe(of)
        of.set_defaults({"student": ""})
        of.add_function_arguments(build_cache, skip={"recipe", "resume"})
        of.add_argument("--resume", action="store_true", help="go on with what is in --out")
    elif command == "estimate":
        from scalekd.estimating.estimate import estimate

        _add_recipe(of)
        of.set_defaults({"data.root": "imagenet"})
        of.add_function_arguments(estimate, skip={"recipe"})
        of.add_argument("--json", action="store_true", help="the same as data")
    elif command == "models":
        of.description = "Models that are known to fit, or not, from a sweep over timm's."
        of.add_argument("pattern", nargs="?", default="", help="part of a name, or with * and ?")
    elif command == "evaluate":
        from scalekd.evaluation.evaluate import evaluate

        of.add_function_arguments(evaluate, as_positional=True)
    elif command == "export":
        of.add_argument("checkpoint", type=Path, help="a .ckpt file of a run folder")
        of.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    for name, summary in COMMANDS.items():
        commands.add_subcommand(name, of if name == command else Parser(), help=summary)
    return parser


def _add_recipe(of: Parser) -> None:
    from scalekd.recipe import Recipe

    of.add_argument("--recipe", type=str | None, help="a packaged recipe, by its name")
    of.add_argument("--config", action="config", help="a recipe of your own, YAML")
    of.add_class_arguments(Recipe)


def _with_recipe(arguments: list[str]) -> list[str]:
    """`--recipe NAME` is the packaged YAML file of that name; the digits where nothing is named."""
    with_recipes = ["distill"], ["train"], ["cache"], ["estimate"]
    if arguments[:1] not in with_recipes or "--help" in arguments or "-h" in arguments:
        return arguments
    from scalekd.recipe import DEFAULT_RECIPE, find_recipe

    rest, given = arguments[1:], {a.partition("=")[0] for a in arguments}
    rest = [part for a in rest for part in (a.split("=", 1) if a[:9] == "--recipe=" else [a])]
    if "--recipe" in rest:
        at = rest.index("--recipe")
        name, rest = "".join(rest[at + 1 : at + 2]), rest[:at] + rest[at + 2 :]
    elif given & {"--teacher", "--student", "--data.root", "--config"}:
        return arguments
    else:
        name = DEFAULT_RECIPE
    return [arguments[0], "--config", str(find_recipe(name)), *rest]


def _readable(arguments: list[str]) -> list[str]:
    """The arguments, or an InputError that names a `--config` that is no YAML."""
    for option, file in itertools.pairwise(arguments):
        if option == "--config" and Path(file).is_file():
            try:
                yaml.safe_load(Path(file).read_text())
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{file!r} is not YAML: {reason}") from error
    return arguments


def _plainly(message: str) -> str:
    """jsonargparse's account of a value of the wrong type, without its own types."""
    key = re.search(r'Parser key "([\w.]+)":', message)
    value = re.search(r"(?:Got|Given) value: (.*)$", message)
    if not (key and value):
        return message
    wanted = re.findall(r"Expected an? (.*?)(?:\. Got value.*)?$", message, re.MULTILINE)
    wanted = [re.sub(r"<class '(\w+)'>", r"\1", w) for w in wanted if "NoneType" not in w]
    wanted = [re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", w) for w in wanted]
    return f"--{key[1]} is {value[1]!r}: expected {' or '.join(wanted) or 'another type'}"


def _refuse(arguments: Sequence[str], reason: str) -> NoReturn:
    if arguments[:1] == ["check"] and "--json" in arguments:
        print(json.dumps({"verified": False, "reason": reason}))
    _fail(reason)


def _fail(message: str) -> NoReturn:
    print(f"scalekd: error: {message}", file=sys.stderr)
    sys.exit(2)
