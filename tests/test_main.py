"""main.py from the outside, on real MNIST: through to the figure, stopped by signals and full disks, and taken up."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from helpers import Capture, assert_released, assert_same, results

import main
import utils
from lth.commands import session
from lth.records import tables
from lth.settings import flags
from lth.settings.config import PROJECT

SHORT = "--end_iter 30it --valid_freq 10it --valid_size 500 --prune_iterations 3 --prune_type lt reinit --gpu cpu"
LONG = (  # its last two rounds are sparse
    "--end_iter 150it --valid_freq 50it --valid_size 500 --prune_iterations 4 --prune_percent 60 "
    "--prune_type lt reinit --gpu cpu"
)
Whole = tuple[Path, subprocess.CompletedProcess[str]]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")


def command(root: Path, text: str) -> list[str]:
    return [sys.executable, "main.py", *text.split(), "--root", str(root)]


def done_here(root: Path, text: str) -> None:
    """The same in this process, without figures."""
    session.run(flags.parse([*text.split(), "--jobs", "1", "--quiet", "--root", str(root)]))


def main_here(root: Path, text: str) -> int:
    """The exit code of main.py in this process."""
    return utils.exit_code(main.main, [*text.split(), "--root", str(root)])


def plain(text: str) -> bool:
    """Whether the text has no control characters but line ends."""
    return not re.search(r"[^\x20-\x7e\n\u00a0-\uffff]", text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The main job in small, in two processes: its folder and what it printed."""
    root = tmp_path_factory.mktemp("whole")
    argv = command(root, f"{SHORT} --jobs 2")
    run = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return root, run


def test_the_main_job_ends_with_figures_and_tables(whole: Whole) -> None:
    root, run = whole
    assert plain(run.stdout) and plain(run.stderr) and run.stderr == ""
    assert len(re.findall(r"^(?:lt|reinit) seed0 +\d .*%", run.stdout, re.MULTILINE)) >= 6
    folder, *told = run.stdout.split("written to ")[1].split()
    assert told[0] == "report.html" and {"comparison.png", "verdict.csv"} <= {*told}
    for path in (Path(folder.rstrip(":")) / name for name in told):
        assert path.is_file() and path.stat().st_size > 100
        assert path.suffix != ".png" or path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    runs = tables.find(root)
    assert [str(run) for run in runs] == ["lt seed0", "reinit seed0"]
    for found in runs:
        rounds, layers = tables.table(found, "rounds"), tables.table(found, "layers")
        assert list(rounds.columns[:5]) == ["round", "remaining", "ES", "val", "test"]
        kept = [266200, 239580, 215622]
        assert rounds["weights"].tolist() == kept
        assert rounds["remaining"].tolist() == pytest.approx([100 * n / 266200 for n in kept], abs=1e-4)
        assert layers.query("round == 2")["weights"].tolist() == [190512, 24300, 810]
        assert rounds["test"].min() > 50, "it learned nothing"
        assert tables.table(found, "evals")["iteration"].tolist() == [10, 20, 30] * 3
    assert_released(root)
    assert not list(root.rglob("*.partial"))


def test_jobs_do_not_change_the_numbers(whole: Whole, tmp_path: Path, capsys: Capture) -> None:
    root, _ = whole
    assert main_here(tmp_path / "again", f"{SHORT} --jobs 1 --quiet") == 0
    assert_same(results(tmp_path / "again"), results(root))
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert not any(re.match(r"(lt|reinit) seed0 +\d", line) for line in lines)
    assert any("written to" in line for line in lines) and len(lines) < 15


@contextlib.contextmanager
def running(root: Path, text: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    run = subprocess.Popen(
        command(root, text),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()


def wait_for(what: Callable[[], object], run: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(root: Path) -> int:
    return sum(len(pd.read_csv(file)) for file in root.rglob("rounds.csv"))


@posix
def test_what_stops_a_command_leaves_a_checkpoint_and_no_process(tmp_path: Path) -> None:
    """Ctrl-C (all processes get it), a scheduler's SIGTERM, and a worker killed for its memory, one after the other."""
    root = tmp_path / "stopped"
    for what, code, jobs in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 1), (signal.SIGKILL, 1, 2)):
        before = finished(root)
        with running(root, f"{LONG} --jobs {jobs}") as run:
            wait_for(lambda before=before: finished(root) > before, run)  # type: ignore[misc]
            children = psutil.Process(run.pid).children(recursive=True)
            workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
            if what == signal.SIGINT:
                os.killpg(run.pid, what)
            else:
                (workers[0] if what == signal.SIGKILL else run).send_signal(what)
            out, err = run.communicate(timeout=120)
        assert run.returncode == code and "Traceback" not in err and plain(out + err), err
        if what == signal.SIGKILL:
            assert "a worker process was killed" in err
        else:
            assert f"stopped by {what.name}" in err and "the results so far are in" in err
            assert len(err.splitlines()) == 2
        assert not psutil.wait_procs(children, timeout=5)[1], "children outlive their parent"
        assert_released(root)
        assert list(root.rglob("checkpoint.safetensors")) and finished(root) < 8, "it was stopped too late"
    done_here(root, LONG)
    done_here(tmp_path / "whole", LONG)
    assert_same(results(root), results(tmp_path / "whole"))


@posix
def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    """As in `main.py | head -1`."""
    with running(tmp_path, f"{SHORT} --prune_type lt --prune_iterations 1 --jobs 1") as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.readline()
        run.stdout.close()
        code, err = run.wait(timeout=120), run.stderr.read()
    assert code == 0 and err == "" and list(tmp_path.rglob("report.html"))


def test_failed_trials_are_counted_once(tmp_path: Path, capsys: Capture) -> None:
    text = SHORT.replace("reinit", "reinit ticket_reinit")
    assert main_here(tmp_path, f"{text} --jobs 2 --trials 2 --optimizer sgd --lr 1e30 --quiet") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7 and len(set(said)) == 7 and said[-1].startswith("error: 6 of 6 runs ended early")
    assert any("lt seed1: round 0 ended: the loss became nan by iteration 10 at learning rate 1e+30" in x for x in said)


@posix
def test_a_full_disk_is_one_clear_line_and_the_run_continues_later(tmp_path: Path, capsys: Capture) -> None:
    import resource

    text = f"{SHORT} --prune_type lt --prune_iterations 2 --jobs 1 --checkpoint_every 0 --quiet"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (1_000_000, 1_500_000):  # too little for the initial weights; enough, but too little for a checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            assert main_here(tmp_path, text) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        name = "initial" if size < 1_200_000 else "checkpoint"
        said = rf"error: cannot write .*{name}\.safetensors: File too large; what was finished before is safe\n"
        assert re.fullmatch(said, capsys.readouterr().err)
        assert_released(tmp_path)
        assert not list(tmp_path.rglob("*.partial"))
    done_here(tmp_path, text)
    done_here(tmp_path / "whole", text)
    found = {name: content for name, content in results(tmp_path).items() if not name.startswith("whole")}
    assert_same(found, results(tmp_path / "whole"))


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o500)
    if os.access(root, os.W_OK):  # the administrator may write everywhere but in such places
        root = Path("/proc/1")
        if not root.exists():
            pytest.skip("no folder here is read only for the administrator")
    assert main_here(root, f"{SHORT} --dry_run") == 2
    assert re.search(r"^error: --root must be a folder that can be written, not", capsys.readouterr().err)
    assert main_here(root, SHORT) == 1
    assert re.search(r"^error: cannot write .*: .*; what was finished before is safe$", capsys.readouterr().err)
