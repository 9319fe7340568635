"""Files that survive a crash: written under another name, synced and renamed, so that a reader sees the old content or
the new."""

import contextlib
import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class RecordError(Exception):
    """A result could not be written or read; the message is one sentence for the user."""


class Unreadable(RecordError):
    """A file cannot be read now: no permission, too many open files, a disk that does not answer. Its content may be
    sound."""


class Unwritable(RecordError):
    """A file cannot be written: the disk is full, or permission is missing."""


class Damaged(Exception):
    """A file cannot be used: truncated, from other settings or from a newer program."""


UNUSABLE = (RecordError, Damaged, FileNotFoundError)  # the errors of reading a run's files


def read(file: Path) -> bytes:
    """The content of a file. FileNotFoundError if there is none, Unreadable if it cannot be read."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # the latter if a parent folder is a file
        raise FileNotFoundError(f"{file} is gone") from None
    except OSError as error:
        raise Unreadable(f"{file} cannot be read ({error.strerror or error})") from None


def set_aside(file: Path) -> Path:
    """Rename a file that cannot be used. Returns its new name."""
    target = file.with_name(f"{file.name}.damaged")
    with raise_unwritable(file):
        file.replace(target)
    return target


def delete(file: Path) -> None:
    """Delete a file if it exists."""
    with raise_unwritable(file):
        file.unlink(missing_ok=True)


def drop_partials(folder: Path, name: str = "") -> None:
    """Delete the partial files and folders that killed processes left, or only those of the file `name`."""
    for file in folder.glob(f"{glob.escape(name)}*.partial"):
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        else:
            delete(file)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that people read."""
    write(file, (json.dumps(content, indent=2) + "\n").encode())


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing or is no JSON object. Unreadable if it cannot be read."""
    try:
        content = json.loads(read(file))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write(file: Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old content. Unwritable if that fails."""
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.partial")  # another process may write the same file
    with raise_unwritable(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
            _sync(file.parent)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def _sync(folder: Path) -> None:
    """Make a renaming survive a power failure, before anything that relies on it is written."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def raise_unwritable(file: Path) -> Iterator[None]:
    """Turn an OSError inside the `with` block into Unwritable, which names the file."""
    try:
        yield
    except OSError as error:
        raise Unwritable(f"cannot write {file}: {error.strerror or error}; what was finished before is safe") from None
