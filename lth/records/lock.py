"""One process per run: the operating system's lock on a file beside the run's folder.

The process that trains a run locks `seed0.lock`, by flock() on Unix, which NFSv4, Lustre and GPFS pass on to their
servers, and by LockFileEx on Windows. The lock is free the moment that process is gone, however it ended. The file is
never deleted, since two processes could then lock two files of one name. A forked child (a worker of a DataLoader)
inherits the open file and holds the lock until it has ended, too; a spawned one does not.

`seed0.holder` names the last process that took the lock. A machine that was cut off from its file server may have lost
a lock without noticing it: `check_owner` finds that out from this file, before each line of the journal.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Collection
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from filelock import lock_descriptor  # with neither soft locks nor deleted files, unlike filelock.FileLock

from lth.records.files import RecordError, drop_partials, raise_unwritable, read_json, write_json

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of file systems without locks
LOCAL = ("nolock", "localflock", "nobrl", "local_lock=all", "local_lock=flock")  # mount options: not on the server
PATIENCE = 0.5  # seconds to wait for a lock: another process may only be testing whether it is held


class Locked(RecordError):
    """Another process works on the run."""


class Lost(RecordError):
    """Another process has taken over the run."""


class Locks:
    """The locks that this process holds, all of them released at the end of `with`.

    optional: whether to do without locks on a file system that has none, since no other process shares the work.
    """

    def __init__(self, optional: bool = False) -> None:
        self.optional = optional
        self._held: dict[Path, ExitStack] = {}  # each closes the locked file

    def __enter__(self) -> Locks:
        return self

    def __exit__(self, *exception: object) -> None:
        for folder in list(self._held):
            self.release(folder)

    def take(self, folder: Path) -> None:
        """Take the lock of a folder. Locked, which names the holder, if another process has it."""
        deadline = time.monotonic() + PATIENCE
        while not self.try_take(folder):
            if time.monotonic() > deadline:
                raise Locked(f"{folder} is in use by {holder(folder)}: wait for it or stop it")
            time.sleep(0.05)

    def try_take(self, folder: Path) -> bool:
        """Take the lock of a folder unless another process, or another Locks of this one, has it. Returns whether it
        was taken."""
        path = lock_file(folder)
        process = {"host": socket.gethostname(), "pid": os.getpid(), "token": _token(os.getpid())}
        with raise_unwritable(path), ExitStack() as stack:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab+"))
            try:
                locked = lock_descriptor(file.fileno(), blocking=False)
            except OSError as error:
                locked = self.optional and error.errno in NO_LOCKS
                if not locked:
                    raise
            if locked:
                drop_partials(path.parent, holder_file(folder).name)
                write_json(holder_file(folder), process)
                self._held[folder] = stack.pop_all()
        return locked

    def release(self, folder: Path) -> None:
        """Release the lock of a folder if it is held here."""
        if folder in self._held:
            self._held.pop(folder).close()


def check_owner(folder: Path) -> None:
    """Lost if the last process that took the lock of a folder is another one. A folder that nobody has ever locked
    passes, as when an Experiment is used by itself."""
    process = read_json(holder_file(folder))
    if process and process.get("token") != _token(os.getpid()):
        raise Lost(f"{holder(folder)} has taken over the run in {folder}: this process stops training it")


def holder(folder: Path) -> str:
    """The process that has the lock of a folder, or had it last, as `process 4711 on node03`."""
    process = read_json(holder_file(folder))
    return f"process {process.get('pid')} on {process.get('host')}" if process else "another process"


def held_by(folder: Path, pids: Collection[int]) -> bool:
    """Whether one of these processes of this machine has the lock of a folder, or had it last."""
    process = read_json(holder_file(folder))
    return process.get("host") == socket.gethostname() and process.get("pid") in pids


def is_held(folder: Path) -> bool:
    """Whether a process has the lock of a folder at this moment."""
    try:
        with lock_file(folder).open("rb+") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


def lock_file(folder: Path) -> Path:
    """The file that is locked for a folder."""
    return folder.with_name(f"{folder.name}.lock")


def holder_file(folder: Path) -> Path:
    """The file that names the holder of a folder's lock."""
    return folder.with_name(f"{folder.name}.holder")


def check_locks(root: Path, optional: bool) -> str:
    """A warning if there are no locks under `root`, or if they hold on one machine only; otherwise empty. RecordError
    if there are none and they are not `optional`."""
    with raise_unwritable(root):
        root.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=root) as file:
                lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            problem = f"the file system of {root.resolve()} has no locks ({error.strerror})"
            if not optional:
                raise RecordError(f"{problem}, which several processes need to share the work: use --jobs 1") from None
            return f"warning: {problem}: nothing keeps a second command from writing the same runs"
    if option := _local(root.resolve(), Path("/proc/mounts")):
        where = f"the file system of {root.resolve()} is mounted with {option}"
        return f"warning: {where}: locks hold on one machine only, nothing keeps other machines from the same runs"
    return ""


def _local(root: Path, mounts: Path) -> str:
    """The mount option by which locks under `root` do not reach the file server, if any is known."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:  # Linux alone has it
        return ""
    options_by_folder: dict[Path, str] = {}  # a later mount hides an earlier one
    for _, folder, _, options, *_ in map(str.split, lines):
        options_by_folder[Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), folder))] = options
    options = next((options_by_folder[path] for path in (root, *root.parents) if path in options_by_folder), "")
    return next((option for option in LOCAL if option in options.split(",")), "")


@cache
def _token(pid: int) -> str:
    """A random name of this process, since other processes, here or on a host of the same name, may have its number."""
    return uuid.uuid4().hex
