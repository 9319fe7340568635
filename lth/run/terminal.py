"""Sentences on a terminal: broken between words, and without control characters."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from typing import TextIO


def columns(stream: TextIO) -> int:
    """The width of the terminal that `stream` writes to."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def wrapped(text: str, stream: TextIO) -> str:
    """`text`, broken between words where `stream` is a terminal; a longer word, such as a path, stays whole. Control
    characters, as a folder's name or a model's error may have them, are escaped."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: ascii(found[0])[1:-1], text)
    if not stream.isatty():
        return text
    filler = textwrap.TextWrapper(columns(stream), break_long_words=False, break_on_hyphens=False)
    return "\n".join(line if len(line) <= filler.width else filler.fill(line) for line in text.split("\n"))
