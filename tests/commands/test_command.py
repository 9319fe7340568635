"""How a program ends, and what it writes to whom."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import pytest

from lth.commands import command
from lth.commands.terminal import wrapped
from lth.settings.config import ConfigError


def test_characters_that_an_output_lacks_and_control_characters_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    content, errors = io.BytesIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii", newline="\n"))
    monkeypatch.setattr(sys, "stderr", errors)

    def colourful(argv: Sequence[str]) -> NoReturn:
        print("85.67 ± 1, in b\udce9d\x1b[2J")
        print("\r 5%|#", end="")  # as a progress bar is drawn
        raise RuntimeError("\x1b]0;title\x07\x9b31m")

    assert command.exit_code(colourful, []) == 1
    assert content.getvalue() == b"85.67 \\xb1 1, in b\\udce9d\\x1b[2J\n\r 5%|#"
    assert errors.getvalue() == "error: RuntimeError: \\x1b]0;title\\x07\\x9b31m (--debug shows where)\n"


def test_closed_outputs_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `main.py >&- 2>&-`."""

    def told_and_refused(argv: Sequence[str]) -> NoReturn:
        print(wrapped("what stands above the table", sys.stdout))
        raise ConfigError("--lr must be a number above 0")

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert command.exit_code(told_and_refused, []) == 2
