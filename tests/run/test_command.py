"""How a program ends, and to whom it speaks."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import pytest

from lth.run import command


def say(argv: Sequence[str]) -> int:
    print("85.67 ± 1, in b\udce9d")
    print("warning: ±", file=sys.stderr)
    return 0


def test_characters_that_an_output_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert command.exit_code(say, []) == 0
    sys.stdout.flush()
    assert content.getvalue() == b"85.67 \\xb1 1, in b\\udce9d\n"


def test_closed_outputs_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `main.py >&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert command.exit_code(say, []) == 0
