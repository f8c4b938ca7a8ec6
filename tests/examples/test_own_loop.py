import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loop.py"


@pytest.mark.slow
def test_the_example_trains_a_student_in_its_own_loop(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    said = re.search(r"after 300 steps: ([\d.]+)% of the test images right", run.stdout)
    assert said, run.stdout
    assert float(said[1]) > 30  # a tenth is chance
    for term in ("task", "tpp_original", "final_alternative", "logits"):
        assert repr(term) in run.stdout
    assert not list(tmp_path.iterdir())
