"""`--seeds [0,1,2]` is a pattern of file names: zsh refuses it, and other shells may expand it."""

import re
from pathlib import Path

import scalekd

ROOT = Path(scalekd.__file__).parents[1]
UNQUOTED = re.compile(r"--[\w.]+[ =](?:\[|\{\w+:)[^`\n]*")


def test_lists_and_mappings_are_quoted_wherever_an_example_gives_them_to_an_option() -> None:
    pages = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/*.md")]
    sources = [*ROOT.glob("scalekd/**/*.py"), *ROOT.glob("scalekd/**/*.yaml")]
    examples = [*ROOT.glob("examples/*"), *ROOT.glob("experiments/*"), *ROOT.glob("benchmarks/*")]
    found = {
        f"{file.name}: {example}"
        for file in [*pages, *sources, *examples]
        if file.is_file()
        for example in UNQUOTED.findall(file.read_text(errors="replace"))
    }
    assert found == set()
