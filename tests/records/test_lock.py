"""One process a run: refused while the holder lives, taken over when it is dead or silent, and that one fenced off."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers import assert_same, do, experiment, put_lock, results, settings

from lth.records import files, lock
from lth.records.events import Evaluated, Event
from lth.records.files import RecordError
from lth.records.lock import LIMIT, Held, Locked, Locks, Lost
from lth.run import session
from lth.run.tasks import runs_of
from lth.settings.config import PROJECT

HOLD = """
import sys
from pathlib import Path
from lth.records.lock import Locks
with Locks() as locks:
    locks.take(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""
WRITE = """
import sys, time
from pathlib import Path
from lth.records import files
from lth.records.lock import Locks, Lost
folder = Path(sys.argv[1])
with Locks(limit=1.5) as locks:
    fence = locks.take(folder)
    print("held", flush=True)
    try:
        while True:
            files.write(folder / "rounds.csv", b"old", fence)
    except Lost as error:
        print(error, flush=True)
"""
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def another(code: str, folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of `folder`."""
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def take(folder: Path) -> Held:
    """The lock of a folder, without signs of life."""
    return Locks().take(folder)


# Who gets it


def test_a_second_process_is_refused_with_host_and_pid_and_let_in_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "dumps" / "seed0"
    holder = another(HOLD, folder)
    with pytest.raises(Locked, match=f"seed0 is in use by process {holder.pid} on {socket.gethostname()}") as caught:
        take(folder)
    assert "\n" not in str(caught.value)
    holder.communicate("")
    assert holder.returncode == 0 and not folder.with_name("seed0.lock").exists()
    with Locks() as locks:
        locks.take(folder)
        assert json.loads(folder.with_name("seed0.lock").read_text())["pid"] == os.getpid()
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path: Path, reaped: bool) -> None:
    holder = another(HOLD, tmp_path / "seed0")
    holder.kill()
    if reaped:
        holder.wait()
    else:
        while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert (tmp_path / "seed0.lock").exists()
    began = time.monotonic()
    with Locks() as locks:
        locks.take(tmp_path / "seed0")
        assert time.monotonic() - began < 0.5
    holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_number_is_another_process(tmp_path: Path) -> None:
    put_lock(tmp_path / "seed0", started=lock.whoami()["started"] - 5000)
    take(tmp_path / "seed0")
    put_lock(tmp_path / "seed0")
    with pytest.raises(Locked, match=f"process {os.getpid()} on"):
        take(tmp_path / "seed0")


@pytest.mark.parametrize("age, taken", [(0, False), (LIMIT - 20, False), (LIMIT + 20, True), (10**6, True)])
@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {}])
def test_another_machines_lock_is_taken_over_after_five_minutes_of_silence(
    tmp_path: Path, age: float, taken: bool, where: dict[str, str]
) -> None:
    """A container of the same host name is another machine: its process numbers are others."""
    put_lock(tmp_path / "seed0", age, place="elsewhere", pid=2**22 + 1, **where)
    if taken:
        assert take(tmp_path / "seed0").number == 2
        assert json.loads((tmp_path / "seed0.lock").read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(Locked, match=f"in use by process {2**22 + 1} on {where.get('host', socket.gethostname())}"):
            take(tmp_path / "seed0")
        assert (tmp_path / "seed0.lock").exists()


def test_a_holder_is_judged_by_what_it_promised(tmp_path: Path) -> None:
    """Else a process with a short limit would rob those with a long one."""
    put_lock(tmp_path / "seed0", age=100, place="elsewhere")
    with pytest.raises(Locked):
        Locks(limit=1).take(tmp_path / "seed0")
    put_lock(tmp_path / "seed0", age=100, place="elsewhere", limit=50)
    Locks(limit=1000).take(tmp_path / "seed0")


def test_a_long_silent_process_of_this_host_keeps_its_lock(tmp_path: Path) -> None:
    """After a laptop's sleep, say: it works on, and gives a sign of life soon."""
    put_lock(tmp_path / "seed0", age=3600)
    with pytest.raises(Locked):
        take(tmp_path / "seed0")


@pytest.mark.parametrize("shift", [500, -500])
def test_a_clock_that_differs_from_the_file_systems_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + shift)
    file = put_lock(tmp_path / "seed0", place="elsewhere")
    os.utime(file, (now, now))
    with pytest.raises(Locked):
        take(tmp_path / "seed0")
    os.utime(file, (now - LIMIT - 20, now - LIMIT - 20))
    take(tmp_path / "seed0")


def test_locks_give_signs_of_life_while_held(tmp_path: Path) -> None:
    with Locks(limit=0.1) as locks:
        for name in ("a", "b"):
            locks.take(tmp_path / name)
            os.utime(tmp_path / f"{name}.lock", (0, 0))
        deadline = time.monotonic() + 5
        while any((tmp_path / name).stat().st_mtime == 0 for name in ("a.lock", "b.lock")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == [], "refreshed after its end"


def test_nobody_gives_signs_of_life_for_another(tmp_path: Path) -> None:
    with Locks(limit=0.1) as locks:
        locks.take(tmp_path / "a")
        file = put_lock(tmp_path / "a", age=1000, place="elsewhere")
        time.sleep(0.1)
        assert time.time() - file.stat().st_mtime > 900
    assert file.exists(), "a lost lock belongs to its new holder"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1]", b'{"host": 5}'])
def test_a_lock_without_a_holder_is_taken_over_within_seconds(tmp_path: Path, content: bytes) -> None:
    """Left by a process that died while it wrote it, or by something else."""
    (tmp_path / "seed0.lock").write_bytes(content)
    began = time.monotonic()
    with Locks() as locks:
        locks.take(tmp_path / "seed0")
        assert time.monotonic() - began < 2.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"pid": "x"}, {"pid": None}, {"started": None}, {"started": "x"}])
