"""Brackets in names were markup, and control characters of names reached the terminal."""

import io
import logging
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from rich.table import Table

from scalekd.cli.logs import shown_logs
from scalekd.cli.main import main
from scalekd.errors import InputError
from scalekd.recipe import Data, Optim, Recipe
from scalekd.runs.folder import RunFolder
from scalekd.runs.log import logging_to
from scalekd.text import build_console, printable, visible

NAMES = ["x/[/old]run", "exp[lr=0.1]", "[red]x[/]", "[/]", "a\\", "\\[b]", "[[x]]", ":bug:",
         "größe", "[link=http://x]y[/link]", "@[@click=x]", "100%", "{x}", "%s"]  # fmt: skip
UNSEEN = {"\x1b[2J": "\\x1b[2J", "\x9b31m": "\\x9b31m", "a\nb": "a\\nb", "a\rb": "a\\rb",
          "\u202eabc": "\\u202eabc", "\udcff": "\\xff", "\u2028": "\\u2028",
          "\x07": "\\x07", "\x00": "\\x00"}  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, *UNSEEN])
def test_names_are_printed_as_they_are_or_escaped(name: str) -> None:
    shown = UNSEEN.get(name, name)
    stream = io.StringIO()
    console = build_console(file=stream, width=200, soft_wrap=True)
    console.print(f"[bold]{printable(name)}[/] stays")
    table = Table("column")
    table.add_row(printable(name))
    console.print(table)
    assert stream.getvalue().startswith(f"{shown} stays\n")
    assert stream.getvalue().count(shown) == 2
    assert visible(name) == shown


@pytest.mark.parametrize(("name", "shown"), UNSEEN.items())
def test_no_message_has_what_a_terminal_obeys(
    tmp_path: Path,
    name: str,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where pytest collected the record, its own processes could not exchange such a name.
    monkeypatch.setattr(logging.getLogger("scalekd"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("scalekd"), "level", logging.INFO)
    assert str(InputError(f"no {name}")) == f"no {shown}"
    with shown_logs():
        logging.getLogger("scalekd.x").info("found %s", name)
    assert capsys.readouterr().err == f"scalekd: found {shown}\n"
    with logging_to(tmp_path / "train.log"):
        logging.getLogger("scalekd.x").info("found %s", name)
    assert (tmp_path / "train.log").read_text().endswith(f"found {shown}\n")


@pytest.mark.parametrize("name", ["exp[lr=0.1]", "[", "a\x1b[31mb", "a\nb", "ü"])
def test_runs_lists_folders_of_any_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    recipe = Recipe("[/t]", f"s{name}", Data("x"), optim=Optim(), seeds=[1])
    for folder in (name, f"{name}2"):
        RunFolder(Path("all") / folder).start(recipe, {}, [])
    main(["runs", "all"])
    shown = capsys.readouterr().out
    assert f"all/{visible(name)}" in shown
    assert f"[/t] -> s{visible(name)}" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_any_encoding_of_the_terminal_will_do(tmp_path: Path, environment: dict[str, str]) -> None:
    name = b"r\xffun-\xc3\xbc"
    folder = RunFolder(tmp_path / os.fsdecode(name))
    folder.start(Recipe("t→", "s", Data("x"), seeds=[1]), {}, [])
    command = [sys.executable, "-c", "from scalekd.cli.main import main; main()"]
    for words in ([b"runs", b"."], [b"runs", b"no\xffne"], [b"no\xffne\xc3\xbc"]):
        ended = subprocess.run(
            [*map(os.fsencode, command), *words],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
        )
        assert b"Traceback" not in ended.stderr
        assert ended.returncode in (0, 2)
        shown = ended.stdout + ended.stderr
        assert b"\\xff" in shown or b"\\udcff" in shown


def test_a_stream_that_cannot_be_changed_is_left_as_it_is() -> None:
    stream = io.StringIO()
    with redirect_stdout(stream), pytest.raises(SystemExit):
        main(["--help"])
    assert "usage" in stream.getvalue()
