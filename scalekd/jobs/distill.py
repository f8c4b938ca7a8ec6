"""The main job: train a recipe's students and baselines, and write a run folder of the results."""

import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scalekd.data.loader import check_batch_size
from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.jobs.job_log import job_log
from scalekd.jobs.multi_student import distill_students
from scalekd.jobs.parallel import default_processes, train_all
from scalekd.jobs.preflight import run_preflight
from scalekd.jobs.progress import ProgressDisplay, describe_result
from scalekd.jobs.prolong import unfinished_runs
from scalekd.jobs.report import print_report
from scalekd.jobs.take_folder import TakenFolder, take_folder
from scalekd.recipe import Recipe
from scalekd.runs import lock
from scalekd.runs.folder import RunFolder, choose_folder
from scalekd.runs.result import Result
from scalekd.runs.summary import summarise
from scalekd.runs.trackers import check_trackers
from scalekd.signals import Interrupted
from scalekd.training.optim import check_optimizer
from scalekd.training.prepare import prepare

logger = logging.getLogger(__name__)

MAX_PARALLEL = 1024
"""Most processes: more is a slip, and what counts them overflows."""


def distill(
    recipe: Recipe, out: Path | None = None, parallel: int | None = None, resume: bool = False
) -> Path:
    """Train a recipe's students and write the run folder.

    Where this process is one of several ranks (see `ranks.launch_environment`), each of them calls
    this with the same arguments, and all of them use the same folder.

    Args:
        recipe: What to train.
        out: Run folder to write, which must not exist unless `resume` is set; by default
            runs/NAME, with a number if that exists.
        parallel: Number of runs that are trained in parallel, each in a process; by default one
            for each CPU core, or one if there is a GPU.
        resume: Resume the runs in the run folder, or in the newest of the default name, from their
            newest checkpoints; start where there are none.

    Returns:
        The run folder: settings.yaml, metrics.jsonl, train.log, curves.png, summary.json,
        checkpoints/, and student/, which `timm.create_model("local-dir:...", pretrained=True)`
        loads. With `more_students` it contains such a folder for each student.

    Raises:
        InputError: the recipe cannot be trained or the folder not written, or a run failed;
            nothing was overwritten.
        Interrupted: by Ctrl-C or a signal; the states are in checkpoints/.
        AnotherRankFailed: this process is one of several ranks, and another one failed.
    """
    with ranks.process_group():
        _check_parallel(parallel)
        check_batch_size(recipe.batch_size, ranks.world_size(), recipe.accumulate)
        check_trackers(recipe.trackers)
        for student in recipe.per_student().values():
            check_optimizer(student.optim)
        if recipe.more_students:
            out = out or Path(
                ranks.decide_on_rank_0(lambda: str(choose_folder(recipe, newest=resume)))
            )
            if (parallel or 1) > 1:
                raise InputError(
                    f"parallel is {parallel}, but several students are trained interleaved in one "
                    "process: drop parallel or more_students"
                )
            distill_students(recipe, out, resume)
            return out
        return _distill(recipe, out, parallel, resume)


def _distill(recipe: Recipe, out: Path | None, parallel: int | None, resume: bool) -> Path:
    with ExitStack() as held:
        opened = ranks.decide_on_rank_0(lambda: _take_folder(held, recipe, out, resume))
        folder = RunFolder(Path(opened["folder"]))
        held.enter_context(lock.share_folder(folder.path))
        _train_in(folder, recipe, TakenFolder.from_plain(opened), parallel)
        return folder.path


def _train_in(folder: RunFolder, recipe: Recipe, taken: TakenFolder, parallel: int | None) -> None:
    started = time.perf_counter()
    recipe, results = taken.resume(recipe), taken.results
    prepared = prepare(recipe)
    ranks.decide_on_rank_0(lambda: folder.check_inputs(recipe, prepared.identity))
    pair = taken.annotate(run_preflight(prepared))
    unfinished = unfinished_runs(recipe, results)

    def record(result: Result) -> None:
        results.append(result)
        if ranks.rank() == 0:
            folder.record_results(results)
            logger.info("%s: %s", result.run, describe_result(result))
        display.print_result(str(result.run), result)

    with ExitStack() as held, ProgressDisplay() as display:
        display.print_start(recipe, pair, folder.path)
        ranks.decide_on_rank_0(lambda: folder.start(recipe, prepared.identity, unfinished))
        held.enter_context(job_log(folder, recipe, pair.notes))
        try:
            train_all(
                prepared,
                unfinished,
                folder,
                # Of all runs, since threads, and with them rounding, depend on the processes.
                processes=parallel or default_processes(len(unfinished_runs(recipe, []))),
                report=lambda run, progress: display.update(str(run), progress),
                finished=record,
            )
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped; the state of each run that had begun is in {folder.checkpoints}/: "
                "the same command with --resume resumes them, and `scalekd export FILE.ckpt --out "
                "FOLDER` makes a timm model of one",
                stopped.received,
            ) from stopped
    if ranks.rank() == 0:
        summary = summarise(recipe, pair, results, time.perf_counter() - started)
        print_report(recipe, pair, results, folder.path)
        folder.write_summary(summary)
    ranks.barrier()


def _check_parallel(parallel: int | None) -> None:
    if parallel is not None and not 1 <= parallel <= MAX_PARALLEL:
        raise InputError(f"parallel is {parallel}: it must be from 1 to {MAX_PARALLEL}")
    if ranks.world_size() > 1 and (parallel or 1) > 1:
        raise InputError(
            f"parallel is {parallel}, but {ranks.world_size()} ranks train one run after another: "
            "drop parallel or the ranks"
        )


def _take_folder(held: ExitStack, recipe: Recipe, out: Path | None, resume: bool) -> dict[str, Any]:
    """Choose and hold the run folder; gives it, and what is in it, as plain data."""
    folder = RunFolder(out or choose_folder(recipe, newest=resume))
    taken = take_folder(held, recipe, folder, resume=resume)
    return {"folder": str(folder.path), **taken.to_plain()}
