"""Text for a terminal: broken between words, without control characters."""

import os
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


def plain(text: str) -> str:
    """`text` with control characters escaped, which the name of a folder or the message of a model may have."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: ascii(match[0])[1:-1], text)


class Output:
    """A stream that gets plain text only, with escapes for characters that its encoding lacks. If it is closed, or its
    reader ends as in `main.py | head`, the text is dropped and the program continues."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = stream or Path(os.devnull).open("w")  # noqa: SIM115
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, which may begin with a carriage return, as a progress bar does."""
        start = text.startswith("\r")
        self._do(self._stream.write, text[:start] + plain(text[start:]))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._do(self._stream.flush)

    def _do(self, action: Callable[..., object], *text: str) -> None:
        try:
            action(*text)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def wrapped(text: str, stream: TextIO) -> str:
    """Plain `text`, broken between words if `stream` is a terminal; a long word, such as a path, is not broken."""
    text = plain(text)
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    filler = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(filler.fill, text.split("\n")))


def say(text: str, stream: TextIO) -> None:
    """Print `text`, wrapped."""
    print(wrapped(text, stream), file=stream, flush=True)
