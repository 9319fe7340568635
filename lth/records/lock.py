"""One process a run, over shared storage: a lock file names the holder, and a fence keeps a late one from writing.

A lock is `seed0.lock` beside the run's folder; its modification time is the holder's last sign of life. Of a holder
that is dead, or silent for longer than it promised, another may take the lock over; but a silent one may only be paused
or cut off, and wake. So every holder has a number, higher than those before, and everything it writes is written under
a name with that number, then the lock is read once more, and only then is the file renamed to its place
(lth.records.files.write). Whoever takes over deletes the files with other numbers before it reads anything: a holder
that wakes between its last look at the lock and its rename has nothing left to rename.

filelock's SoftFileLease is the nearest kept library; this stays own code because that has no fencing number, and each
process would have to watch a lock for the whole limit before it could take it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lth.records.files import RecordError, explained, read, read_json
from lth.settings.config import Config

LIMIT: float = Config.lock_limit
SIGNS = 5  # of life within the limit: NFS may hide one for a minute
TRIES = 30  # to take a lock that is being written, or taken, at this moment
MOMENT = 60.0  # seconds that a file for a moment can be there while its process lives
BEING_WRITTEN = 1.0  # seconds that a lock may be without content


class Locked(RecordError):
    """Another process works on the run."""


class Lost(RecordError):
    """Another process has taken over the run."""


@dataclass(frozen=True)
class Held:
    """The right to write what belongs to one lock, as long as the lock says `content`. Can be sent to workers."""

    file: Path
    content: str
    number: int

    def check(self) -> None:
        """Lost if the lock is another's by now, or gone."""
        now = _read(self.file)
        if now != self.content:
            holder = _parsed(now or "")
            other = f"process {holder['pid']} on {holder['host']} has it now" if _named(holder) else "its lock is gone"
            raise Lost(f"{_folder(self.file)} is no longer this process's: {other}, and goes on with it")


