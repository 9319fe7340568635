"""--jobs: the loop of work in several processes of this machine beside each other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue as queues
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

import torch
import torch.multiprocessing  # teaches pickle to share tensors between processes

from lth.commands import loop
from lth.commands.loop import FATAL, POLL, Data, Tell, Trainer, WorkerKilled, next_look
from lth.commands.queue import Queue, Work
from lth.records.events import Note
from lth.records.lock import Locks
from lth.records.tables import Run

KILLED = "a worker process was killed, by lack of memory perhaps (--jobs lowers the need)"


@dataclass(frozen=True)
class Ended:
    """The last word of a process: the runs that ended early, with the reason, and what was raised."""

    failed: Mapping[Run, str]
    errors: Sequence[Exception]


def work(
    size: int,
    threads: int,
    works: Sequence[Work],
    data: Data,
    queue: Queue,
    tell: Tell,
    signalled: Callable[[], int],
) -> None:
    """The loop in `size` processes, of so many threads each; `queue` looks on. Raises what stopped it, or in the end
    what pieces raised."""
    for _, images in data.values():
        for tensor in images.tensors():
            tensor.share_memory_()
    context = multiprocessing.get_context("spawn")
    links: dict[Any, int] = {}  # the connections to the processes, whose numbers these are
    idle: dict[Any, bool] = {}
    errors: list[Exception] = []
    with _undisturbed(threads):
        for _ in range(size):
            link, theirs = context.Pipe()
            process = context.Process(target=_loop, args=(theirs, works, data, queue.before))
            process.start()
            theirs.close()
            links[link], idle[link] = process.pid or 0, False
    ours, asked, waited, due = list(links.values()), False, False, 0.0

    def hear() -> None:
        """Tell what the processes told."""
        link: Any
        for link in wait(list(links), POLL):
            try:
                said = link.recv()
            except (EOFError, OSError):
                said = Ended({}, [WorkerKilled(KILLED)])
            if isinstance(said, Ended):
                del links[link], idle[link]
                queue.failed.update(said.failed)
                errors.extend(said.errors)
                link.close()
            elif isinstance(said, bool):
                idle[link] = said
            else:
                for event in queue.hear(said):
                    tell(event)

    try:
        while links:
            hear()
            if asked:
                continue
            if signalled():
                tell(Note("stopping: each process first writes where its round is"))
            if signalled() or any(isinstance(error, FATAL) for error in errors):
                asked = True
                for link in links:
                    with contextlib.suppress(OSError):  # it has ended
                        link.send("write your checkpoints and end")
            elif (began := time.monotonic()) >= due:
                for event in queue.news(ours):
                    tell(event)
                everyone = all(idle.values()) and not queue.over()
                if everyone and not waited and (sentence := queue.waiting_for()):
                    tell(Note(sentence))
                waited, due = everyone, next_look(began)
    finally:  # at a second Ctrl-C the connections are closed, and the processes end at once
        for link in links:
            link.close()
    loop.finish(errors, signalled)


@contextmanager
def _undisturbed(threads: int) -> Iterator[None]:
    """Start processes of so many threads in which Ctrl-C is left to the parent from their first moment on, and which do
    not import the program that started them: a script without `if __name__ == "__main__"` would begin anew there."""
    program, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read when a child loads torch
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    masks = hasattr(signal, "pthread_sigmask")  # Windows has none
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
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


def _loop(link: Connection, works: Sequence[Work], data: Data, before: Mapping[Run, int]) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a scheduler sends it to all
    asked, outbox = threading.Event(), queues.SimpleQueue[Any]()

    def obey() -> None:
        """Stop when asked to; end at once when the parent is gone."""
        with contextlib.suppress(EOFError, OSError):
            while link.recv():
                asked.set()
        os._exit(1)

    def send() -> None:
        for said in iter(outbox.get, None):
            link.send(said)

    threading.Thread(target=obey, daemon=True).start()
    sender = threading.Thread(target=send, daemon=True)  # training does not wait for a terminal that is held up
    sender.start()
    errors: list[Exception] = []
    with Locks() as locks:
        queue = Queue(works, locks, before)
        trainer = Trainer(data, torch.device("cpu"), outbox.put, asked.is_set)
        try:
            errors = loop.work(queue, trainer.train, outbox.put, asked.is_set, outbox.put)
        except Exception as error:
            errors = [error]
    outbox.put(Ended(queue.failed, [loop.portable(error) for error in errors]))
    outbox.put(None)
    sender.join()
