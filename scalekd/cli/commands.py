"""The commands: for each its summary, its options and the function that it calls.

What a command needs is imported when it is used: the trainer alone takes seconds.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from scalekd.cli.output import progress_bar
from scalekd.cli.parser import HelpFormatter, Parser
from scalekd.errors import InputError
from scalekd.signals import Interrupted
from scalekd.text import build_console, visible

# fmt: off
PAIR = (
    "teacher", "teacher_args", "teacher_size", "teacher_features",
    "student", "student_args", "student_features",
    "weights", "heads", "teacher_prefix", "one_token",
)
# fmt: on
"""The settings of a recipe that `check` takes."""


PREDICTING = (
    "Model that predicts: a run folder, an exported folder, a timm name, the checkpoint of a run "
    "(FILE.ckpt), or an ONNX file (FILE.onnx)."
)


def _add_distill_options(parser: Parser) -> None:
    run = parser.add_recipe()["run"]
    run.add_argument(
        "--out",
        type=Path | None,
        help="Run folder to write, which must not exist unless --resume is given. By default "
        "runs/NAME after the teacher and the student, with a number if that exists.",
    )
    run.add_argument(
        "--parallel",
        type=int | None,
        help="Number of runs that are trained at the same time, each in a process of its own. By "
        "default one for each CPU core, or one if there is a GPU.",
    )
    _add_devices(run)
    run.add_argument(
        "--smoke",
        action="store_true",
        help="Try the recipe in a minute: four steps with random weights on noise of 64x64 pixels.",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="Resume the runs in --out from their newest checkpoints; start where there are none.",
    )


def _add_segment_options(parser: Parser) -> None:
    from scalekd.transfer.segmentation.recipe import SegmentRecipe

    _add_transfer_options(parser, SegmentRecipe, "segment")


def _add_detect_options(parser: Parser) -> None:
    from scalekd.transfer.detection.recipe import DetectRecipe

    _add_transfer_options(parser, DetectRecipe, "detect")


def _add_transfer_recipe(parser: Parser, recipe: type) -> None:
    parser.add_recipe_files("docs/transfer.md")
    parser.add_class_arguments(recipe, as_group=False)
    parser.entitle("data", "data")
    parser.entitle("optim", "optim")


def _add_transfer_options(parser: Parser, recipe: type, name: str) -> None:
    _add_transfer_recipe(parser, recipe)
    parser.add_argument(
        "--out",
        type=Path | None,
        help="Run folder to write, which must not exist unless --resume is given. By default "
        f"runs/{name}-NAME after the backbone, with a number if that exists.",
    )
    _add_devices(parser)
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="Try the recipe in a minute: four steps with random weights on noise of 64x64 pixels.",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Resume the run in --out from its newest checkpoint; start where there is none.",
    )


def _run_segment(options: Namespace, arguments: list[str]) -> None:
    from scalekd.transfer.segmentation.recipe import SegmentRecipe
    from scalekd.transfer.segmentation.segment import segment
    from scalekd.transfer.segmentation.smoke import shrink_to_smoke_test

    _run_transfer(options, arguments, SegmentRecipe, shrink_to_smoke_test, segment)


def _run_detect(options: Namespace, arguments: list[str]) -> None:
    from scalekd.transfer.detection.detect import detect
    from scalekd.transfer.detection.recipe import DetectRecipe
    from scalekd.transfer.detection.smoke import shrink_to_smoke_test

    _run_transfer(options, arguments, DetectRecipe, shrink_to_smoke_test, detect)


def _run_transfer(
    options: Namespace,
    arguments: list[str],
    kind: type,
    shrink: Callable[[Any, Path], Any],
    train: Callable[[Any, Path | None, bool], Path],
) -> None:
    """Train by the function `train` a recipe of the class `kind`, which `shrink` may shrink."""
    recipe, others = _split_recipe(options, kind)
    with (
        _on_devices(others["devices"], recipe, arguments),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as images,
    ):
        if others["smoke"]:
            recipe = shrink(recipe, Path(images))
        train(recipe, others["out"], others["resume"])


def _run_distill(options: Namespace, arguments: list[str]) -> None:
    if options.teacher is None:
        raise InputError("no --teacher is named: name one, or train supervised by `scalekd train`")
    _train(options, arguments)


def _run_train(options: Namespace, arguments: list[str]) -> None:
    options.teacher, options.compare = None, []
    _train(options, arguments)


def _train(options: Namespace, arguments: list[str]) -> None:
    from scalekd.jobs.distill import distill
    from scalekd.jobs.smoke import shrink_to_smoke_test

    recipe, others = _split_recipe(options)
    with (
        _on_devices(others["devices"], recipe, arguments),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as images,
    ):
        if others["smoke"]:
            recipe = shrink_to_smoke_test(recipe, Path(images))
        distill(recipe, others["out"], others["parallel"], others["resume"])


def _add_devices(options: Any) -> None:
    options.add_argument(
        "--devices",
        type=int,
        default=1,
        help="Number of this machine's GPUs, or without GPUs of processes on its CPU, that share "
        "each batch.",
    )


@contextmanager
def _on_devices(devices: int, recipe: Any, arguments: list[str]) -> Iterator[None]:
    """Inside, this process is one rank of a training; where it is to start them, it becomes their
    launcher. An error of a rank names it, and only one rank reports."""
    from scalekd.data.loader import check_batch_size
    from scalekd.distributed import ranks
    from scalekd.distributed.launch import check_devices, launch

    check_devices(devices)
    if devices > 1:
        check_batch_size(recipe.batch_size, devices, recipe.accumulate)
    if devices > 1 and ranks.launch_environment().world_size == 1:
        sys.exit(launch(devices, arguments))
    try:
        yield
    except ranks.AnotherRankFailed:
        sys.exit(2)
    except Interrupted as stopped:
        if ranks.rank():  # rank 0 reports it
            sys.exit(stopped.code)
        raise
    except InputError as error:
        raise InputError(f"rank {ranks.rank()}: {error}" if ranks.rank() else str(error)) from error


def _add_cache_options(parser: Parser) -> None:
    from scalekd.jobs.build_cache import build_cache

    parser.add_recipe()
    parser.set_defaults({"student": ""})
    parser.add_function_arguments(build_cache, skip={"recipe", "resume"}, as_group=False)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Resume the cache in --out; parts of it that are missing or damaged are made again.",
    )


def _run_cache(options: Namespace, _: list[str]) -> None:
    from scalekd.jobs.build_cache import build_cache

    if options.teacher is None:
        raise InputError("no --teacher is named: name the one whose outputs are to be cached")
    recipe, others = _split_recipe(options)
    build_cache(recipe, **others)


def _add_runs_options(parser: Parser) -> None:
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        help="Run folders, or folders that hold some. By default runs.",
    )
    parser.add_argument(
        "--compare",
        type=Path | None,
        help="Picture to write, .png for example, with the folders' learning curves; the settings "
        "that differ between the folders are printed.",
    )
    _add_json_option(parser)


def _run_runs(options: Namespace, _: list[str]) -> None:
    from scalekd.runs.status import (
        check_picture,
        differing_settings,
        draw_comparison,
        read_run_folders,
    )
    from scalekd.runs.table import settings_table, status_table

    if options.compare is not None:
        check_picture(options.compare)
    folders = options.folders or [Path("runs")]
    statuses = read_run_folders(folders) if options.folders or folders[0].is_dir() else []
    differences = differing_settings(statuses) if options.compare is not None else {}
    console = build_console()
    if options.json:
        print(json.dumps({"runs": list(map(asdict, statuses)), "differences": differences}))
    elif not statuses:
        _print(f"no run folders in {', '.join(map(str, folders))}; `scalekd distill` makes one")
    else:
        console.print(status_table(statuses))
    if options.compare is not None and statuses:
        draw_comparison(statuses, options.compare)
        if not options.json:
            console.print(settings_table(statuses, differences))
            _print(f"{options.compare}: their learning curves")


def _add_check_options(parser: Parser) -> None:
    from scalekd.recipe import Data

    parser.add_settings(PAIR)
    next(action for action in parser._actions if action.dest == "teacher").required = True
    images = {field.name for field in fields(Data)} - {"image_size"}
    data = parser.add_argument_group("data")
    data.add_class_arguments(Data, as_group=False, skip=images)
    _add_json_option(parser)


def _run_check(options: Namespace, _: list[str]) -> None:
    from scalekd.compatibility.check import check_pair
    from scalekd.compatibility.text import format_report
    from scalekd.networks import FeatureSelection

    as_json = options.pop("json")
    unset: tuple[Any, ...] = {}, FeatureSelection()
    report = check_pair(**{n: value for n, value in vars(options).items() if value not in unset})
    _print(json.dumps(asdict(report), indent=2) if as_json else format_report(report))


def _add_estimate_options(parser: Parser) -> None:
    from scalekd.estimating.estimate import estimate

    parser.add_recipe()
    parser.set_defaults({"data.root": "imagenet"})
    parser.add_function_arguments(estimate, skip={"recipe"}, as_group=False)
    _add_json_option(parser)


def _run_estimate(options: Namespace, _: list[str]) -> None:
    from scalekd.estimating.estimate import estimate
    from scalekd.estimating.text import format_estimate

    as_json = options.pop("json")
    recipe, others = _split_recipe(options)
    estimated = estimate(recipe, **others)
    _print(json.dumps(asdict(estimated), indent=2) if as_json else format_estimate(estimated))


def _add_estimate_segment_options(parser: Parser) -> None:
    from scalekd.transfer.segmentation.recipe import SegmentRecipe

    _add_estimate_transfer_options(parser, SegmentRecipe)


def _add_estimate_detect_options(parser: Parser) -> None:
    from scalekd.transfer.detection.recipe import DetectRecipe

    _add_estimate_transfer_options(parser, DetectRecipe)


def _add_estimate_transfer_options(parser: Parser, recipe: type) -> None:
    _add_transfer_recipe(parser, recipe)
    parser.add_argument(
        "--devices", type=int, default=1, help="Number of devices that share each batch."
    )
    parser.add_argument(
        "--gpu",
        type=str | None,
        help="Name of a GPU that the step is modelled for, as of `scalekd estimate`. By default "
        "steps are measured on this machine.",
    )
    parser.add_argument(
        "--images",
        type=int | None,
        help="Number of training images. By default as many as data.root holds, or those of COCO "
        "or ADE20K where data.root is coco or ade20k and there is no such folder.",
    )
    _add_json_option(parser)


def _run_estimate_segment(options: Namespace, _: list[str]) -> None:
    from scalekd.estimating.transfer.network import SegmentationNetwork
    from scalekd.transfer.segmentation.recipe import SegmentRecipe

    _run_estimate_transfer(options, SegmentRecipe, SegmentationNetwork.count)


def _run_estimate_detect(options: Namespace, _: list[str]) -> None:
    from scalekd.estimating.transfer.network import DetectionNetwork
    from scalekd.transfer.detection.recipe import DetectRecipe

    _run_estimate_transfer(options, DetectRecipe, DetectionNetwork.count)


def _run_estimate_transfer(
    options: Namespace, kind: type, count: Callable[[Any, int | None], Any]
) -> None:
    """Estimate a recipe of the class `kind`, whose images and network `count` finds."""
    from scalekd.estimating.transfer.estimate import estimate_transfer
    from scalekd.estimating.transfer.text import format_transfer_estimate

    as_json = options.pop("json")
    recipe, others = _split_recipe(options, kind)
    network = count(recipe, others["images"])
    found = estimate_transfer(network, others["devices"], others["gpu"])
    _print(json.dumps(asdict(found), indent=2) if as_json else format_transfer_estimate(found))


def _add_models_options(parser: Parser) -> None:
    parser.add_argument(
        "pattern",
        nargs="?",
        default="",
        help="Part of a model's name, or a pattern with * and ?. By default all models.",
    )


def _run_models(options: Namespace, _: list[str]) -> None:
    from scalekd.compatibility.text import format_known_models

    _print(format_known_models(options.pattern))


def _add_evaluate_options(parser: Parser) -> None:
    from scalekd.evaluation.evaluate import evaluate

    parser.add_argument(
        "models",
        nargs="+",
        help="Models to evaluate, for example a student and its teacher: a run folder, an exported "
        "folder, a timm name, the checkpoint of a run (FILE.ckpt), or an ONNX file (FILE.onnx).",
    )
    parser.add_function_arguments(evaluate, skip={"models", "report"}, as_group=False)
    parser.entitle("data", "data")
    parser.add_argument(
        "--per_class", action="store_true", help="Print a line for each class, too."
    )
    parser.add_argument(
        "--out",
        type=Path | None,
        help="Folder to write, which must not exist: evaluation.json, per_class.csv, "
        "confusions.csv, and a picture of each model's confusion matrix.",
    )
    _add_json_option(parser)


def _run_evaluate(options: Namespace, _: list[str]) -> None:
    from scalekd.atomic_io import check_new
    from scalekd.evaluation.evaluate import evaluate
    from scalekd.evaluation.files import to_json, write_evaluation
    from scalekd.evaluation.text import class_table, describe, result_table

    out, as_json, per_class = (options.pop(name) for name in ("out", "json", "per_class"))
    if out is not None:
        check_new(out)
    with progress_bar("images") as report:
        evaluation = evaluate(**vars(options), report=report)
    if out is not None:
        write_evaluation(evaluation, out)
    if as_json:
        print(to_json(evaluation))
        return
    console = build_console(soft_wrap=True)
    console.print(result_table(evaluation))
    _print("\n".join(describe(evaluation)))
    if per_class:
        console.print(class_table(evaluation))
    if out is not None:
        _print(f"{out}: tables and pictures by class")


def _add_predict_options(parser: Parser) -> None:
    from scalekd.evaluation.predict import predict
    from scalekd.recipe import Data

    parser.add_argument("model", help=PREDICTING)
    parser.add_argument(
        "files",
        nargs="+",
        help="Images, and folders that are searched for images at any depth.",
    )
    chosen = {"size", "mean", "std", "crop", "interpolation"}
    parser.add_function_arguments(
        predict, skip={"model", "files", "report", *chosen}, as_group=False
    )
    others = {field.name for field in fields(Data)} - {"image_size", *chosen}
    parser.add_class_arguments(Data, "data", skip=others, instantiate=False)
    parser.entitle("data", "data")


def _run_predict(options: Namespace, _: list[str]) -> None:
    from scalekd.evaluation.predict import predict
    from scalekd.recipe import Data

    images = Data("files", **vars(options.pop("data")))
    with progress_bar("images") as report:
        counts = predict(
            **vars(options),
            size=images.size,
            mean=images.mean,
            std=images.std,
            crop=images.crop,
            interpolation=images.interpolation,
            report=report,
        )
    unreadable = f"; {counts.unreadable:,} cannot be read" if counts.unreadable else ""
    _print(f"{options.out}: predictions for {counts.images:,} images{unreadable}")
    if options.features is not None:
        _print(f"{options.features}: their features")


def _add_probe_options(parser: Parser) -> None:
    from scalekd.evaluation.probe import probe

    parser.add_function_arguments(probe, skip={"report"}, as_group=False)
    parser.entitle("data", "data")
    _add_json_option(parser)


def _run_probe(options: Namespace, _: list[str]) -> None:
    from scalekd.evaluation.probe import probe
    from scalekd.evaluation.probe_text import describe_probe

    as_json = options.pop("json")
    with progress_bar("images") as report:
        result = probe(**vars(options), report=report)
    _print(json.dumps(asdict(result), indent=2) if as_json else describe_probe(result))


def _add_analyze_options(parser: Parser) -> None:
    from scalekd.analysis.analyze import analyze

    parser.add_function_arguments(analyze, skip={"report"}, as_group=False)
    parser.entitle("data", "data")
    _add_json_option(parser)


def _run_analyze(options: Namespace, _: list[str]) -> None:
    from scalekd.analysis.analyze import analyze
    from scalekd.analysis.files import to_json
    from scalekd.analysis.text import describe

    as_json = options.pop("json")
    with progress_bar("images") as report:
        analysis = analyze(**vars(options), report=report)
    _print(to_json(analysis) if as_json else describe(analysis, str(options.out)))


def _add_export_options(parser: Parser) -> None:
    from scalekd.export.export import export

    parser.add_argument(
        "model",
        help="Model to export: a run folder (its student), a checkpoint of a run (FILE.ckpt), an "
        "exported folder, or a timm name.",
    )
    parser.add_function_arguments(export, skip={"model"}, as_group=False)
    _add_json_option(parser)


def _run_export(options: Namespace, _: list[str]) -> None:
    from scalekd.export.export import export
    from scalekd.export.report import format_export

    as_json = options.pop("json")
    report = export(**vars(options))
    _print(json.dumps(asdict(report), indent=2) if as_json else format_export(report))


def _add_convert_options(parser: Parser) -> None:
    from scalekd.export.convert import convert

    parser.add_argument(
        "file",
        type=Path,
        help="File of a student that the paper's authors released, or a checkpoint of their "
        "trainer.",
    )
    parser.add_function_arguments(convert, skip={"file"}, as_group=False)


def _run_convert(options: Namespace, _: list[str]) -> None:
    from scalekd.export.convert import convert

    _print(f"{options.out}: {convert(**vars(options))}")


def _add_push_options(parser: Parser) -> None:
    from scalekd.export.push import push

    parser.add_argument(
        "folder", type=Path, help="Folder of an exported student, or a run folder (its student)."
    )
    parser.add_function_arguments(push, skip={"folder"}, as_group=False)


def _run_push(options: Namespace, _: list[str]) -> None:
    from scalekd.export.push import push

    pushed = push(**vars(options))
    _print(pushed.place + (": would be uploaded" if options.dry_run else ": uploaded"))
    for name, size in pushed.files.items():
        _print(f"  {name}  {size:,} bytes")


def _print(text: str) -> None:
    """Print lines, whose names from outside may hold anything."""
    print("\n".join(map(visible, text.split("\n"))))


def _add_json_option(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")


def _split_recipe(options: Namespace, kind: Any = None) -> tuple[Any, dict[str, Any]]:
    """The recipe, of a class `kind` (by default `Recipe`), and the options that are not of it."""
    from scalekd.recipe import Recipe

    kind = kind or Recipe
    others = dict(vars(options))
    settings = {field.name: others.pop(field.name) for field in fields(kind)}
    del others["recipe"], others["config"]
    return kind(**settings), others


def _find_recipe(name: str) -> Path:
    from scalekd.recipe import find_recipe

    return find_recipe(name)


def _find_segment_recipe(name: str) -> Path:
    from scalekd.transfer.segmentation.recipe import find_segment_recipe

    return find_segment_recipe(name)


def _find_detect_recipe(name: str) -> Path:
    from scalekd.transfer.detection.recipe import find_detect_recipe

    return find_detect_recipe(name)


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Args:
        summary: its line in the help of `scalekd`.
        description: what it does, at the top of its own help.
        add_options: adds its options to a parser.
        run: calls it with the parsed options; also gets the command line.
        find_recipe: finds the file of a packaged recipe by name; None of a command without recipes.
        has_default_recipe: whether a packaged recipe is taken where no other is named, nor teacher,
            student or images.
    """

    summary: str
    description: str
    add_options: Callable[[Parser], None]
    run: Callable[[Namespace, list[str]], None]
    find_recipe: Callable[[str], Path] | None = None
    has_default_recipe: bool = False

    def build_parser(self, name: str) -> Parser:
        """Its parser, for the arguments after its name."""
        parser = Parser(
            prog=f"scalekd {name}",
            description=self.description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.add_options(parser)
        return parser


RECIPE_DEFAULTS = (
    "Without --recipe, --config, --teacher, --student and --data.root the packaged recipe digits\n"
    "is used, which overrides some of the defaults below."
)

COMMANDS = {
    "distill": Command(
        "train a student with a teacher, and compare it with baselines",
        "Train a student under a teacher, and compare it with baselines.\n" + RECIPE_DEFAULTS,
        _add_distill_options,
        _run_distill,
        _find_recipe,
        has_default_recipe=True,
    ),
    "train": Command(
        "train the student of a recipe on labels only, the supervised baseline",
        "Train the student of a recipe without a teacher: the supervised baseline of a\n"
        "distillation. Settings of the teacher and of the method are not used.\n" + RECIPE_DEFAULTS,
        _add_distill_options,
        _run_train,
        _find_recipe,
        has_default_recipe=True,
    ),
    "runs": Command(
        "list run folders: their state and their results",
        "List run folders with their state and their results. --compare also draws their\n"
        "learning curves and prints the settings that differ.",
        _add_runs_options,
        _run_runs,
    ),
    "check": Command(
        "report how a teacher and a student fit, without training",
        "Build a teacher and a student without their weights, and report how they fit: features,\n"
        "the teacher's tail and whether its replay equals the teacher, heads, size and cost.",
        _add_check_options,
        _run_check,
    ),
    "cache": Command(
        "store a teacher's outputs, so that training need not run the teacher",
        "Store a teacher's outputs for the training images, which trainings read with --cache.\n"
        "Of a recipe, the teacher, the data, the first seed, batch_size and precision matter, and\n"
        "the student's image size and normalisation if one is named.\n" + RECIPE_DEFAULTS,
        _add_cache_options,
        _run_cache,
        _find_recipe,
        has_default_recipe=True,
    ),
    "estimate": Command(
        "estimate time and memory of a recipe before training",
        "Estimate time and memory of a recipe's first run. Nothing is downloaded and no image is\n"
        "read.\n" + RECIPE_DEFAULTS,
        _add_estimate_options,
        _run_estimate,
        _find_recipe,
        has_default_recipe=True,
    ),
    "estimate segment": Command(
        "estimate time and memory of a segmentation before training",
        "Estimate time and memory of `scalekd transfer segment`. Nothing is downloaded and no\n"
        "image is read.",
        _add_estimate_segment_options,
        _run_estimate_segment,
        _find_segment_recipe,
    ),
    "estimate detect": Command(
        "estimate time and memory of a detection before training",
        "Estimate time and memory of `scalekd transfer detect`. Nothing is downloaded and no\n"
        "image is read.",
        _add_estimate_detect_options,
        _run_estimate_detect,
        _find_detect_recipe,
    ),
    "models": Command(
        "list the timm models that were tried, and whether they fit",
        "List the timm models that were tried as teachers and students, and whether they fit.",
        _add_models_options,
        _run_models,
    ),
    "evaluate": Command(
        "measure models on validation images, one or several side by side",
        "Measure models on validation images: accuracy, by class too, calibration and speed; of\n"
        "several models also how far they agree.",
        _add_evaluate_options,
        _run_evaluate,
    ),
    "predict": Command(
        "predict the classes of images without labels",
        "Predict the classes of images without labels, and write a table with a line for each.",
        _add_predict_options,
        _run_predict,
    ),
    "probe": Command(
        "give a model without a classifier one, fitted to labelled images",
        "Measure a frozen model's features by nearest neighbours and by a linear classifier, and\n"
        "write the model with that classifier as a timm model, which can be a teacher.",
        _add_probe_options,
        _run_probe,
    ),
    "transfer segment": Command(
        "train a student on semantic segmentation, as the backbone of UPerNet",
        "Train a segmentation with an exported student, or any timm model, as the backbone:\n"
        "UPerNet on a backbone that is trained, too, or a linear probe on a frozen one.",
        _add_segment_options,
        _run_segment,
        _find_segment_recipe,
    ),
    "transfer detect": Command(
        "train a student on object detection, as the backbone of Mask R-CNN",
        "Train a detection with an exported student, or any timm model, as the backbone: Mask\n"
        "R-CNN or Faster R-CNN on a feature pyramid, or a linear probe on a frozen backbone.",
        _add_detect_options,
        _run_detect,
        _find_detect_recipe,
    ),
    "analyze": Command(
        "draw what a teacher, a student and the projectors between them do inside",
        "Draw the paper's figures of any teacher and student, on your images: the frequencies of\n"
        "the teacher's final feature, distances in the alternative view, where a projector's\n"
        "queries look, and how alike the layers of student and teacher are.",
        _add_analyze_options,
        _run_analyze,
    ),
    "export": Command(
        "write a student as a timm folder, ONNX, torch.export or ONNX in 8 bits",
        "Write a student as a folder that plain timm loads, as an ONNX file, as a program of\n"
        "torch.export, or as an ONNX file in 8 bits, and compare it with the model that it came\n"
        "from. What does not agree is not left behind.",
        _add_export_options,
        _run_export,
    ),
    "convert": Command(
        "convert the students that the paper's authors released to timm folders",
        "Convert a student that the paper's authors released, or a checkpoint of their trainer,\n"
        "to a folder that plain timm loads.",
        _add_convert_options,
        _run_convert,
    ),
    "push": Command(
        "upload a student to the Hugging Face Hub",
        "Upload an exported student to the Hugging Face Hub: weights, configuration and a model\n"
        "card with what it was trained with. --dry_run writes what would be uploaded.",
        _add_push_options,
        _run_push,
    ),
}
