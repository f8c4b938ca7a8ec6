"""Every command of the tutorial on photos runs, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "photos.md"


def blocks() -> list[tuple[str, str]]:
    """The language and the text of each fenced block: what a reader copies and runs."""
    return re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def accuracies(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) ?%", printed)]


def test_the_page_has_blocks_of_both_kinds_and_one_command_a_line() -> None:
    assert {language for language, _ in blocks()} == {"sh", "python"}
    lines = [line for language, text in blocks() if language == "sh" for line in text.splitlines()]
    assert [line for line in lines if not line.startswith("scalekd ")] == []


@pytest.mark.slow
def test_every_command_of_the_page_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scalekd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scalekd "$@"\n')
    (tools / "scalekd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    place = tmp_path / "tutorial"
    place.mkdir()
    printed = {}
    for language, text in blocks():
        if language == "python":
            printed[text] = run([sys.executable, "-c", text], place)
        for line in text.splitlines() if language == "sh" else ():
            printed[line] = run(["sh", "-c", line], place)

    by_command = {
        command.split()[1]: out for command, out in printed.items() if "\n" not in command
    }
    assert "test_resnet" in by_command["check"]
    assert max(accuracies(by_command["distill"])) > 50  # 10 % is chance
    ((student,), (file,)) = (
        accuracies(out)[:1] for command, out in printed.items() if "scalekd evaluate" in command
    )
    assert student == file > 50
    right = re.search(r"(\d+) of 50 new pictures", "".join(printed.values()))
    assert right is not None
    assert int(right[1]) > 25
    for name in ("student.onnx", "student-int8.onnx", "runs/photos/student/model.safetensors"):
        assert (place / name).is_file()
