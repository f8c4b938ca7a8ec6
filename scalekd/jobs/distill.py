"""The main job: distil, compare, and leave a folder that says what came out."""

import time
from contextlib import ExitStack
from pathlib import Path

from scalekd.distributed import ranks
from scalekd.errors import InputError
from scalekd.jobs import console as report
from scalekd.jobs import parallel as jobs
from scalekd.jobs.multi_student import distill_students
from scalekd.jobs.preflight import run_preflight
from scalekd.recipe import Recipe
from scalekd.runs import lock
from scalekd.runs.folder import RunFolder, choose_folder
from scalekd.runs.result import Progress, Result, Run, methods_to_train
from scalekd.runs.summary import summarise
from scalekd.runs.trackers import check_trackers
from scalekd.signals import Interrupted
from scalekd.training.prepare import prepare


def distill(
    recipe: Recipe, out: Path | None = None, parallel: int | None = None, resume: bool = False
) -> Path:
    """Train the recipe's students and write the run folder.

    Where this process is one of several ranks (see `ranks.launch_environment`), each of them calls
    this with the same arguments, and sees the same folder.

    Args:
        recipe: what to train.
        out: the run folder, which must not exist; default runs/NAME, numbered if that exists.
        parallel: runs side by side; default one for each CPU core, or one on a GPU.
        resume: go on with the run folder, or with the newest of that default name, where it
            stands; begin where there is none.

    Returns:
        The run folder: settings.yaml, metrics.jsonl, curves.png, summary.json, checkpoints/, and
        student/, which `timm.create_model("local-dir:...", pretrained=True)` loads. With
        `more_students` it has such a folder for each of them in it.

    Raises:
        InputError: see its message; nothing was overwritten.
        Interrupted: by Ctrl-C or a signal; checkpoints/ holds the state.
        AnotherRankFailed: this is one of several ranks, and another failed.
    """
    with ranks.process_group():
        if recipe.more_students:
            out = out or ranks.decide_on_rank_0(lambda: choose_folder(recipe, newest=resume))
            if (parallel or 1) > 1:
                raise InputError(
                    f"parallel is {parallel}, and several students take turns in one process: "
                    "leave one of the two out"
                )
            distill_students(recipe, out, resume)
            return out
        return _distill(recipe, out, parallel, resume)


def _distill(recipe: Recipe, out: Path | None, parallel: int | None, resume: bool) -> Path:
    began = time.perf_counter()
    if parallel is not None and parallel < 1:
        raise InputError(f"parallel is {parallel}: it must be 1 or more")
    if ranks.world_size() > 1 and (parallel or 1) > 1:
        raise InputError(
            f"parallel is {parallel} and there are {ranks.world_size()} ranks, which train one run "
            "after another: leave one of the two out"
        )
    check_trackers(recipe.trackers)
    folder, results = ranks.decide_on_rank_0(lambda: _look_at_folder(recipe, out, resume))
    prepared = prepare(recipe)
    pair = run_preflight(prepared)
    runs = [
        Run(method, seed)
        for seed in recipe.seeds
        for method in methods_to_train(recipe.teacher, recipe.compare)
    ]
    left = [run for run in runs if run not in {result.run for result in results}]
    out = folder.path
    with ExitStack() as held, report.Display() as display:
        display.introduce(recipe, pair, out)
        ranks.decide_on_rank_0(lambda: held.enter_context(folder.hold(recipe, left)))
        held.enter_context(lock.share_folder(out))

        def finished(result: Result) -> None:
            results.append(result)
            if ranks.rank() == 0:
                folder.record_results(results)
            display.finished(str(result.run), result)

        def progress(run: Run, news: Progress) -> None:
            display.progress(str(run), news)

        processes = parallel or jobs.default_jobs(len(left))
        try:
            jobs.train_all(
                prepared, left, folder, processes=processes, report=progress, finished=finished
            )
        except Interrupted as stopped:
            raise Interrupted(
                f"stopped; the state of each run that had begun is in {folder.checkpoints}/: "
                "the same command with --resume goes on, and `scalekd export FILE.ckpt --out "
                "FOLDER` makes a timm model of one",
                stopped.received,
            ) from stopped
    if ranks.rank() == 0:
        summary = summarise(recipe, pair, results, time.perf_counter() - began)
        report.conclude(recipe, pair, results, out)
        folder.write_summary(summary)
    ranks.barrier()
    return out


def _look_at_folder(
    recipe: Recipe, out: Path | None, resume: bool
) -> tuple[RunFolder, list[Result]]:
    """The run folder, and what is finished in it."""
    folder = RunFolder(out or choose_folder(recipe, newest=resume))
    results = folder.finished_results(recipe) if resume else []
    if not resume and folder.path.exists():
        raise InputError(
            f"{str(folder.path)!r} exists and is not overwritten: give another --out, or --resume"
        )
    folder.check_can_be_created()
    return folder, results