def test_a_lock_of_this_host_that_names_no_process_is_taken_over(tmp_path: Path, changes: dict[str, object]) -> None:
    put_lock(tmp_path / "seed0", **changes)
    take(tmp_path / "seed0")


def test_processes_of_one_job_follow_each_other_at_once(tmp_path: Path) -> None:
    """Whatever runs the job says that the earlier one has ended."""
    put_lock(tmp_path / "seed0", place="elsewhere", job="a")
    for job in ("", "b"):
        with pytest.raises(Locked):
            Locks(job=job).take(tmp_path / "seed0")
    Locks(job="a").take(tmp_path / "seed0")
    put_lock(tmp_path / "seed0", place="elsewhere", job="")
    with pytest.raises(Locked):
        Locks(job="").take(tmp_path / "seed0")


def test_a_session_holds_the_locks_of_all_its_runs(place: Path) -> None:
    config = settings(place, prune_type=("lt", "reinit"), trials=2)
    folder = place / "dumps/mlp/tiny" / config.folder()
    (folder / "reinit").mkdir(parents=True)
    put_lock(folder / "reinit" / "seed1", place="elsewhere", host="elsewhere", pid=77)
    with pytest.raises(Locked, match="reinit/seed1 is in use by process 77 on elsewhere"):
        session.run(config)
    assert [file.name for file in place.rglob("*") if file.is_file() and "dumps" in file.parts] == ["seed1.lock"]


