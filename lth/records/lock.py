"""One process a run: a lock file with its holder's host and process, refreshed while held."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from lth.records.files import RecordError, explained

STALE = 60.0  # seconds without refresh after which another host's lock counts as abandoned
REFRESH = 15.0


class Locked(RecordError):
    """Another process works on the run."""


class Locks:
    """Holds the locks of some folders, as files beside them: `with Locks(folders): ...`. Raises Locked if another
    process has one."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.files = [folder.with_name(f"{folder.name}.lock") for folder in folders]
        self.held: list[Path] = []
        self._done = threading.Event()
        self._mine = json.dumps(_whoami())

    def __enter__(self) -> Locks:
        try:
            for file in self.files:
                self._take(file)
                self.held.append(file)
        except BaseException:
            self._release()
            raise
        threading.Thread(target=self._refresh, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._release()

    def _take(self, file: Path) -> None:
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(30):
                try:
                    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    self._clear(file)
                    continue
                with os.fdopen(descriptor, "w") as stream:
                    stream.write(self._mine)
                return
        raise Locked(f"{file.with_suffix('')} is being taken by another process right now")

    def _clear(self, file: Path) -> None:
        """Remove an abandoned lock; Locked if it is not."""
        try:
            content, age = file.read_bytes(), _now(file) - file.stat().st_mtime
        except FileNotFoundError:
            return
        holder = _parsed(content)
        if not holder and age < 1.0:
            time.sleep(0.1)  # it is being written
            return
        if _alive(holder, age):
            raise Locked(
                f"{file.with_suffix('')} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}: "
                f"wait for it or stop it"
            )
        # Only who has made this file may remove the lock, and only the one that was judged: else, of two that find it
        # abandoned, the slower one could remove the lock that the quicker one has made since.
        clearing = file.with_name(f"{file.name}.clearing")
        try:
            os.close(os.open(clearing, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if _now(file) - clearing.stat().st_mtime > STALE:  # its maker died within these few lines
                    clearing.unlink()
            time.sleep(0.05)
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                if file.read_bytes() == content:
                    file.unlink()
        finally:
            clearing.unlink(missing_ok=True)

    def _refresh(self) -> None:
        while not self._done.wait(REFRESH):
            for file in self.held:
                try:
                    os.utime(file)
                except OSError:
                    continue  # a lost lock is noticed by whoever takes it; the work goes on

    def _release(self) -> None:
        for file in self.held:
            try:
                if file.read_bytes() == self._mine.encode():
                    file.unlink()
            except OSError:
                continue
        self.held = []


def _whoami() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _now(file: Path) -> float:
    """The time by the clock of the file system, which the clocks of several hosts that share it may differ from."""
    probe = file.with_name(f"{file.name}.{os.getpid()}.now")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _alive(holder: dict[str, Any], age: float) -> bool:
    """Whether the holder of a lock that was refreshed `age` seconds ago still works."""
    if holder.get("host") != socket.gethostname():
        return bool(holder) and age < STALE
    try:
        process = psutil.Process(int(holder["pid"]))
        return abs(process.create_time() - float(holder["started"])) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:  # another user's
        return True
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return False
