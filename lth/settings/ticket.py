"""The saved ticket that --ticket names: a run's folder, and a round."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


def written(folder: Path) -> Path:
    """The absolute path of a folder of results. Links are resolved unless dumps/ or saves/ itself is one (to another
    disk, say), whose target need not be beside the other."""
    here, there = Path(os.path.normpath(folder.absolute())), folder.resolve()
    return here if {"dumps", "saves"} & {*here.parts[-6:]} and here.resolve() == there else there


@dataclass(frozen=True)
class TicketName:
    """`RUN` or `RUN:ROUND`; without a round the last finished one.

    folder: of a run, <root>/saves/<model>/<data>/<settings>/<arm>/seed<k>, or of an arm, without seed<k>; or the same
        under dumps/.
    """

    folder: Path
    round: int | None = None

    @classmethod
    def parse(cls, text: str) -> TicketName:
        """What `text` names; ValueError if there is no such folder."""
        folder, round = re.fullmatch(r"(.*?)(?::(\d{1,6}))?", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
        try:
            made = cls(written(Path(folder)), int(round) if round else None)
            there = bool(folder) and made.folder.is_dir() and bool(made._parts)
        except (OSError, RuntimeError, ValueError):  # too long a name, links in a circle, a zero byte
            there = False
        if not there:
            raise ValueError(
                "must be the folder of an existing run, saves/<model>/<data>/<settings>/<arm>/seed<k>, or of its arm, "
                "and may end in :ROUND"
            )
        return made

    @property
    def _parts(self) -> tuple[str, ...]:
        """The 4 folders of an arm, or 5 of a run, that follow dumps/ or saves/."""
        parts = self.folder.parts
        return next((parts[-n:] for n in (4, 5) if len(parts) > n and parts[-n - 1] in ("dumps", "saves")), ())

    @property
    def name(self) -> str:
        """What the ticket is called wherever its files lie: `fc1/mnist/default/lt/seed0:7`."""
        return "/".join(self._parts) + (f":{self.round}" if self.round is not None else "")

    def __str__(self) -> str:
        return str(self.folder) + (f":{self.round}" if self.round is not None else "")
