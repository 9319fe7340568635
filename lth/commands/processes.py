"""--jobs: the loop of work in several processes of this machine beside each other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.multiprocessing  # teaches pickle to share tensors between processes

from lth.commands import loop
from lth.commands.loop import FATAL, Data, Tell, Trainer, WorkerKilled
from lth.commands.queue import Queue, Work
from lth.commands.watch import POLL, Watch
from lth.records.events import Note
from lth.records.lock import Locks
from lth.records.tables import Run

KILLED = "a worker process was killed, by lack of memory perhaps (--jobs lowers the need)"


class Ended(NamedTuple):
    """The last word of a process: the runs that ended early, with the reason, and what was raised."""

    failed: Mapping[Run, str]
    errors: Sequence[Exception]


def work(
    size: int, threads: int, works: Sequence[Work], data: Data, queue: Queue, tell: Tell, signalled: Callable[[], int]
) -> None:
    """The loop in `size` processes of so many threads each, while this one looks on. Raises what stopped it, or in the
    end what pieces raised."""
    for _, images in data.values():
        for tensor in images.tensors():
            tensor.share_memory_()
    context = multiprocessing.get_context("spawn")
    pids: dict[Any, int] = {}  # of the processes, by the connections to them
    with _undisturbed(threads):
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_loop, args=(theirs, works, data))
            process.start()
            theirs.close()
            pids[ours] = process.pid or 0
    idle, errors, asked = dict.fromkeys(pids, False), list[Exception](), False
    watch = Watch(queue, tell, list(pids.values()))
    try:
        while idle:
            link: Any
            for link in wait(list(idle), POLL):
                try:
                    message = link.recv()
                except (EOFError, OSError):
                    message = Ended({}, [WorkerKilled(KILLED)])
                if isinstance(message, Ended):
                    del idle[link]
                    link.close()
                    queue.failed.update(message.failed)
                    errors.extend(message.errors)
                elif isinstance(message, bool):
                    idle[link] = message
                else:
                    watch.hear(message)
            if asked:
                continue
            if signalled():
                tell(Note("stopping: each process first writes where its round is"))
            if signalled() or any(isinstance(error, FATAL) for error in errors):
                asked = True
                for link in idle:
                    with contextlib.suppress(OSError):  # it has ended
                        link.send("write your checkpoints and end")
            else:
                watch.look(all(idle.values()))
    finally:  # at a second Ctrl-C the connections are closed, and the processes end at once
        for link in idle:
            link.close()
    loop.finish(errors, signalled)


@contextmanager
def _undisturbed(threads: int) -> Iterator[None]:
    """Start processes of so many threads in which Ctrl-C is left to the parent from their first moment on, and which do
    not import the program that started them: a script without `if __name__ == "__main__"` would begin again there."""
    program, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read when a child loads torch
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    masks = hasattr(signal, "pthread_sigmask")  # Windows has none
    if masks:
        resource_tracker.ensure_running()  # which would unblock the signal if the first process started it
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        sys.modules["__main__"] = program
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _loop(link: Connection, works: Sequence[Work], data: Data) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a scheduler sends it to all
    asked = threading.Event()

    def obey() -> None:
        """Stop when asked to; end at once when the parent is gone."""
        with contextlib.suppress(EOFError, OSError):
            while link.recv():
                asked.set()
        os._exit(1)

    threading.Thread(target=obey, daemon=True).start()
    errors: Sequence[BaseException]
    with Locks() as locks:
        queue = Queue(works, locks)
        try:
            errors = loop.work(queue, Trainer(data, torch.device("cpu"), link.send, asked.is_set), link.send)
        except BaseException as error:  # whatever a model raises outside of its training
            errors = [error]
    with contextlib.suppress(OSError):  # the parent is gone
        link.send(Ended(queue.failed, [loop.portable(error) for error in errors]))
