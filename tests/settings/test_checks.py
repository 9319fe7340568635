"""Sentences about flags in the words of other front doors."""

from __future__ import annotations

import pytest

from lth.__main__ import SETTINGS as SHORT
from lth.api.experiment_runner import WORDS as RUNNER
from lth.settings import checks
from lth.settings.config import ConfigError


@pytest.mark.parametrize(
    ("text", "short", "runner"),
    [
        (
            "all are finished: more --prune_iterations or --trials extend them",
            "all are finished: more --rounds extend them",
            "all are finished: more num_rounds extend them",
        ),
        ("take 3 MB (--keep_weights last: less)", "take 3 MB", "take 3 MB (keep_weights last: less)"),
        ("use another --name, or --overwrite", "use another --save", "use another name, or overwrite"),
        ("lower --batch_size or --stack", "lower --batch_size", "lower batch_size or stack"),
        ("by lack of memory (--jobs lowers the need)", "by lack of memory", "by lack of memory (jobs lowers the need)"),
        ("--end_iter is too long", "--iter is too long", "iterations is too long"),
        (
            "nothing there: is its disk there? --overwrite begins anew",
            *(f"nothing there: is its disk there?{end}" for end in ("", " overwrite begins anew")),
        ),
        ("writes it again; or use --overwrite", "writes it again", "writes it again; or use overwrite"),
        (
            "none depend on them, --overwrite trains the run again",
            "none depend on them",
            "none depend on them, overwrite trains the run again",
        ),
        (
            "taken from it here; --overwrite trains both again",
            "taken from it here",
            "taken from it here; overwrite trains both again",
        ),
        ("no flag here", "no flag here", "no flag here"),
    ],
)
def test_a_door_is_told_of_its_own_flags_alone(text: str, short: str, runner: str) -> None:
    assert checks.in_words(text, SHORT) == short and checks.in_words(text, RUNNER) == runner
    error = checks.reworded(RuntimeError(text), SHORT)
    assert isinstance(error, RuntimeError) and str(error) == short


def test_what_several_steps_find_wrong_comes_together() -> None:
    def wrong(*problems: str) -> None:
        raise ConfigError(*problems)

    assert checks.together(lambda: 1, lambda: 2) == (1, 2)
    with pytest.raises(ConfigError) as caught:
        checks.together(lambda: wrong("a"), lambda: 1, lambda: wrong("b", "c"))
    assert caught.value.problems == ("a", "b", "c")