def test_an_exception_gives_the_locks_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Locks() as locks:
        locks.take(tmp_path / "a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_beside_a_lock_goes(tmp_path: Path) -> None:
    for name in ("seed0.lock.clearing", "seed0.lock.123.now", f"{'0' * 32}.lock.now", "seed0.lock.1.next"):
        (tmp_path / name).write_text("")
    (tmp_path / "seed01.lock").write_text("another run's")
    put_lock(tmp_path / "seed0", pid=2**22 + 1)
    with Locks() as locks:
        locks.take(tmp_path / "seed0")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["seed0.lock", "seed01.lock"]
    assert [file.name for file in tmp_path.iterdir()] == ["seed01.lock"]


# One of several


def while_taking(monkeypatch: pytest.MonkeyPatch, method: str, then: Callable[[], object]) -> None:
    """Do `then` in the middle of the next taking over, before or after the claim on the abandoned lock is made."""
    inner = getattr(Locks, method)

    def paused(self: Locks, *arguments: object) -> object:
        monkeypatch.setattr(Locks, method, inner)
        result = inner(self, *arguments)
        then()
        return result

    monkeypatch.setattr(Locks, method, paused)


def test_the_slower_of_two_leaves_the_quicker_ones_lock_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It judged the lock abandoned, and another has taken it over since."""
    put_lock(tmp_path / "seed0", pid=2**22 + 1)
    won: list[Held] = []
    while_taking(monkeypatch, "_abandoned", lambda: won.append(take(tmp_path / "seed0")))
    with pytest.raises(Locked):
        take(tmp_path / "seed0")
    won[0].check()


def test_nobody_takes_a_lock_that_is_being_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_lock(tmp_path / "seed0", pid=2**22 + 1)
    monkeypatch.setattr(lock, "TRIES", 3)
    refused: list[str] = []

    def intrude() -> None:
        with pytest.raises(Locked) as caught:
            take(tmp_path / "seed0")
        refused.append(str(caught.value))

    while_taking(monkeypatch, "_create", intrude)
    take(tmp_path / "seed0").check()
    assert "is being taken by another process right now" in refused[0]


def test_the_claim_of_a_process_that_died_in_taking_over_is_no_hindrance(tmp_path: Path) -> None:
    put_lock(tmp_path / "seed0", pid=2**22 + 1)
    claim = put_lock(tmp_path / "seed0", pid=2**22 + 2).rename(tmp_path / "seed0.lock.1.next")
    put_lock(tmp_path / "seed0", pid=2**22 + 1)
    assert take(tmp_path / "seed0").number == 2 and not claim.exists()


def test_a_claim_that_somebody_tidied_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_lock(tmp_path / "seed0", pid=2**22 + 1)
    while_taking(monkeypatch, "_create", lambda: (tmp_path / "seed0.lock.1.next").unlink())
    take(tmp_path / "seed0").check()


def test_of_many_that_find_it_abandoned_one_takes_it(tmp_path: Path) -> None:
    for _ in range(5):
        put_lock(tmp_path / "seed0", pid=2**22 + 1)
        barrier, winners, refused = threading.Barrier(8), list[Held](), list[Exception]()

        def contend() -> None:
            barrier.wait()  # noqa: B023
            try:
                winners.append(take(tmp_path / "seed0"))  # noqa: B023
            except RecordError as error:
                refused.append(error)  # noqa: B023

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1 and len(refused) == 7, refused
        winners[0].check()


# Fenced off


def test_every_holder_has_a_higher_number_than_those_before(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    with Locks() as locks:
        first = locks.take(folder)
        files.write_json(folder / "config.json", {"taken": first.number}, first)
    numbers = [first.number]
    for _ in range(2):  # given back, and taken over
        held = take(folder)
        numbers.append(held.number)
        put_lock(folder, number=held.number, pid=2**22 + 1)
    assert numbers == [1, 2, 3]


def test_two_holders_never_share_a_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the one that wakes would rename what the other has half written."""
    partials: list[str] = []
    inner = Path.replace
    for _ in range(2):
        put_lock(tmp_path / "seed0", number=len(partials) + 1, pid=2**22 + 1)
        fence = take(tmp_path / "seed0")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda self, to: (partials.append(self.name), inner(self, to)))
            files.write(tmp_path / "seed0" / "rounds.csv", b"", fence)
    assert partials == ["rounds.csv.2.partial", "rounds.csv.3.partial"]


