"""How a program ends, and to whom it speaks."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import pytest

from lth.run import command
from lth.run.terminal import wrapped
from lth.settings.config import ConfigError


def say(argv: Sequence[str]) -> int:
    print("85.67 ± 1, in b\udce9d")
    print("warning: ±", file=sys.stderr)
    return 0


def test_characters_that_an_output_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii", newline="\n"))
    assert command.exit_code(say, []) == 0
    sys.stdout.flush()
    assert content.getvalue() == b"85.67 \\xb1 1, in b\\udce9d\n"


def test_closed_outputs_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `main.py >&- 2>&-`."""

    def told_and_refused(argv: Sequence[str]) -> int:
        print(wrapped("what stands above the table", sys.stdout))
        raise ConfigError("--lr must be a number above 0")

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert command.exit_code(told_and_refused, []) == 2
