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


def command_lines(block: str) -> list[str]:
    """The commands of a block, each on one line."""
    return re.sub(r"\\\n *", "", block).splitlines()


def run(command: list[str], folder: Path) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def accuracies(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) ?%", printed)]


def test_the_page_has_blocks_of_both_kinds_and_one_command_a_line() -> None:
    assert {language for language, _ in blocks()} == {"sh", "python"}
    lines = [
        line for language, text in blocks() if language == "sh" for line in command_lines(text)
    ]
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
        for line in command_lines(text) if language == "sh" else ():
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
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    found = re.findall(r"^(\d+)\.png (\w+)$", list(printed.values())[-1], re.MULTILINE)
    assert len(found) == 50
    assert sum(name == names[int(number) // 500] for number, name in found) > 15  # 5 is chance
    predicted = (place / "predictions.csv").read_text().splitlines()[1:]
    assert len(predicted) == 50
    for number, name in found:  # the file alone says what scalekd predict said
        (line,) = [line for line in predicted if f"{number}.png" in line]
        assert line.split(",")[1] == name
    for name in ("student.onnx", "student-int8.onnx", "runs/photos/student/model.safetensors"):
        assert (place / name).is_file()
