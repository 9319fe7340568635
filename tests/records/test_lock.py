"""One process a run: refused while the holder lives, taken over at once when it is dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from helpers import settings

from lth.records import lock
from lth.records.files import RecordError
from lth.records.lock import Locked, Locks
from lth.run import session
from lth.settings.config import PROJECT

HOLD = """
import sys, time
from pathlib import Path
from lth.records.lock import Locks
with Locks([Path(sys.argv[1])]):
    print("held", flush=True)
    sys.stdin.read()
"""


def held_by_another(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of `folder` until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def put_lock(folder: Path, age: float = 0.0, **changes: object) -> Path:
    """A lock file as this very process would write it, with changes, refreshed `age` seconds ago."""
    file = folder.with_name(f"{folder.name}.lock")
    file.write_text(json.dumps({**lock._whoami(), **changes}))
    when = time.time() - age
    os.utime(file, (when, when))
    return file


def test_a_second_process_is_refused_with_host_and_pid_and_let_in_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "dumps" / "seed0"
    holder = held_by_another(folder)
    with pytest.raises(Locked, match=f"seed0 is in use by process {holder.pid} on {socket.gethostname()}") as caught:
        Locks([folder]).__enter__()
    assert "\n" not in str(caught.value)
    holder.communicate("")
    assert holder.returncode == 0 and not folder.with_name("seed0.lock").exists()
    with Locks([folder]):
        assert json.loads(folder.with_name("seed0.lock").read_text())["pid"] == os.getpid()
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path, reaped: bool) -> None:
    holder = held_by_another(tmp_path / "seed0")
    holder.kill()
    if reaped:
        holder.wait()
    else:
        while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert (tmp_path / "seed0.lock").exists()
    began = time.monotonic()
    with Locks([tmp_path / "seed0"]):
        assert time.monotonic() - began < 0.5
    holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_number_is_another_process(tmp_path: Path) -> None:
    put_lock(tmp_path / "seed0", started=psutil.Process().create_time() - 5000)
    with Locks([tmp_path / "seed0"]):
        pass
    put_lock(tmp_path / "seed0")
    with pytest.raises(Locked, match=f"process {os.getpid()} on"):
        Locks([tmp_path / "seed0"]).__enter__()


@pytest.mark.parametrize("age, taken", [(0, False), (55, False), (65, True), (10**6, True)])
def test_another_hosts_lock_is_taken_over_after_a_minute_without_refresh(
    tmp_path: Path, age: float, taken: bool
) -> None:
    put_lock(tmp_path / "seed0", age, host="elsewhere", pid=1)
    if taken:
        with Locks([tmp_path / "seed0"]):
            assert json.loads((tmp_path / "seed0.lock").read_text())["host"] == socket.gethostname()
    else:
        with pytest.raises(Locked, match="in use by process 1 on elsewhere"):
            Locks([tmp_path / "seed0"]).__enter__()
        assert (tmp_path / "seed0.lock").exists()


def test_a_long_silent_process_of_this_host_keeps_its_lock(tmp_path: Path) -> None:
    """Suspended, or in a long step: alive is alive."""
    put_lock(tmp_path / "seed0", age=3600)
    with pytest.raises(Locked):
        Locks([tmp_path / "seed0"]).__enter__()


def test_a_clock_that_differs_from_the_file_systems_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_lock(tmp_path / "seed0", host="elsewhere")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 500)
    with pytest.raises(Locked):
        Locks([tmp_path / "seed0"]).__enter__()


def test_locks_are_refreshed_while_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "REFRESH", 0.02)
    with Locks([tmp_path / "a", tmp_path / "b"]):
        for name in ("a.lock", "b.lock"):
            os.utime(tmp_path / name, (0, 0))
        deadline = time.monotonic() + 5
        while any((tmp_path / name).stat().st_mtime == 0 for name in ("a.lock", "b.lock")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == [], "refreshed after its end"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1]", b'{"host": 5}'])
def test_a_lock_without_a_holder_is_taken_over_within_seconds(tmp_path: Path, content: bytes) -> None:
    """Left by a process that died while it wrote it, or by something else."""
    (tmp_path / "seed0.lock").write_bytes(content)
    if content == b'{"host": 5}':
        os.utime(tmp_path / "seed0.lock", (0, 0))
    began = time.monotonic()
    with Locks([tmp_path / "seed0"]):
        assert time.monotonic() - began < 2.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"pid": "x"}, {"pid": None}, {"started": None}, {"started": "x"}])
def test_a_lock_of_this_host_that_names_no_process_is_taken_over(tmp_path: Path, changes: dict[str, object]) -> None:
    put_lock(tmp_path / "seed0", **changes)
    with Locks([tmp_path / "seed0"]):
        pass


def test_all_or_none(tmp_path: Path) -> None:
    put_lock(tmp_path / "b")
    with pytest.raises(Locked, match=f"{tmp_path / 'b'} is in use"):
        Locks([tmp_path / "a", tmp_path / "b", tmp_path / "c"]).__enter__()
    assert [file.name for file in tmp_path.iterdir()] == ["b.lock"]


def test_an_exception_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Locks([tmp_path / "a"]):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_lost_is_not_taken_from_its_new_holder(tmp_path: Path) -> None:
    with Locks([tmp_path / "a"]):
        file = put_lock(tmp_path / "a", host="elsewhere")
    assert json.loads(file.read_text())["host"] == "elsewhere"


def test_of_many_that_find_it_abandoned_one_takes_it(tmp_path: Path) -> None:
    """Each thread says that it is another process; the lock in their way is that of a dead one."""
    for _ in range(5):
        put_lock(tmp_path / "seed0", pid=2**22 + 1)
        barrier, winners, refused = threading.Barrier(8), list[Locks](), list[Exception]()

        def take(number: int) -> None:
            locks = Locks([tmp_path / "seed0"])
            locks._mine = json.dumps({**lock._whoami(), "number": number})
            barrier.wait()  # noqa: B023
            try:
                winners.append(locks.__enter__())  # noqa: B023
            except RecordError as error:
                refused.append(error)  # noqa: B023

        threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1 and len(refused) == 7, refused
        winners[0].__exit__()
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "dumps").write_text("a file in the folder's place")
    with pytest.raises(RecordError, match=r"cannot write .*seed0\.lock: ") as caught:
        Locks([tmp_path / "dumps" / "seed0"]).__enter__()
    assert "\n" not in str(caught.value)


def test_a_session_holds_the_locks_of_all_its_runs(place: Path) -> None:
    config = settings(place, prune_type=("lt", "reinit"), trials=2)
    folder = place / "dumps/mlp/tiny" / config.folder()
    (folder / "reinit").mkdir(parents=True)
    put_lock(folder / "reinit" / "seed1", host="elsewhere", pid=77)
    with pytest.raises(Locked, match="reinit/seed1 is in use by process 77 on elsewhere"):
        session.run(config)
    assert [file.name for file in place.rglob("*") if file.is_file() and "dumps" in file.parts] == ["seed1.lock"]
