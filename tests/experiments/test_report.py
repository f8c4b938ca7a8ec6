"""The report of the evidence: verdicts by values, RESULTS.md, and the page in a browser."""

import importlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the evidence, with no record read before."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "evidence"))
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "report"))
    importlib.import_module("records").read_records.cache_clear()
    yield importlib.import_module
    importlib.import_module("records").read_records.cache_clear()


def write(experiment: str, regime: str, arm: str, accuracies: list[float], **more: Any) -> None:
    """Records of an arm, one for each seed, below the working folder."""
    for seed, accuracy in enumerate(accuracies):
        file = Path("experiments/results", experiment, f"{regime}-{arm}-seed{seed}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "regime": regime,
            "arm": arm,
            "seed": seed,
            "top1": accuracy,
            "measures": None,
            "steps": 930,
            "seconds": 60.0,
            "settings": {"epochs": 30},
            "commit": "abc",
            "date": f"2026-11-{10 + seed}T00:00:00+00:00",
            "machine": {"processor": "a processor"},
            "versions": {"torch": "2.15.0", "timm": "1.0.31"},
        }
        file.write_text(json.dumps(record | more))


def spread(mean: float, count: int) -> list[float]:
    return [mean + 0.001 * (seed % 3) for seed in range(count)]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seeds of few labels: ScaleKD above logit KD, below FD, not told from OFA-KD."""
    monkeypatch.chdir(tmp_path)
    write("main_comparison", "few", "scalekd", spread(0.85, 10))
    write("main_comparison", "few", "supervised", [v - 0.05 for v in spread(0.85, 10)])
    write("main_comparison", "few", "logit_kd", [v - 0.01 for v in spread(0.85, 10)])
    write("main_comparison", "few", "fd", [v + 0.01 for v in spread(0.85, 10)])
    ofa = [v + (0.01 if n % 2 else -0.01) for n, v in enumerate(spread(0.85, 10))]
    write("main_comparison", "few", "ofa", ofa)
    for arm, gain in {"logits": 0.0, "CAP": 0.01, "CAP, DFM": 0.02}.items():
        write("components", "few", arm, [0.8 + gain] * 5)


@pytest.mark.usefixtures("runs")
def test_verdicts_follow_from_the_records(load: Any) -> None:
    claims = load("claims")
    found = {claim.text: claim for claim in claims.claims()}
    alone = found[
        "A student under ScaleKD is more accurate than the supervised baseline (few labels)"
    ]
    assert alone.verdict == "holds here"
    rivals = found["At equal steps ScaleKD is above the other methods (few labels)"]
    verdicts = {one.other.name: one.verdict for one in rivals.comparisons}
    assert verdicts == {
        "logit KD": "higher",
        "FD": "lower",
        "DIST": "not run",
        "OFA-KD": "cannot be told apart",
        "RSD": "not run",
    }
    assert rivals.verdict == (
        "does not hold here: higher in 1 of 3 comparisons, lower in 1; 2 more were not run"
    )
    equal = found["In equal time with a live teacher ScaleKD is above the others (few labels)"]
    assert equal.verdict == "not run"
    parts = found["CAP, DFM, TPP and the logits each add accuracy"]
    assert [one.verdict for one in parts.comparisons[:2]] == ["higher in all 5 seeds"] * 2


def test_p_values_are_adjusted_over_the_family(load: Any) -> None:
    families, records = load("families"), load("records")
    one = records.Values("a", dict(enumerate(range(10))))
    other = records.Values("b", {seed: seed - 1.0 for seed in range(10)})
    alone, both = families.family([(one, other)]), families.family([(one, other)] * 2)
    assert alone[0].adjusted == pytest.approx(2 / 1024)
    assert both[0].adjusted == pytest.approx(4 / 1024)


@pytest.mark.usefixtures("runs")
def test_what_speaks_against_scalekd_is_in_the_first_section(load: Any) -> None:
    report, sections = load("report"), load("sections")
    text = report.to_markdown(sections.sections())
    against = text.split("## ")[1]
    assert against.startswith("What speaks against ScaleKD")
    assert "| ScaleKD minus FD | -1.00 [-1.00, -1.00], 10 seeds | lower | At equal steps" in against
    assert "ScaleKD minus logit KD" not in against
    lower, untold = against.split("| comparison")[1:]
    assert "| claim that it contradicts |" in lower
    assert "OFA-KD" not in lower
    assert "| claim that it does not support |" in untold
    assert "| ScaleKD minus OFA-KD | +0.00" in untold
    row = r"\| logit KD \| equal steps \| 84.09 \(0.09\) \| 10 \| 930 \| \d+ live, \d+ cache \| 60 "
    row += r"\| \+1.00 \["
    assert re.search(row, text)


@pytest.mark.usefixtures("runs")
def test_seconds_of_equal_time_are_equal(load: Any) -> None:
    cost = load("cost").read_cost()["few"]
    for suffix in ("", ", cache"):
        steps = round(930 * cost[f"scalekd{suffix}"] / cost[f"fd{suffix}"])
        write("main_comparison", "few", f"fd, equal time{suffix}", [0.8], steps=steps)
    how_long = load("sections").how_long
    seconds = f"{930 * cost['scalekd']:.0f}", f"{930 * cost['scalekd, cache']:.0f}"
    both = f"{seconds[0]} live, {seconds[1]} cache"
    assert how_long("few", "scalekd") == ["10", "930", both, "60"]
    assert how_long("few", "fd", ", equal time")[2] == seconds[0]
    assert how_long("few", "fd", ", equal time, cache")[2] == seconds[1]
    assert how_long("few", "dist", ", equal time") == ["0", "-", "-", "-"]


def section_of(text: str, title: str) -> str:
    return next(part for part in text.split("## ") if part.startswith(title))


def write_measures(arm: str, ious: list[float], experiment: str = "transfer") -> None:
    """Records of a segmentation's arm."""
    write(experiment, "segmentation", arm, ious)
    for file in Path("experiments/results", experiment).glob(f"segmentation-{arm}-seed*.json"):
        record = json.loads(file.read_text())
        record |= {"measures": {"miou": record.pop("top1")}}
        file.write_text(json.dumps(record))


