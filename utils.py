"""What main.py and combine_plots.py share: exit codes, the pictures and the verdict at the end."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lth.run.terminal import wrapped
from lth.settings.config import ConfigError

if TYPE_CHECKING:
    from lth.records.tables import Run


def exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a program; turn what it raises into one message and the exit code: 2 for bad input, 1 for a failure, 130 and
    143 for Ctrl-C and SIGTERM. Tracebacks only with --debug."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone, as in `main.py | head`
        sys.stderr.close()
        return 1
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, ConfigError):
            _complain("\n".join(f"error: {problem}" for problem in error.problems))
            return 2
        signum = getattr(error, "signum", None)
        if signum:
            _complain(f"stopped by {error}: finished rounds are kept, the same command goes on from here")
            return 128 + signum
        ours = type(error).__module__.startswith("lth.")
        kind = "" if ours else f"{type(error).__name__}: "
        _complain(f"error: {kind}{error}{'' if ours else ' (--debug shows where)'}")
        return 1


def _complain(text: str) -> None:
    print(wrapped(text, sys.stderr), file=sys.stderr)


def up_to_date(runs: Sequence[Run], format: str) -> bool:
    """Whether the figures of these runs have been drawn since their last round."""
    tables = [run.dumps / "rounds.csv" for run in runs]
    curves = [run.plots / f"comparison.{format}" for run in runs[:1]]
    if not curves or not curves[0].exists() or not (runs[0].plots / "verdict.csv").exists():
        return False
    return curves[0].stat().st_mtime > max(table.stat().st_mtime for table in tables)


def conclude(runs: Sequence[Run], format: str, quiet: bool = False) -> list[Path]:
    """Draw the figures of runs of one model, data set and settings, print the verdict and the files written. Nothing,
    where another process is just doing so."""
    from lth.records.lock import Locked, Locks

    with Locks() as locks:
        try:
            locks.take(runs[0].plots)
        except Locked:
            print(f"another process is drawing the figures: {runs[0].plots}")
            return []
        return _conclude(runs, format, quiet)


def _conclude(runs: Sequence[Run], format: str, quiet: bool) -> list[Path]:
    from lth.plots import curves
    from lth.records import labels, verdict

    folder = runs[0].plots
    table = verdict.table(runs)
    written = curves.draw_all(runs, folder, format, lambda problem: print(f"warning: {problem}", file=sys.stderr))
    written.append(verdict.write(table, folder))
    if not quiet:
        print(wrapped(f"\n{labels.title(runs[0])}: {labels.settings(runs[0])}\n", sys.stdout))
        print(verdict.render(table, shutil.get_terminal_size((100, 24)).columns))
    print(wrapped(verdict.sentence(table), sys.stdout))
    print("\n".join(["", "written:", *(f"  {path}" for path in written)]))
    return written
