import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"


@pytest.mark.slow
def test_the_example_of_a_custom_loop_trains_a_student(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    accuracy = re.search(r"top-1 on the test images after 300 steps: ([\d.]+)%", run.stdout)
    assert accuracy, run.stdout
    assert float(accuracy[1]) > 30  # 10 % is chance
    for term in ("task", "tpp_original", "final_alternative", "logits"):
        assert repr(term) in run.stdout
    assert not list(tmp_path.iterdir())
