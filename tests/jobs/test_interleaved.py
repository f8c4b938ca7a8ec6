"""Several runs by turns: whose seconds are whose."""

import time

from scalekd.jobs.interleaved import Turns, by_turns


def test_the_clock_of_each_leaves_out_what_the_others_worked() -> None:
    at_least = 0.05

    def work(_: Turns) -> str:
        time.sleep(at_least)
        return "done"

    runs = [Turns(None, work) for _ in range(3)]
    began = time.perf_counter()
    before = [run.clock() for run in runs]
    by_turns(runs, lambda: None)
    own = [run.clock() - b for run, b in zip(runs, before, strict=True)]
    passed = time.perf_counter() - began
    assert min(own) >= at_least
    assert max(own) <= passed - 2 * at_least
    assert [run.result for run in runs] == ["done"] * 3
