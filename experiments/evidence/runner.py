"""Run an experiment: skip what is finished, resume what was stopped, stop when the time is over.

    python experiments/evidence/runner.py main_comparison --budget 2h
    python experiments/evidence/runner.py main_comparison --list

Runs are trained side by side in a few processes of one thread each; the result of each is a JSON
file in experiments/results/. Ctrl-C, a kill or the end of the budget loses nothing that was saved:
the same command goes on. Run it from the repository's root.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import datetime

import cost
import torch
import worker
from recorded import Recorded

from scalekd.errors import InputError
from scalekd.signals import block_stop_signals, stop_on_signal

RECORDS_TO_MEASURE_BY = 3
"""So many finished runs of an arm tell its time better than the timed steps."""


def run_all(trials: Sequence[Recorded], processes: int, budget: float | None) -> int:
    """Run what is not finished, in order; returns how many records were written.

    Args:
        trials: all runs of the experiment, the most important first.
        processes: how many run at the same time.
        budget: seconds after which running ones are stopped; None for no end.

    Raises:
        SystemExit: a run failed; the others have saved their states.
    """
    todo = [trial for trial in trials if not trial.finished]
    first, then = in_order(todo)
    caches = {trial.cache: trial for trial in (*first, *then) if trial.cache is not None}
    phases = (
        (worker.build_cache, list(caches.values())),
        (worker.run, first),
        (worker.run, then),
    )
    end = None if budget is None else time.monotonic() + budget
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with (
        ProcessPoolExecutor(processes, context, worker.start, (stop,)) as pool,
        stop_on_signal(stop.set),
    ):
        try:
            for work, subjects in phases:
                with block_stop_signals():  # the processes inherit it, and end when `stop` is set
                    futures = {pool.submit(work, trial): trial for trial in subjects}
                pending = set(futures)
                while pending:
                    done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        _report(futures[future], future)
                    if end is not None and time.monotonic() > end:
                        stop.set()
        finally:
            stop.set()  # a failure stops the others, which save their states
    return sum(trial.finished for trial in todo)


def in_order(todo: Sequence[Recorded]) -> tuple[list[Recorded], list[Recorded]]:
    """What is run first, and what then, because it starts from students that are trained first.

    A student whose run folder is gone is trained again, even if its record is there.
    """
    then = [trial for trial in todo if trial.starts_from]
    starts = [start for trial in then for start in trial.starts_from]
    missing = [start for start in starts if not start.folder.student.exists()]
    first = [trial for trial in todo if not trial.starts_from]
    return list(dict.fromkeys([*first, *missing])), then


def _report(trial: Recorded, future: Future[bool | None]) -> None:
    try:
        done = future.result()
    except InputError as error:
        raise SystemExit(f"{trial.name} failed: {error}") from error
    if done:
        print(f"{datetime.now():%H:%M:%S} {trial.name}: {trial.outcome}", flush=True)


def expected_seconds(trials: Sequence[Recorded]) -> float:
    """Training time of runs that are not finished: by finished ones of the same arm, or by what
    is expected of it."""
    known: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        if trial.finished:
            known.setdefault((trial.regime, trial.arm), []).append(cost.seconds_of(trial))
    total = 0.0
    for trial in trials:
        if not trial.finished:
            measured = known.get((trial.regime, trial.arm), [])
            enough = len(measured) >= RECORDS_TO_MEASURE_BY
            total += statistics.median(measured) if enough else trial.expected_seconds
    return total


def parse_duration(text: str) -> float:
    """Seconds of "90s", "45m", "2h" or "1h30m".

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 45m, 2h or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", help="Name of a file beside this one, without .py.")
    parser.add_argument("--budget", type=parse_duration, help="Time after which to stop: 45m, 2h.")
    parser.add_argument("--processes", type=int, default=2, help="Runs at the same time.")
    parser.add_argument("--list", action="store_true", help="Only list the runs and their time.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="Where to train; default: best.")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the processes too
    elif options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("device is cuda, but torch sees no GPU: drop --device")
    trials: list[Recorded] = importlib.import_module(options.experiment).trials()
    open_trials = [trial for trial in trials if not trial.finished]
    hours = expected_seconds(trials) / options.processes / 3600
    print(
        f"{options.experiment}: {len(trials)} runs, {len(trials) - len(open_trials)} finished; the "
        f"others take about {hours:.1f} h of training, {options.processes} at the same time",
        flush=True,
    )
    if options.list:
        for trial in trials:
            print(f"  {'finished' if trial.finished else 'open':9}{trial.name}")
        return
    written = run_all(trials, options.processes, options.budget)
    print(f"{written} runs were finished, {len(open_trials) - written} are open")


if __name__ == "__main__":
    main()
