"""Run an experiment: skip what is finished, resume what was stopped, stop when the time is over.

    python experiments/evidence/runner.py main_comparison --budget 2h
    python experiments/evidence/runner.py main_comparison --list

Each run is a command of its own (`scalekd distill` or `scalekd train`) with one thread; its result
is a JSON file in experiments/results/. Ctrl-C, a kill or the end of the budget loses nothing that
was saved: the same command goes on. Run it from the repository's root.
"""

import argparse
import importlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cost
from trials import Trial

RECORDS_TO_MEASURE_BY = 3
"""So many finished runs of an arm tell its time better than the timed steps."""


def command(trial: Trial) -> list[str]:
    """The command line that trains `trial`, or goes on with it."""
    options = ["--config", str(trial.write_recipe()), "--out", str(trial.folder), "--resume"]
    if trial.control is not None:
        controls = str(Path(__file__).with_name("controls.py"))
        return [sys.executable, controls, trial.control, *options]
    verb = "train" if trial.settings.get("method") is None else "distill"
    return [sys.executable, "-m", "scalekd", verb, *options, "--parallel", "1"]


def run(trial: Trial, stopped: Callable[[], bool]) -> bool:
    """Train `trial` until its end, or until `stopped`; returns whether its record is there."""
    words = command(trial)
    log = trial.folder.with_suffix(".log")
    with log.open("a") as said:
        process = subprocess.Popen(
            words,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the runner's
        )
        while process.poll() is None:
            if stopped():
                process.send_signal(signal.SIGTERM)  # it saves its state
                process.wait()
                return False
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{trial.name} failed, see {log}: {log.read_text().splitlines()[-1]}")
    trial.write_record(["python" if word == sys.executable else word for word in words])
    return True


def run_all(trials: Sequence[Trial], processes: int, budget: float | None) -> int:
    """Run what is not finished, in order; returns how many records were written.

    Args:
        trials: all runs of the experiment, the most important first.
        processes: how many run at the same time.
        budget: seconds after which running ones are stopped; None for no end.
    """
    end = None if budget is None else time.monotonic() + budget
    over = False

    def stopped() -> bool:
        return over or (end is not None and time.monotonic() > end)

    def run_if_time(trial: Trial) -> bool:
        if stopped() or not run(trial, stopped):
            return False
        print(f"{trial.name} is finished", flush=True)
        return True

    with ThreadPoolExecutor(processes) as pool:
        futures = [pool.submit(run_if_time, trial) for trial in trials if not trial.finished]
        try:
            return sum(future.result() for future in futures)
        finally:
            over = True  # a failure or Ctrl-C stops the others, which save their state


def expected_seconds(trials: Sequence[Trial]) -> float:
    """Training time of runs that are not finished: by finished ones of the same arm, or by the
    timed steps of its method."""
    known: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        if trial.finished:
            known.setdefault((trial.regime, trial.arm), []).append(cost.seconds_of(trial))
    total = 0.0
    for trial in trials:
        if not trial.finished:
            measured = known.get((trial.regime, trial.arm), [])
            enough = len(measured) >= RECORDS_TO_MEASURE_BY
            total += statistics.median(measured) if enough else cost.expected(trial.settings)
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
    options = parser.parse_args(arguments)
    trials: list[Trial] = importlib.import_module(options.experiment).trials()
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