@pytest.mark.usefixtures("runs")
def test_transfers_are_compared_by_mean_iou(load: Any) -> None:
    report, sections, claims = load("report"), load("sections"), load("claims")
    text = report.to_markdown(sections.sections())
    section = section_of(text, "Experiment 11: transfer to segmentation")
    assert "Not run here: `python experiments/evidence/runner.py transfer_tuning`, then" in section
    assert "|" not in section

    load("records").read_records.cache_clear()
    gains = {"scalekd": 0.0, "supervised": -0.02, "logit_kd": 0.01, "random": -0.1}
    for start, gain in gains.items():
        write_measures(f"{start}, fine-tuned", [v + gain for v in spread(0.4, 5)])
    write_measures("scalekd, frozen", spread(0.3, 5))
    write_measures("supervised, frozen", [0.2, 0.4, 0.2, 0.4, 0.2])
    write_measures("reference, fine-tuned", [0.6])
    write_measures("frozen 0.004", [0.25], "transfer_tuning")
    write("transfer", "few", "scalekd", spread(0.82, 5))
    text = report.to_markdown(sections.sections())
    section = section_of(text, "Experiment 11: transfer to segmentation")
    assert "| ScaleKD | 82.08 (0.08) | 40.08 (0.08) | 30.08 (0.08) |" in section
    assert "| random | - | 30.08 (0.08) | not run |" in section
    assert "one seed: 60.00 %" in section
    assert "| frozen | 0.004 | 25.00 |" in section
    row = next(
        line for line in section.splitlines() if "logit KD (segmentation, fine-tuned)" in line
    )
    assert row.endswith("| lower in all 5 seeds |")
    found = {claim.source: claim for claim in claims.claims() if "segment" in claim.text}
    assert found["Tables 5, 6 and 11"].verdict == (
        "cannot be told here: higher in 1 of 2 comparisons, the others cannot be told"
    )
    assert found["this project's question, asked after results"].verdict == (
        "does not hold here: higher in 1 of 2 comparisons, lower in 1 (by one sign in all 5 seeds)"
        "; 2 more were not run"
    )
    against = text.split("## ")[1]
    pair = "ScaleKD (segmentation, fine-tuned) minus logit KD (segmentation, fine-tuned)"
    assert f"| {pair} | -1.00" in against


