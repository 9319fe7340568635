"""Sentences on a terminal: broken between words, not within them."""

from __future__ import annotations

import os
import shutil
import textwrap
from typing import TextIO


def width(stream: TextIO) -> int:
    """The columns of the terminal that `stream` writes to."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def wrapped(text: str, stream: TextIO) -> str:
    """`text`, broken between words at the width of the terminal that `stream` is; as it is elsewhere."""
    if not stream.isatty():
        return text
    return "\n".join(fill(line, width(stream)) for line in text.split("\n"))


def fill(line: str, columns: int) -> str:
    """One line broken between words; a word that is longer, as a path may be, stays whole."""
    if len(line) <= columns:
        return line
    return textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False)
