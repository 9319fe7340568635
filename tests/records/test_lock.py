"""One process per run: refused while the holder lives, and let in the moment it is gone."""

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Patch, assert_released, assert_same, do, experiment, held, results, settings

from lth.commands import session
from lth.experiment.trainer import Evaluated, Event
from lth.records import files, journal, lock
from lth.records.files import RecordError
from lth.records.lock import Locked, Locks, Lost
from lth.records.tables import runs_of
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


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of seed0."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "seed0")]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def take(folder: Path) -> Locks:
    locks = Locks()
    locks.take(folder)
    return locks


def test_a_second_process_is_refused_and_let_in_afterwards(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    folder = tmp_path / "seed0"
    with pytest.raises(Locked, match=f"seed0 is in use by process {holder.pid} on {socket.gethostname()}") as caught:
        take(folder)
    assert "\n" not in str(caught.value) and lock.is_held(folder)
    holder.kill()
    holder.communicate()
    assert not lock.is_held(folder)
    with Locks() as locks:
        locks.take(folder)
        assert lock.is_held(folder) and lock.holder(folder) == f"process {os.getpid()} on {socket.gethostname()}"
        assert not Locks().try_take(folder), "two commands in one process"
    assert not lock.is_held(folder)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["seed0.holder", "seed0.lock"]


def test_who_only_looks_keeps_nobody_out(tmp_path: Path, monkeypatch: Patch) -> None:
    take(tmp_path / "seed0").release(tmp_path / "seed0")
    descriptor = os.open(lock.lock_file(tmp_path / "seed0"), os.O_RDWR)
    lock.lock_descriptor(descriptor)
    threading.Timer(0.2, os.close, [descriptor]).start()
    assert lock.is_held(tmp_path / "seed0")
    take(tmp_path / "seed0")


def test_a_session_refuses_runs_that_are_locked_and_writes_nothing(place: Path) -> None:
    config = settings(place, prune_type=("lt", "reinit"), trials=2)
    with held(runs_of(config)[-1].dumps), pytest.raises(Locked, match="reinit/seed1 is in use by process 77 on else"):
        session.run(config)
    assert not list(place.rglob("rounds.csv")) and not list(place.rglob("config.json"))
    assert_released(place)


def test_the_last_to_take_the_lock_may_write_the_journal(tmp_path: Path) -> None:
    folder = tmp_path / "seed0"
    lock.check_owner(folder)  # nobody has ever taken it
    locks = take(folder)
    lock.check_owner(folder)
    locks.release(folder)
    lock.check_owner(folder)
    with held(folder), pytest.raises(Lost, match=r"process 77 on elsewhere has taken over the run in .*seed0: this"):
        lock.check_owner(folder)
    with pytest.raises(Lost):  # though it is free again: the other may have finished rounds
        lock.check_owner(folder)


def test_who_has_lost_the_lock_adds_no_round_and_the_next_holder_continues(place: Path) -> None:
    config = settings(place, checkpoint_every=0)
    (run,) = runs_of(config)
    locks = take(run.dumps)
    count, before = [0], dict[str, bytes]()

    def tell(event: Event) -> None:
        count[0] += isinstance(event, Evaluated)
        if isinstance(event, Evaluated) and count[0] == 4:  # the end of the second round
            files.write_json(lock.holder_file(run.dumps), {"host": "elsewhere", "pid": 77, "token": "another's"})
            before.update({file.name: file.read_bytes() for file in run.dumps.glob(journal.NAME)})

    with pytest.raises(Lost, match="process 77 on elsewhere has taken over the run"):
        experiment(config, tell).run([run], 3)
    assert {file.name: file.read_bytes() for file in run.dumps.glob(journal.NAME)} == before
    (run.saves / "left.csv.1.partial").write_text("by the one that was stopped")
    locks.release(run.dumps)
    take(run.dumps)
    experiment(config).run([run], 3)
    assert not list(place.rglob("*.partial"))
    found = results(place)
    do(settings(place, root=place / "undisturbed"))
    assert_same(found, results(place / "undisturbed"))


def without(error: int) -> Callable[..., bool]:
    def refuse(descriptor: int, blocking: bool) -> bool:
        raise OSError(error, os.strerror(error))

    return refuse


def test_storage_without_locks_serves_one_process(tmp_path: Path, monkeypatch: Patch) -> None:
    assert lock.check_locks(tmp_path / "new", optional=False) == "" and list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new").rmdir()
    monkeypatch.setattr(lock, "lock_descriptor", without(errno.EIO))  # a disk that fails is another matter
    for use in (
        lambda: lock.check_locks(tmp_path, optional=True),
        lambda: Locks(optional=True).take(tmp_path / "seed0"),
    ):
        with pytest.raises(RecordError, match="cannot write"):
            use()
    (tmp_path / "seed0.lock").unlink()
    monkeypatch.setattr(lock, "lock_descriptor", without(errno.ENOLCK))
    with pytest.raises(RecordError, match=rf"file system of {tmp_path} has no locks \(.*\), which several processes"):
        lock.check_locks(tmp_path, optional=False)
    assert f"the file system of {tmp_path} has no locks" in lock.check_locks(tmp_path, optional=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RecordError, match="cannot write"):
        Locks().take(tmp_path / "seed0")
    Locks(optional=True).take(tmp_path / "seed0")


def test_mounts_whose_locks_hold_on_one_machine_are_named(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(
        "/dev/sda1 / ext4 rw,relatime 0 0\nserver:/data /data nfs rw,vers=3,nolock,soft 0 0\n"
        "/dev/sdb1 /data/fast ext4 rw 0 0\nx@o2ib:/l /lustre/my\\040group lustre rw,localflock 0 0\n"
        "server:/a /nfs4 nfs4 rw,local_lock=flock 0 0\nserver:/b /nfs4/posix nfs4 rw,local_lock=posix 0 0\n"
    )
    for root, option in {
        **{"/data/runs": "nolock", "/data/fast/x": "", "/lustre/my group/a": "localflock", "/": ""},
        **{"/nfs4/a": "local_lock=flock", "/nfs4/posix": ""},
    }.items():
        assert lock._local(Path(root), tmp_path / "mounts") == option, root
    assert lock._local(Path("/data/runs"), tmp_path / "none") == ""
