"""The house: which part of lth/ may use which, as the README draws it. An import that runs back up fails here."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

LTH = Path(__file__).resolve().parents[1] / "lth"
LAYERS = (
    *("settings", "rng", "data", "models", "pruning", "prune", "training", "records", "experiment", "analysis"),
    *("plots", "commands", "claims", "testing", "api", "integrations", "__main__"),
)
MODULES = sorted(path for path in LTH.rglob("*.py") if path != LTH / "__init__.py")


def part(module: str) -> str:
    """The part of the house that `lth.records.tables` belongs to."""
    return module.split(".")[1]


def name_of(file: Path) -> str:
    return ".".join(("lth", *file.relative_to(LTH).with_suffix("").parts)).removesuffix(".__init__")


def imported(file: Path) -> Iterator[str]:
    """The modules of lth that a file imports, those it names only for types left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("lth."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where an arrow goes"
            if node.module == "lth":
                yield from (f"lth.{alias.name}" for alias in node.names)
            elif (node.module or "").startswith("lth."):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                modules = set(map(name_of, MODULES))
                yield from (name if name in modules else str(node.module) for name in names)


def test_every_part_has_its_place() -> None:
    assert {part(name_of(file)) for file in MODULES} == set(LAYERS)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_uses_only_what_is_above_it(file: Path) -> None:
    here = LAYERS.index(part(name_of(file)))
    for module in imported(file):
        assert LAYERS.index(part(module)) <= here, f"{name_of(file)} imports {module}, which is below it"


def test_no_module_holds_two_concerns_and_no_two_have_one_name() -> None:
    names = [file.stem for file in MODULES if file.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))
    assert not [file for file in MODULES if len(file.read_text(encoding="utf-8").splitlines()) > 350]


def test_nothing_goes_in_a_circle() -> None:
    arrows = {name_of(file): set(imported(file)) - {name_of(file)} for file in MODULES}
    while free := {name for name, uses in arrows.items() if not uses & arrows.keys()}:
        arrows = {name: uses for name, uses in arrows.items() if name not in free}
    assert not arrows, f"these import each other: {arrows}"


@pytest.mark.parametrize("file", [file for file in MODULES if file.name == "__init__.py"], ids=name_of)
def test_a_package_says_what_it_is_about_and_does_nothing(file: Path) -> None:
    first, *rest = ast.parse(file.read_text(encoding="utf-8")).body
    assert isinstance(first, ast.Expr) and "Uses" in ast.unparse(first)
    allowed = (ast.ImportFrom, ast.Assign)  # names passed on, and __all__
    assert all(isinstance(node, allowed) for node in rest)


def test_what_pip_installs_has_every_part_and_every_model() -> None:
    told = (LTH.parent / "pyproject.toml").read_text(encoding="utf-8")
    packages = set(re.findall(r'"([\w.]+)"', re.search(r"(?s)\npackages = \[(.*?)\]", told)[1]))  # type: ignore[index]
    parts = {name_of(file) for file in LTH.rglob("__init__.py")}
    models = {f"lth.packaged.archs.{file.parent.name}" for file in (LTH.parent / "archs").glob("*/*.py")}
    assert packages == parts | models | {"lth.packaged.archs", "lth.packaged.data"}
