"""The site: every page is in its table of contents, and Sphinx builds it without a warning."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BUILT = "_build"


class Links(HTMLParser):
    """The targets of links and pictures in a page, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name == "id" and value:
                self.anchors.add(value)


def pages() -> set[str]:
    found = (file.relative_to(DOCS) for file in DOCS.rglob("*.md"))
    return {str(page.with_suffix("")) for page in found if page.parts[0] != BUILT}


def test_every_page_is_in_the_table_of_contents_once() -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    entries = [line for tree in trees for line in tree.split("\n") if re.match(r"\w", line)]
    assert sorted(entries) == sorted(pages() - {"index"})


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = ["-W", "--keep-going", "--nitpicky", "--quiet", "-D", "nb_execution_mode=off"]
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", *command, DOCS, tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (build.returncode, build.stderr) == (0, "")
    read = {page: Links(page) for page in (tmp_path / "site").rglob("*.html")}
    built = {str(page.relative_to(tmp_path / "site").with_suffix("")) for page in read}
    assert pages() <= built
    broken = []
    for page, links in read.items():
        for target in links.targets:
            path, _, anchor = unquote(target).partition("#")
            if re.match(r"(https?|data|mailto):", target):
                continue
            to = (page.parent / path.partition("?")[0]).resolve() if path else page
            known = read[to].anchors if to in read else set()
            if not to.exists() or (anchor and to in read and anchor not in known):
                broken.append(f"{page.name}: {target}")
    assert broken == []
    assert "scalekd.ScaleKD" in read[tmp_path / "site" / "api" / "index.html"].anchors
