"""What config.json tells of a run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import do, settings

from lth.commands import session
from lth.commands.holding import commit
from lth.settings.config import ConfigError


def told(run: Any) -> dict[str, Any]:
    return json.loads((run.dumps / "config.json").read_text())


def test_the_commit_says_when_files_are_not_as_it_has_them(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    assert commit(tmp_path) is None
    git("init")
    (tmp_path / "net.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit(tmp_path)
    assert clean is not None and len(clean) == 40
    (tmp_path / "net.py").write_text("2")
    assert commit(tmp_path) == f"{clean} with uncommitted changes"


def test_the_split_of_a_small_set_is_recorded_and_its_run_repeated(place: Path) -> None:
    (run,) = session.run(settings(place, valid_size=None, prune_iterations=1))
    assert run.settings == settings(place, valid_size=5000).folder(), "nothing in its name: it is the default"
    found = told(run)
    assert found["deciding"]["valid_size"] == "12" and found["settings"]["valid_size"] is None
    assert found["settings"]["data"] == str(place / "data")
    explicit = settings(place, valid_size=12, prune_iterations=1, root=place / "explicit")
    (other,) = do(explicit)
    assert (run.dumps / "evals.csv").read_bytes() == (other.dumps / "evals.csv").read_bytes()
    (again,) = session.run(settings(place, valid_size=None, prune_iterations=2))
    assert again == run
    with pytest.raises(ConfigError, match=r"holds results of other settings \(valid_size 12, now 5000\)"):
        session.run(settings(place, valid_size=5000, prune_iterations=2))
