"""Files that survive: written under another name, synced and renamed, so that a reader sees the old one or the new."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class RecordError(Exception):
    """A result could not be written or read; the message is one sentence for the user."""


def set_aside(file: Path) -> Path:
    """Rename a file that cannot be used, and give its new name."""
    target = file.with_name(f"{file.name}.damaged")
    with explained(file):
        file.replace(target)
    return target


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that people read."""
    write(file, (json.dumps(content, indent=2) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none or it is spoiled."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(file: Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old one. RecordError says what went wrong."""
    partial = file.with_name(f"{file.name}.partial")
    with explained(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"cannot write {file}: {error.strerror or error}; what was finished before is safe") from None
