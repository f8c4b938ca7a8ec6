"""README, CHANGELOG and docs name only what exists: links, files, commands, options, settings."""

import contextlib
import functools
import io
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from scalekd.cli.commands import COMMANDS
from scalekd.cli.main import main
from scalekd.method import LossWeights
from scalekd.recipe import Data, Optim
from scalekd.transfer.detection.recipe import DetectData
from scalekd.transfer.segmentation.recipe import SegmentData

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
]
"""The CHANGELOG is not among them: it also names what is gone."""
SOURCES = [
    file
    for folder in ("scalekd", "examples", "benchmarks", "experiments")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
page_by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"\b(?:scalekd|tests|docs|examples|benchmarks|experiments)/[\w./-]*\w/?")
NAMES = "|".join(sorted(COMMANDS, key=len, reverse=True))  # of two words before those of one
COMMAND = re.compile(rf"(?:^|\bm |srun |`)scalekd +({NAMES})\b([^`\n]*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*\b")
FOREIGN = {"--ntasks-per-node"}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def help_text(*arguments: str) -> str:
    """What `scalekd ARGUMENTS` prints before it exits with 0."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
    return printed.getvalue()


def takes(command: str, option: str) -> bool:
    """Whether `scalekd COMMAND` takes `option`, which may be a field of another option's class."""
    listed = help_text(command, "--help")
    if re.search(rf"^ +{re.escape(option)}\b(?![.\w])", listed, re.MULTILINE):
        return True
    head, _, field = option.partition(".")
    if field and head.endswith("_args"):  # timm's arguments, by any name
        return takes(command, head)
    if not field or f"{head}.help" not in listed:
        return False
    return option in OPTION.findall(help_text(command, f"{head}.help"))


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Each command of `scalekd` on the page and the text of its arguments, without comments."""
    text = re.sub(r"\\\n +", " ", page.read_text())
    text = re.sub(r"^ {4,}(?=scalekd )", "", text, flags=re.MULTILINE)
    for command, arguments in COMMAND.findall(text):
        yield command, arguments.partition(" #")[0]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@page_by_name
def test_the_pages_of_the_site_link_to_no_page_outside_of_it(page: Path) -> None:
    docs = ROOT / "docs"
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text()) if ":" not in link]
    pages = [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert docs not in page.parents or all(docs in linked.parents for linked in pages)


def test_the_page_on_the_architecture_lists_every_module_in_its_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.partition("    scalekd/\n")[2].partition("\n\n")[0]
    rooms = re.findall(r"^ {6}(\S+) .*?:  ((?:[a-z_0-9]+ ?)+(?:\n {8,}.*)*)$", tree, re.MULTILINE)
    listed = {
        (room.strip("/") if room.endswith("/") else ".", name)
        for room, names in rooms
        for name in names.split()
    }
    modules = {
        (str(file.parent.relative_to(ROOT / "scalekd")), file.stem)
        for file in (ROOT / "scalekd").rglob("*.py")
        if file.stem not in ("__init__", "__main__")
    }
    assert listed == modules


@page_by_name
def test_every_file_named_in_a_page_exists(page: Path) -> None:
    assert [name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_every_page_named_in_the_sources_exists() -> None:
    named = {name for file in SOURCES for name in re.findall(r"docs/[\w-]+\.\w+", file.read_text())}
    assert {"docs/own-modules.md", "docs/scaling.md"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@page_by_name
def test_every_option_in_a_command_exists(page: Path) -> None:
    unknown = [
        f"scalekd {command} {option}"
        for command, arguments in commands(page)
        for option in OPTION.findall(arguments)
        if not takes(command, option)
    ]
    assert unknown == []


def test_commands_are_found_in_the_pages() -> None:
    found = {command for page in PAGES for command, _ in commands(page)}
    assert found == set(COMMANDS)


@page_by_name
def test_every_option_named_by_itself_exists(page: Path) -> None:
    spans = re.findall(r"`(--[^`]*)`", page.read_text())
    options = {option for span in spans for option in OPTION.findall(span)} - FOREIGN
    assert {o for o in options if not any(takes(command, o) for command in COMMANDS)} == set()


@page_by_name
def test_brackets_in_commands_are_quoted_for_the_shell(page: Path) -> None:
    assert [a for _, a in commands(page) if re.search(r"[\[\]{}]", re.sub(r"'[^']*'", "", a))] == []


@page_by_name
def test_every_nested_setting_exists(page: Path) -> None:
    named = re.findall(r"(?<![\w./])(data|optim|weights)\.(?!md|py)([a-z]\w*)", page.read_text())
    groups = {"data": (Data, SegmentData, DetectData), "optim": (Optim,), "weights": (LossWeights,)}
    names = {group: {f.name for c in kinds for f in fields(c)} for group, kinds in groups.items()}
    assert {f"{g}.{name}" for g, name in named if name not in names[g]} == set()


@page_by_name
def test_every_python_name_of_the_package_exists(page: Path) -> None:
    for name in set(re.findall(r"`(scalekd(?:\.\w+)+)`", page.read_text())):
        pkgutil.resolve_name(name)
