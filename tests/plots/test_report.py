"""report.html: one page that needs nothing else, opened in a real browser."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRuns

from lth.analysis import labels, verdict
from lth.plots import report
from lth.plots.comparison import comparison
from lth.plots.survivors import layers
from lth.records import files, tables
from lth.records.tables import Run
from lth.settings.config import Config

EVIL = '<script>document.title="broken"</script>'


def page(runs: list[Run], sentences: tuple[str, ...] = ("It wins.",)) -> str:
    return report.page(runs, verdict.table(runs), sentences)


def test_a_page_needs_nothing_from_elsewhere_and_escapes_what_users_named(make_runs: MakeRuns) -> None:
    runs = make_runs(rounds=3, arch_type=EVIL.replace("/", "|"))
    said = page(runs, (EVIL,))
    assert EVIL not in said and "&lt;script&gt;document.title" in said and EVIL.replace("/", "|") not in said
    assert not re.findall(r"""src=["'](?!data:)""", said) and "http" not in said.replace("http-equiv", "")


def test_settings_other_than_the_default_come_first_and_are_marked(make_runs: MakeRuns) -> None:
    runs = make_runs(arms=("lt",), rounds=2)
    settings = {"lr": Config().lr, "prune_type": ["lt", "reinit"], "seed": 0, "prune_percent": 20.0}
    settings |= {"data": None, "optimizer": "adam"}
    facts = {"command": ["--name", "two words"], "versions": {"torch": "9.9"}, "device": "a GPU"}
    files.write_json(runs[0].dumps / "config.json", {"settings": settings, **facts})
    said = page(runs)
    shown, folded = said.partition("<h2>Settings")[2].split("3 settings at their defaults")
    rows = [re.findall(r'<td class="text">(.*?)</td>', part) for part in (shown, folded)]
    assert rows[0] == ["prune_percent", "20", "10"], "arms and trials may be of several commands"
    assert rows[1] == ["lr", "0.0012", "data", "-", "optimizer", "adam"]
    assert "python main.py --name &#39;two words&#39;" in said and "torch 9.9" in said and "a GPU" in said
    named = {"settings": {"name": "None-1", "data": None}, **facts, "program": ["-m", "lth"]}
    files.write_json(runs[0].dumps / "config.json", named)
    assert "None-1" in page(runs) and "<pre>python -m lth --name" in page(runs), "only a missing value is a dash"


def test_a_row_a_round_and_arm_with_the_winning_ones_marked(make_runs: MakeRuns) -> None:
    runs = make_runs(rounds=4)
    table = verdict.table(runs)
    rows = re.findall(r"<tr( class=\"winning\")?><td>\d", page(runs))
    assert len(rows) == len(table) and sum(map(bool, rows)) == int(table["winning"].sum()) > 0


def test_the_page_begins_with_three_numbers_and_a_light_per_arm(make_runs: MakeRuns) -> None:
    runs = make_runs(rounds=4)
    found = verdict.sparsest(verdict.pruned(verdict.table(runs), "lt"))
    said = page(runs)
    assert found and re.findall(r"<div><b>(.*?)</b>", said)[0] == f"{labels.percent(found['remaining'], 3)}%"
    assert re.findall(r'<li class="(\w+)"><b>(\w+)', said)[0] == ("green", "lt") and "<b>reinit</b>" in said
    assert "seeds 0, 1, 2" in said and 'href="../../../../dumps/fc1/mnist/' in said
    late = make_runs(rounds=2, evaluations=1, settings="late", saves=False)
    assert "<b>not measured</b>" in page(late) and 'class="green"><b>lt' not in page(late)


def test_the_page_shows_the_figures_and_stays_below_a_megabyte(make_runs: MakeRuns, tmp_path: Path) -> None:
    runs = make_runs(arms=("lt", "reinit"), rounds=3)
    assert layers(runs) is None
    comparison(runs, file := tmp_path / "comparison.pdf")
    said = report.write(runs, verdict.table(runs), [], tmp_path, [file]).read_text(encoding="utf-8")
    assert said.count('src="data:image/png') == 1 and "Accuracy and early stop" in said and len(said) < 1_000_000
    assert "by sparsity; lt, reinit." in said
    file.with_suffix(".png").rename(one_run := tmp_path / "first_layer.png")
    of_one = report.page(runs, verdict.table(runs), [], [one_run])
    assert "one run" in of_one and "lt, reinit." not in of_one, "a caption names no arm that its picture does not show"


def test_the_page_of_all_gives_each_setting_once(make_runs: MakeRuns, tmp_path: Path) -> None:
    values = (
        "lr=0.1,batch_size=10,momentum=0.5,weight_decay=0.1",
        "lr=0.2,batch_size=20,momentum=0.6,weight_decay=0.2",
    )
    groups = [make_runs(arms=["lt"], seeds=[0], rounds=2, settings=settings, saves=False) for settings in values]
    text = re.sub(r"\s+", " ", report.write_index(groups, tmp_path).read_text(encoding="utf-8"))
    assert (
        text.count("learning rate 0.1") == text.count("batches of 20") == 1 and text.count("10% pruned per round") == 2
    )


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=program, args=flags)
        yield opened
        opened.close()


@pytest.mark.slow
def test_in_a_browser(browser: Any, make_runs: MakeRuns, tmp_path: Path) -> None:
    runs = make_runs(rounds=5)
    config = tables.read_config(runs[0]) | {"settings": {"name": EVIL}, "command": [EVIL]}
    files.write_json(runs[0].dumps / "config.json", config)
    table = verdict.table(runs)
    comparison(runs, picture := tmp_path / "comparison.png")
    file = report.write(runs, table, [EVIL], tmp_path, [picture])
    tab, complaints = browser.new_page(viewport={"width": 400, "height": 800}), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(file.as_uri())
    assert tab.title() == "fc1 on MNIST" and EVIL in tab.inner_text(".verdict") and EVIL in tab.inner_text("pre")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400  # nothing wider than a phone
    wide = tab.locator(".zoom img").bounding_box()["width"]
    tab.click(".zoom")
    assert tab.locator(".zoom img").bounding_box()["width"] > 2 * wide
    tab.click(".zoom")

    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0
    column = "#rounds tbody td:nth-child(7)"
    tab.click("#rounds th:nth-child(7)")
    found = [float(text) for text in tab.locator(column).all_inner_texts()]
    assert found == sorted(found) and len(found) == len(table)
    tab.click("#rounds th:nth-child(7)")
    assert [float(text) for text in tab.locator(column).all_inner_texts()] == found[::-1]
    assert complaints == []
