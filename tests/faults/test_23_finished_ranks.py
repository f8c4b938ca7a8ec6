"""Two ranks that were killed after their last checkpoint, before their result, never resumed."""

import json
from pathlib import Path

import yaml
from helpers.pictures import image_folder
from helpers.real_runs import finish, random_settings, start

from scalekd.runs.result import read_results


def test_two_ranks_without_a_step_left_resume_and_write_the_result(tmp_path: Path) -> None:
    """What such a kill leaves: a complete checkpoint, and neither results.jsonl nor a summary."""
    image_folder(tmp_path / "images", each=10, side=48)
    settings = random_settings(tmp_path) | {"accumulate": 1, "epochs": 2}
    settings["data"]["workers"] = 0
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    finish(start(tmp_path, "run", "--devices", "2"))
    (before,), _ = read_results(tmp_path / "run/results.jsonl")
    for file in ("results.jsonl", "summary.json"):
        (tmp_path / "run" / file).unlink()
    output = finish(start(tmp_path, "run", "--devices", "2", "--resume"))
    (after,), _ = read_results(tmp_path / "run/results.jsonl")
    assert "Traceback" not in output
    assert (after.run, after.steps, after.top1) == (before.run, before.steps, before.top1)
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == before.steps