@pytest.mark.usefixtures("runs")
def test_figures_and_costs_have_verdicts_by_what_was_measured(load: Any) -> None:
    claims, report, sections = load("claims"), load("report"), load("sections")
    found = {claim.source: claim for claim in claims.claims()}
    for source in ("Figures 2 and 5", "Figure 6", "Table 15"):
        assert found[source].verdict == "not run"
    text = report.to_markdown(sections.sections())
    assert "Not run here: `python experiments/evidence/inside.py`" in text

    load("records").read_records.cache_clear()
    write("inside", "few", "without DFM", [0.8] * 5, measures={"original": 1.2})
    write("inside", "few", "with DFM", [0.8] * 5, measures={"original": 1.1, "alternative": 0.4})
    provenance = {"command": "a", "machine": {"processor": "a"}, "date": "2026-11-30T00:00:00"}
    teacher = Path("experiments/results/teacher")
    teacher.mkdir()
    shares = {"direct_energy": 0.4, "images": 10000}
    (teacher / "frequencies.json").write_text(json.dumps(provenance | shares))
    cost = {"seconds": {"logit KD": 1.0, "FD": 2.0, "ScaleKD": 3.0}}
    cost |= {"peak_bytes": {"logit KD": 2**30, "FD": 2**30, "ScaleKD": 2**31}}
    cost |= {"gflop_per_image": cost["seconds"], "pair": "a pair", "batch": 2, "threads": 1}
    (teacher.parent / "component_cost").mkdir()
    (teacher.parent / "component_cost" / "pair.json").write_text(json.dumps(provenance | cost))
    found = {claim.source: claim for claim in claims.claims()}
    assert found["Figures 2 and 5"].verdict == "does not hold here"
    assert found["Figure 6"].verdict == "holds here (by one sign in all 5 seeds)"
    text = report.to_markdown(sections.sections())
    assert "1.50 times the time and 2.00 times the memory" in text
    assert "| distance without DFM | 1.20 (0.00) | distance with DFM | 0.40 (0.00) | +0.80" in text
    assert "has 40.0 % of the energy" in text
    assert "and 3.0 at full size with a live teacher (a pair)." in text


def test_the_committed_results_are_those_of_the_records(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    report, sections = load("report"), load("sections")
    assert (ROOT / "RESULTS.md").read_text() == report.to_markdown(sections.sections())
    readme, text = load("readme"), (ROOT / "README.md").read_text()
    assert text == readme.with_made(text, report.readme_lines())


@pytest.mark.usefixtures("runs")
def test_the_table_of_the_readme_marks_what_can_be_told(load: Any) -> None:
    report, readme = load("report"), load("readme")
    table = report.table_in_markdown(readme.main_table())
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:4] for line in table}
    assert rows["logit KD"] == ["84.09 (0.09) ▼", "not run", "not run"]
    assert rows["FD"][0] == "86.09 (0.09) ▲"
    assert rows["OFA-KD"][0].endswith(")")
    assert rows["**ScaleKD**"][:2] == ["**85.09 (0.09)**", ""]
    text = readme.with_made(f"a\n{readme.BEGIN}\nold\n{readme.END}\nb\n", table)
    assert text.startswith(f"a\n{readme.BEGIN}\n\n| ")
    assert "old" not in text
    with pytest.raises(ValueError, match="one pair"):
        readme.with_made("no place", table)


@pytest.mark.usefixtures("runs")
def test_the_readme_says_where_scalekd_stands_in_equal_time(load: Any) -> None:
    for method, gain in {"logit_kd": 0.03, "fd": 0.02, "supervised": -0.01}.items():
        write("main_comparison", "few", f"{method}, equal time", spread(0.85 + gain, 10))
    mixed = [v + (0.01 if n % 2 else -0.01) for n, v in enumerate(spread(0.85, 10))]
    write("main_comparison", "few", "ofa, equal time", mixed)
    text = load("readme").equal_time()
    assert (
        "Few labels, with a live teacher: below logit KD (-3.00) and FD (-2.00); above supervised "
        "(+1.00); cannot be told from OFA-KD (+0.00); not run: DIST and RSD. Few labels, from"
    ) in text


