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
    import pandas as pd

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


def conclude(runs: Sequence[Run], format: str, quiet: bool = False, about: str = "") -> list[Path]:
    """Draw the figures of runs of one model, data set and settings and write their verdict, unless both are there
    already or another process is just doing so, and print it; `about` heads every sentence where verdicts of others
    stand beside it. Gives what it has written."""
    from lth.plots import draw
    from lth.records import labels, printed, sentences, verdict

    folder = runs[0].plots
    table = verdict.table(runs)
    figures = draw.up_to_date(runs, folder, format)
    current = figures is not None and (folder / "verdict.csv").is_file()
    written = [] if current else _draw(runs, format, table)
    if not quiet:
        print(wrapped(f"\n{labels.title(runs[0])}: {labels.settings(runs[0])}\n", sys.stdout))
        print(f"{printed.render(table, shutil.get_terminal_size((100, 24)).columns)}\n")
    for sentence in sentences.sentences(table):
        print(wrapped(f"{about}: {sentence}" if about else sentence, sys.stdout))
    if current:
        print("\n".join(["", "up to date:", *(f"  {path}" for path in [*(figures or []), folder / "verdict.csv"])]))
    elif written:
        print("\n".join(["", "written:", *(f"  {path}" for path in written)]))
    else:
        print(f"\nanother process is drawing the figures: {folder}")
    return written


def _draw(runs: Sequence[Run], format: str, table: pd.DataFrame) -> list[Path]:
    """The figures and verdict.csv; nothing where another process is at them."""
    from lth.plots import draw
    from lth.records import verdict
    from lth.records.lock import Locked, Locks

    folder = runs[0].plots
    with Locks() as locks:
        try:
            locks.take(folder)
        except Locked:
            return []
        figures = draw.draw_all(runs, folder, format, lambda problem: _complain(f"warning: {problem}"))
        return [*figures, verdict.write(table, folder)]


def side_by_side(groups: Sequence[Sequence[Run]], folder: Path, format: str) -> None:
    """Draw runs of several models, data sets and settings in one figure, unless it is there already."""
    from lth.plots import draw

    runs = [run for group in groups for run in group]
    written = draw.up_to_date(runs, folder, format)
    if written is None:
        from lth.plots.grid import grid

        source = draw.fingerprint(runs)
        written = grid(groups, folder, format)
        draw.record(folder, format, source, written)
    print("\n".join(f"  {path}" for path in written))