def test_what_a_lost_lock_guarded_is_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    fence = take(folder)
    files.write(folder / "a", b"mine", fence)
    put_lock(folder, pid=77, host="elsewhere")
    said = "seed0 is no longer this process's: process 77 on elsewhere has it now"
    for change in (
        lambda: files.write(folder / "a", b"late", fence),
        lambda: files.share(folder / "a", folder / "b", fence),
        lambda: files.delete(folder / "a", fence),
        lambda: files.set_aside(folder / "a", fence),
    ):
        with pytest.raises(Lost, match=said):
            change()
    lock.lock_file(folder).unlink()
    with pytest.raises(Lost, match="its lock is gone"):
        files.write(folder / "a", b"late", fence)
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("a", b"mine")]


def test_a_holder_that_pauses_between_its_last_look_and_the_rename_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "seed0"
    fence, check = take(folder), Held.check

    def taken_over_after(self: Held) -> None:
        monkeypatch.setattr(Held, "check", check)
        self.check()
        put_lock(folder, pid=2**22 + 1)
        late = take(folder)
        files.drop_partials(folder, late)
        files.write(folder / "rounds.csv", b"new", late)

    monkeypatch.setattr(Held, "check", taken_over_after)
    with pytest.raises(Lost, match=f"process {os.getpid()} on {socket.gethostname()} has it now"):
        files.write(folder / "rounds.csv", b"old", fence)
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("rounds.csv", b"new")]


@posix
def test_a_process_that_is_stopped_for_longer_than_the_limit_writes_nothing_when_it_wakes(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    paused = another(WRITE, folder)
    try:
        paused.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        with pytest.raises(Locked):
            take(folder)
        time.sleep(1.6)
        fence = take(folder)
        files.drop_partials(folder, fence)
        files.write(folder / "rounds.csv", b"new", fence)
        paused.send_signal(signal.SIGCONT)
        out, _ = paused.communicate(timeout=20)
    finally:
        paused.kill()
    assert f"process {os.getpid()} on {socket.gethostname()} has it now" in out
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("rounds.csv", b"new")]
    fence.check()


@pytest.mark.parametrize("evaluation", [1, 4])  # within the first round, and at the end of the second
def test_a_run_that_is_taken_over_stops_at_its_next_file_and_its_follower_goes_on(place: Path, evaluation: int) -> None:
    config = settings(place, checkpoint_every=0)
    (run,) = runs_of(config)
    mine = replace(run, fence=take(run.dumps))
    count, before = [0], dict[str, bytes]()

    def tell(event: Event) -> None:
        count[0] += isinstance(event, Evaluated)
        if isinstance(event, Evaluated) and count[0] == evaluation:
            put_lock(run.dumps, host="elsewhere", place="elsewhere", pid=77)
            before.update(results(place))

    with pytest.raises(Lost, match="process 77 on elsewhere has it now"):
        experiment(config, tell).run([mine], 3)
    assert count[0] == evaluation
    assert_same(results(place), before)
    (run.saves / "left.csv.1.partial").write_text("by the one that was stopped")
    put_lock(run.dumps, pid=2**22 + 1)
    experiment(config).run([replace(run, fence=take(run.dumps))], 3)
    assert not list(place.rglob("*.partial"))
    do(replace(config, root=place / "undisturbed"))
    found = {name: content for name, content in results(place).items() if not name.startswith("undisturbed")}
    assert_same(found, results(place / "undisturbed"))


# Storage


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "dumps").write_text("a file in the folder's place")
    for use in (lambda: take(tmp_path / "dumps" / "seed0"), lambda: lock.probe(tmp_path / "dumps")):
        with pytest.raises(RecordError, match=r"cannot write .*dumps.*: ") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_storage_that_can_hold_locks_passes_and_keeps_nothing_of_the_probe(tmp_path: Path) -> None:
    lock.probe(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_storage_that_cannot_hold_locks_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = os.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda path, flags, *more: inner(path, flags & ~os.O_EXCL, *more))
        with pytest.raises(RecordError, match=f"the storage of {tmp_path} cannot create a file exclusively, which"):
            lock.probe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, target: target.write_bytes(self.read_bytes()))
        with pytest.raises(RecordError, match="cannot rename a file onto another"):
            lock.probe(tmp_path)
    assert list(tmp_path.iterdir()) == []