class Locks:
    """The locks that this process holds: `with Locks() as locks: fence = locks.take(folder)`.

    limit: seconds without a sign of life after which another machine may take over a lock of these.
    job: name of a job whose processes may take over each other's locks at once (something else knows that they ended).
    """

    def __init__(self, limit: float = LIMIT, job: str = "") -> None:
        self.limit, self.job = limit, job
        self._held: dict[Path, Held] = {}
        self._alive: dict[Path, float] = {}  # until when a holder that gave a sign of life is not judged again
        self._done = threading.Event()

    def __enter__(self) -> Locks:
        threading.Thread(target=self._refresh, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        for folder in list(self._held):
            self.release(folder)

    def take(self, folder: Path) -> Held:
        """Take the lock of a folder. Locked, naming the holder, if another process has it."""
        file = lock_file(folder)
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(TRIES):
                before, taken = _read(file), None
                if before is None:
                    taken = self._create(file, file, _last(folder))
                elif self._abandoned(file, before):
                    taken = self._succeed(file, before)
                elif _named(holder := _parsed(before)) and _read(file) == before:
                    who = f"process {holder['pid']} on {holder['host']}"
                    raise Locked(f"{folder} is in use by {who}: wait for it or stop it")
                if taken is not None and _read(file) == taken.content:
                    self._held[folder] = taken
                    _tidy(file)
                    return taken
                time.sleep(0.05)
        raise Locked(f"{folder} is being taken by another process right now")

    def try_take(self, folder: Path) -> Held | None:
        """Take the lock of a folder if nobody has it. Cheap where somebody has: a lock is judged once in a while."""
        if time.monotonic() < self._alive.get(folder, 0.0) and lock_file(folder).exists():
            return None
        try:
            return self.take(folder)
        except Locked:
            self._alive[folder] = time.monotonic() + self.limit / SIGNS
            return None

    def release(self, folder: Path) -> None:
        """Give a lock back, if it is still this process's."""
        held = self._held.pop(folder, None)
        with contextlib.suppress(OSError, RecordError):
            if held is not None and _read(held.file) == held.content:
                held.file.unlink()
                _tidy(held.file)

    def _create(self, file: Path, path: Path, number: int) -> Held | None:
        """The lock `file` with the number after `number`, written to `path`; None if that exists."""
        me = {**whoami(), "number": number + 1, "limit": self.limit, "job": self.job, "token": uuid.uuid4().hex}
        held = Held(file, json.dumps(me), number + 1)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w") as stream:
            stream.write(held.content)
        return held

    def _succeed(self, file: Path, before: str) -> Held | None:
        """Replace the abandoned lock that says `before`; None if another process is doing so or has done so."""
        number = max(_number(_parsed(before), "number"), _last(_folder(file)))
        # Only who has made this file may replace the lock, and only the one that was judged: else, of two that find it
        # abandoned, the slower one could replace the lock that the quicker one has made since.
        claim = file.with_name(f"{file.name}.{number}.next")
        held = self._create(file, claim, number)
        if held is None:
            claimed = _read(claim)
            if claimed is not None and self._abandoned(claim, claimed):
                claim.unlink(missing_ok=True)
            return None
        if _read(file) != before:
            claim.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            claim.replace(file)
        return held

    def _abandoned(self, file: Path, content: str) -> bool:
        """Whether the holder that a lock names is dead, or silent for longer than it promised not to be."""
        age = clock(file.parent) - _modified(file)
        holder = _parsed(content)
        if not _named(holder):
            return age > BEING_WRITTEN
        if self.job and holder.get("job") == self.job:
            return True
        silent = age > holder.get("limit", LIMIT)
        if holder.get("place") != place():
            return silent
        return not _lives(holder, silent)

    def _refresh(self) -> None:
        while not self._done.wait(self.limit / SIGNS):
            for held in list(self._held.values()):
                with contextlib.suppress(OSError, RecordError):  # a lost lock is noticed at the next write
                    if _read(held.file) == held.content:
                        os.utime(held.file)


def clear(folder: Path) -> None:
    """Delete the lock of a folder, and what was beside it, if a dead process has left them."""
    if any(folder.parent.glob(f"{folder.name}.lock*")) or any(folder.parent.glob("*.lock.now")):
        with contextlib.suppress(RecordError), Locks() as locks:
            locks.take(folder)


def lock_file(folder: Path) -> Path:
    """Where the lock of a folder is."""
    return folder.with_name(f"{folder.name}.lock")


def clock(folder: Path) -> float:
    """The time by the clock of the folder's file system, which those of the machines that share it may differ from."""
    while True:
        mark = folder / f"{uuid.uuid4().hex}.lock.now"
        mark.touch()
        try:
            return mark.stat().st_mtime
        except FileNotFoundError:  # somebody tidied up
            continue
        finally:
            mark.unlink(missing_ok=True)


def probe(root: Path) -> None:
    """RecordError unless files under `root` can be created exclusively, renamed and read back, as locks need it."""
    first, second = (root / f"{uuid.uuid4().hex}.probe" for _ in range(2))
    with explained(root):
        root.mkdir(parents=True, exist_ok=True)
        try:
            with first.open("x") as stream:
                stream.write("first")
            _sweep(root, first.stat().st_mtime)
            second.write_text("second")
            kept = _fails(FileExistsError, lambda: os.open(first, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            first.replace(second)
            renamed = second.read_text() == "first" and not first.exists()
        finally:
            for file in (first, second):
                file.unlink(missing_ok=True)
    if not (kept and renamed):
        what = "create a file exclusively" if not kept else "rename a file onto another"
        raise RecordError(
            f"the storage of {root} cannot {what}, which several processes need to share it: use another --root"
        )


def _sweep(root: Path, now: float) -> None:
    """Delete the files for a moment that processes have left in `root` that were killed then."""
    for left in root.iterdir():
        if re.fullmatch(r"[0-9a-f]{32}\.(probe|lock\.now)", left.name):
            with contextlib.suppress(OSError):
                if now - left.stat().st_mtime > MOMENT:
                    left.unlink()


def _fails(kind: type[OSError], call: Callable[[], int]) -> bool:
    try:
        os.close(call())
    except kind:
        return True
    return False


def whoami() -> dict[str, Any]:
    """This process, as a lock names it."""
    return {
        "host": socket.gethostname(),
        "place": place(),
        "pid": os.getpid(),
        "started": _started(psutil.Process()),
    }


def place() -> str:
    """Where a process number means the same process: the host since its start and, on Linux, the container."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _started(process: psutil.Process) -> float:
    """Seconds from the start of the machine to that of the process, which no change of the clock alters."""
    boot = psutil.boot_time()
    return process.create_time() - boot


def _lives(holder: dict[str, Any], silent: bool) -> bool:
    """Whether a process of this machine still works: it is there, and not stopped for too long."""
    try:
        process = psutil.Process(int(holder["pid"]))
        status = process.status()
        if status == psutil.STATUS_ZOMBIE or (silent and status == psutil.STATUS_STOPPED):
            return False
        return abs(_started(process) - float(holder["started"])) < 1.0
    except psutil.AccessDenied:  # another user's
        return True
    except (psutil.NoSuchProcess, TypeError, ValueError, KeyError):
        return False


def _tidy(file: Path) -> None:
    """Delete what processes have left beside a lock that were killed while they judged or took it."""
    for left in file.parent.glob("*.lock.*"):
        if left.name.startswith(f"{file.name}.") or left.name.endswith(".lock.now"):
            with contextlib.suppress(OSError):
                left.unlink()


def _folder(file: Path) -> Path:
    return file.with_suffix("")


def _last(folder: Path) -> int:
    """The number of the last holder that worked on the run, by its config.json; 0 if none did."""
    return _number(read_json(folder / "config.json"), "taken")


def _read(file: Path) -> str | None:
    """What a lock says; None if there is none."""
    try:
        return read(file).decode(errors="replace")
    except FileNotFoundError:
        return None


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return float("inf")  # gone meanwhile: that is not old


def _parsed(content: str) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _named(holder: dict[str, Any]) -> bool:
    return {"host", "pid"} <= holder.keys()


def _number(content: dict[str, Any], name: str) -> int:
    number = content.get(name, 0)
    return number if isinstance(number, int) else 0
