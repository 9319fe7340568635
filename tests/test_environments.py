"""The other ways to an environment name the same job and the same packages as the README."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from lth.settings import flags

PROJECT = Path(__file__).parents[1]


def test_the_main_job_is_one_in_the_readme_for_windows_and_in_docker() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    posix, powershell = (
        shlex.split(job) for job in re.findall(r"python main\.py (--prune_type lt reinit.*)", readme)[:2]
    )
    docker = (PROJECT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    words = json.loads(re.search(r"^CMD (\[.*\])$", docker, re.MULTILINE)[1])  # type: ignore[index]
    assert posix == powershell == words and flags.parse(words).trials == 2
    environment = (PROJECT / "environment.yml").read_text(encoding="utf-8")
    assert "name: lottery-ticket\n" in environment and "-r requirements.txt\n" in environment
