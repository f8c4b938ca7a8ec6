"""The cost of ScaleKD's components, of a tiny pair."""

import importlib
import json
from pathlib import Path

import pytest
import yaml

EVIDENCE = Path(__file__).parents[2] / "experiments" / "evidence"


def test_each_component_adds_work_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    monkeypatch.chdir(tmp_path)
    cost = importlib.import_module("component_cost")
    recipe = tmp_path / "tiny.yaml"
    settings = {
        "teacher": "test_vit",
        "teacher_args": {"img_size": 64},
        "student": "test_resnet",
        "data": {"image_size": 64},
    }
    recipe.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(cost, "find_recipe", lambda _: recipe)
    monkeypatch.setattr(cost, "REPETITIONS", 1)
    monkeypatch.setattr("sys.argv", ["component_cost.py", "--pair", "tiny"])
    cost.main()
    record = json.loads((tmp_path / "experiments/results/component_cost/tiny.json").read_text())
    for measure in ("gflop_per_image", "peak_bytes"):
        least, fd, cap, both_views, perception, complete = record[measure].values()
        assert 0 < least < fd
        assert least < cap < both_views < complete
        assert cap < perception < complete
    assert set(record["seconds"]) == set(cost.ARMS)
    assert all(seconds > 0 for seconds in record["seconds"].values())
