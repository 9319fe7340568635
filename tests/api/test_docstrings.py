"""What users are told is so: docstrings speak of every argument, pages of names that are there and true defaults."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def test_every_setting_has_its_help() -> None:
    assert all(len(spec.metadata["help"]) > 10 for spec in dataclasses.fields(Config) if spec.metadata.get("group"))


def test_modules_say_what_they_are_about() -> None:
    for name in lth.__all__:
        assert not inspect.ismodule(getattr(lth, name)) or len(getattr(lth, name).__doc__ or "") > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_pages_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in sorted({found.rstrip(".") for found in re.findall(r"(?<![\w/.-])lth(?:\.[A-Za-z_]\w*)+", text)}):
        thing: Any = lth
        for word in path.split(".")[1:]:
            assert hasattr(thing, word), f"{page.name} speaks of {path}"
            thing = getattr(thing, word)
    for method in set(re.findall(r"\bticket\.(\w+)\(", text)):
        assert hasattr(lth.SavedTicket, method), method
    for method in set(re.findall(r"\brunner\.(\w+)\(", text)):
        assert hasattr(lth.ExperimentRunner, method), method


def test_the_table_of_the_front_doors_defaults_is_true() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8").partition("### Defaults side by side")[2]
    lines = [line.strip("| ").split(" | ") for line in text.partition("###")[0].strip().splitlines()]
    table = {name: dict(zip(lines[0], row, strict=True)) for name, *row in lines[2:]}
    main, short = Config(), {name: option.default for name, option in OPTIONS.items()}
    runner, own = (
        {name: parameter.default for name, parameter in inspect.signature(door).parameters.items()}
        for door in (lth.ExperimentRunner, lth.iterative_pruning)
    )
    needed = inspect.Parameter.empty
    assert all(own[name] is needed for name in ("net", "data", "iterations", "rounds", "prune_rule"))
    assert runner["reinit_method"] == "rewind" and main.prune_type == ("lt",) and not own["random"]
    rate, step = f"{main.optimizer.title()}, {main.lr}", "every epoch"
    assert main.lr == float(short["learn_rate"]) == runner["learning_rate"] and main.optimizer == short["optim"]
    assert main.batch_size == int(short["batch_size"]) == runner["batch_size"] and str(main.valid_freq) == "1"
    prunings = int(short["rounds"])
    given = {
        "model": [f"`{main.arch_type}`", "must be given", "must be given", f"`{runner['model_name']}` (fc1)"],
        "data": [f"`{main.dataset}`", "must be given", "must be given", f"`{runner['dataset']}`"],
        "rounds": [
            f"{main.prune_iterations} trainings",
            f"{prunings} prunings, {prunings + 1} trainings",
            "must be given, in prunings",
            f"{runner['num_rounds']} trainings",
        ],
        "pruned a round": [
            f"{main.prune_percent:g}%",
            f"{100 * float(short['prune_rate']):g}% (a fraction: {short['prune_rate']})",
            "what the rule prunes",
            f"{100 * runner['pruning_rate']:g}% (a fraction: {runner['pruning_rate']})",
        ],
        "a round lasts": [
            f"{main.end_iter} epochs",
            f"{short['iter']} iterations",
            "must be given, in iterations",
            f"{runner['iterations']} iterations",
        ],
        "evaluated": [step, step, "ten times a round", step],
        "optimiser": [rate, rate, f"`net.optim`, else {rate}", rate],
    }
    assert {name: list(table[name].values()) for name in given} == given
    assert table["results under"]["`python lth`"] == f"`{short['save']}`"
    assert table["results under"]["`ExperimentRunner`"] == f"`{runner['results_dir']}/`"
