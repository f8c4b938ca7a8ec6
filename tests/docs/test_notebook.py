"""The notebook of the documentation runs from top to bottom."""

import re
from pathlib import Path

import pytest
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbclient import NotebookClient

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "own-loop.md"


@pytest.mark.slow
def test_the_notebook_trains_a_student_in_its_own_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read_myst_markdown_notebook(PAGE.read_text(), MdParserConfig())
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(o["text"] for o in outputs if o.get("name") == "stdout")
    teacher = re.search(r"accuracy of the teacher: ([\d.]+)%", printed)
    supervised = re.search(r"by labels only +([\d.]+)%", printed)
    scalekd = re.search(r"ScaleKD +([\d.]+)%", printed)
    assert None not in (teacher, supervised, scalekd), printed
    assert float(teacher[1]) > 90
    assert min(float(supervised[1]), float(scalekd[1])) > 30  # 10 % is chance
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert not list(tmp_path.iterdir())