class Page(HTMLParser):
    """Links, anchors and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "section":
            self.anchors.add(known["id"] or "")
        if tag in ("a", "link", "script", "img"):
            self.links.append(known.get("href") or known.get("src") or "")
        if known.get("role") == "img":
            self.pictures.append(known.get("aria-label"))


@pytest.mark.usefixtures("runs")
def test_the_page_needs_no_other_file_and_its_links_resolve(load: Any) -> None:
    text = load("report").to_page(load("sections").sections())
    page = Page(text)
    assert len(page.anchors) > 5
    for link in page.links:
        assert link == "data:," or link.removeprefix("#") in page.anchors
    assert "http" not in re.sub(r'xmlns\S*="http[^"]*"|<!DOCTYPE[^>]*>', "", text)
    assert page.pictures
    assert all(page.pictures)
    assert "logit KD, equal steps +1.00 (+1.00 to +1.00)" in (page.pictures[0] or "")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])
@pytest.mark.parametrize("records", ["made up", "committed"])
def test_a_browser_shows_the_page_without_an_error(
    load: Any, width: int, scheme: str, records: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if records == "made up":
        request.getfixturevalue("runs")
    else:
        request.getfixturevalue("monkeypatch").chdir(ROOT)
    # A frame, because a browser's window may have a least width above 400.
    page, frame = tmp_path / "report.html", tmp_path / "frame.html"
    measured = (
        "<script>addEventListener('load', () => parent.postMessage("
        "`${document.documentElement.scrollWidth <= innerWidth ? 'fits' : 'too wide'}"
        " ${innerWidth} ${getComputedStyle(document.body).backgroundColor}`, '*'));</script>"
    )
    text = load("report").to_page(load("sections").sections())
    page.write_text(text.replace("</body>", measured + "</body>"))
    frame.write_text(
        "<title>nothing shown</title>"
        "<script>addEventListener('message', event => { document.title = event.data; });</script>"
        f'<iframe src="{page.name}" style="border: 0" width="{width}" height="900"></iframe>'
    )
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    browser.append(f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")
    shown = subprocess.run(
        [*browser, "--virtual-time-budget=10000", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 19, 24)"}[scheme]
    assert f"<title>fits {width} {paper}</title>" in shown.stdout
    assert "CONSOLE" not in shown.stderr


def test_three_seeds_of_one_sign_are_said_and_not_counted(load: Any) -> None:
    families, records = load("families"), load("records")

    def compare(count: int) -> Any:
        one = records.Values("a", {seed: 80.0 + seed for seed in range(count)})
        other = records.Values("b", {seed: 81.5 + 1.1 * seed for seed in range(count)})
        return families.family([(one, other)])[0]

    two, three, five, ten = map(compare, (2, 3, 5, 10))
    nine = families.family([(compare(9).one, compare(9).other)], planned=10)[0]
    assert (nine.sign, nine.leaning, nine.finished) == (0, -1, False)
    assert [each.sign for each in (two, three, five, ten)] == [0, 0, -1, -1]
    assert [each.leaning for each in (two, three, five, ten)] == [0, -1, -1, -1]
    assert compare(0).verdict == "not run"
    assert compare(1).verdict == "not finished, 1 of 5 seeds"
    assert two.verdict == "not finished, 2 of 5 seeds"
    assert three.verdict == "not finished, 3 of 5 seeds (lower in all 3 seeds)"
    assert five.verdict == "lower in all 5 seeds"
    assert ten.verdict == "lower"
    planned = families.family([(three.one, three.other)], planned=3)[0]
    assert (planned.sign, planned.finished) == (0, True)
    assert planned.verdict == "cannot be told apart (lower in all 3 seeds)"


def test_gains_are_compared_seed_by_seed(load: Any) -> None:
    families, records = load("families"), load("records")
    one = records.Values("a", {0: 80.0, 1: 82.0, 3: 90.0})
    other = records.Values("b", {0: 79.0, 1: 84.0, 2: 50.0})
    assert families.gain(one, other, "gain").by_seed == {0: 1.0, 1: -2.0}


def test_a_control_is_no_trial_of_the_second_tuning(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    further, tuning = load("further"), load("second_tuning")
    assert further.retuned_setting() == "Chosen: not run."
    load("records").read_records.cache_clear()
    for number, trial in enumerate(tuning.tuned()):
        trial.write_record(top1=0.85 if number == 5 else 0.8)
    (best,) = tuning.tuned()[5:6]
    tuning.final(best, "few", 0, "random_tail").write_record(top1=0.9)
    assert further.retuned_setting() == (
        "Chosen of 24, with the weights as parts of those of the first tuning: "
        f"{best.arm}, 85.00 % on the held-out images."
    )
    cells = [cell for row in further.second_tuning_table().rows for cell in row[3:]]
    assert sorted(cells) == ["80.00"] * 23 + ["85.00"]
