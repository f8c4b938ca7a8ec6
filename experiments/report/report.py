"""Write RESULTS.md, experiments/report.html and what the README has of them from the records alone.

    make report

Run it from the repository's root.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from every_student import LONG
from layout import Section, Table
from readme import equal_time, main_table, with_made
from sections import sections

HERE = Path(__file__).parent
MARKDOWN = Path("RESULTS.md")
README = Path("README.md")
PAGE = Path("experiments/report.html")
TITLE = "ScaleKD at a size that anyone can repeat"
INTRODUCTION = (
    "ScaleKD (Fan, Li, Liu and Yao, NeurIPS 2024, arXiv 2411.06786; 'the paper') trains a small "
    "network, the student, on the features of a vision transformer, the teacher. It is compared "
    "with training by labels alone (supervised) and with other ways of distillation: by the "
    "teacher's logits (logit KD, DIST, OFA-KD), its features (RSD, relations) or both (FD, as "
    "ScaleKD); docs/baselines.md says how each works.",
    "Fashion-MNIST at 32x32, a small Swin as teacher, small students. 'Few labels' are 1,000 "
    "images and 930 steps, 'all images, short' are 55,000 and one epoch. In the main comparison "
    "every method has the same data, teacher, start of the student and tuning budget, and at equal "
    "steps the same order of images.",
    "What limits these results: the teacher is weaker than networks of its size that others "
    f"report, and the CNN reaches nearly as much by labels only in {LONG['epochs']} epochs of all "
    "images (experiment 7). So with all images in equal time there is hardly any room above "
    "supervised training, and no other size of student was tried.",
)
GENERATED = "Made by `make report` from the files in experiments/results/; do not edit."


def to_markdown(parts: Sequence[Section]) -> str:
    """The report as Markdown."""
    lines = [f"# {TITLE}", "", GENERATED, ""]
    for paragraph in INTRODUCTION:
        lines += [paragraph, ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        for paragraph in part.text:
            lines += [paragraph, ""]
        for table in part.tables:
            lines += [*table_in_markdown(table), ""]
        for title, text in part.folded.items():
            lines += [f"{title}:", "", "```yaml", text.rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def table_in_markdown(table: Table) -> list[str]:
    """The lines of a table."""
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return ["| " + " | ".join(row) + " |" for row in rows]


def readme_lines() -> list[str]:
    """What the README has of the main comparison."""
    return [*table_in_markdown(main_table()), "", equal_time()]


def to_page(parts: Sequence[Section]) -> str:
    """The report as a page that needs no other file."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["code"] = code
    template = environment.get_template("page.html.jinja")
    return template.render(
        title=TITLE, introduction=INTRODUCTION, generated=GENERATED, parts=parts, svg=Markup
    )


def code(text: str) -> Markup:
    """Text whose parts in backquotes are code."""
    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(parts)))


def main() -> None:
    parts = sections()
    MARKDOWN.write_text(to_markdown(parts))
    PAGE.write_text(to_page(parts))
    README.write_text(with_made(README.read_text(), readme_lines()))


if __name__ == "__main__":
    main()
