"""What users are told is so: docstrings speak of every argument, pages of names that are there and true defaults."""

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flag_page
import pytest

import lth
from lth.__main__ import OPTIONS
from lth.settings.config import PROJECT, Config

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
MODULES = ("data", "prune")  # whose functions users call too


def public() -> Iterator[tuple[str, Any]]:
    """Every public function and class of the library, and those of the modules for users."""
    yield from ((f"lth.{name}", getattr(lth, name)) for name in lth.__all__)
    for module in MODULES:
        for name, thing in vars(getattr(lth, module)).items():
            if not name.startswith("_") and getattr(thing, "__module__", "").startswith(
                f"{getattr(lth, module).__name__}"
            ):
                yield f"lth.{module}.{name}", thing


def methods(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """The thing itself, or a class with its public methods."""
    yield name, thing
    for own, value in vars(thing).items() if inspect.isclass(thing) else ():
        value = getattr(value, "__func__", getattr(value, "fget", value))
        if not own.startswith("_") and inspect.isfunction(value):
            yield f"{name}.{own}", value


def parameters(thing: Any) -> list[str]:
    if thing is Config or getattr(thing, "_is_protocol", False):  # settings have their help, below
        return []
    found = inspect.signature(thing).parameters.values()
    named = [parameter.name for parameter in found if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]
    return [name for name in named if name not in ("self", "cls")]


FOUND = {
    own: value
    for name, thing in public()
    if inspect.isclass(thing) or inspect.isfunction(thing)
    for own, value in methods(name, thing)
}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_docstrings_speak_of_every_argument(name: str) -> None:
    text = inspect.getdoc(FOUND[name]) or ""
    assert len(text) > 20 and (text[0].isupper() or text[0] == "`")
    assert not [word for word in parameters(FOUND[name]) if not re.search(rf"\b{word}\b", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_pages_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in sorted({found.rstrip(".") for found in re.findall(r"(?<![\w/.-])lth(?:\.[A-Za-z_]\w*)+", text)}):
        thing: Any = lth
        if path.startswith("lth.integrations"):  # whose frameworks may not be installed
            assert importlib.util.find_spec(path), f"{page.name} speaks of {path}"
            continue
        for word in path.split(".")[1:]:
            assert hasattr(thing, word), f"{page.name} speaks of {path}"
            thing = getattr(thing, word)
    for method in set(re.findall(r"\bticket\.(\w+)\(", text)):
        assert hasattr(lth.SavedTicket, method), method
    for method in set(re.findall(r"\brunner\.(\w+)\(", text)):
        assert hasattr(lth.ExperimentRunner, method), method


def test_the_table_of_the_front_doors_defaults_is_true() -> None:
    text = (PROJECT / "docs" / "python.md").read_text(encoding="utf-8").partition("## Defaults side by side")[2]
    rows = {row.split("|")[1].strip(): row for row in text.partition("## ")[0].splitlines() if row.count("|") > 3}
    main, short = Config(), {words.split()[0][2:]: default for words, _, default, *_ in OPTIONS}
    runner = {name: given.default for name, given in inspect.signature(lth.ExperimentRunner).parameters.items()}
    assert main.lr == float(short["learn_rate"] or 0) == runner["learning_rate"] and main.optimizer == short["optim"]
    assert main.batch_size == int(short["batch_size"] or 0) == runner["batch_size"] and str(main.valid_freq) == "1"
    rounds, rate = int(short["rounds"] or 0), float(short["prune_rate"] or 0)
    told = {
        "model": [f"`{main.arch_type}`", f"`{runner['model_name']}` (fc1)"],
        "data": [f"`{main.dataset}`", f"`{runner['dataset']}`"],
        "rounds": [f"{n} trainings" for n in (main.prune_iterations, rounds + 1, runner["num_rounds"])],
        "pruned per round": [f"{main.prune_percent:g}%", f"{100 * rate:g}% (a fraction: {runner['pruning_rate']})"],
        "a round lasts": [
            f"{main.end_iter} epochs",
            f"{short['iter']} iterations",
            f"{runner['iterations']} iterations",
        ],
        "optimiser": [f"{main.optimizer.title()}, {main.lr}"],
        "results under": [f"`{short['save']}`", f"`{runner['results_dir']}/`"],
    }
    assert [word for name, words in told.items() for word in words if word not in rows[name]] == []


def test_the_page_of_flags_is_made_from_the_settings() -> None:
    written = (PROJECT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == flag_page.page(), "renew it: PYTHONPATH=. python tests/flag_page.py >docs/flags.md"
