"""What is wrong with what a user asked for: a setting and a sentence, and the word that was perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

SYNONYMS = {  # settings here, and the words of other programs and libraries for them
    "gpu": "device cuda gpus",
    "lr": "learning_rate learn_rate lrate",
    "jobs": "workers num_workers processes nproc",
    "end_iter": "num_epochs train_epochs epoch iterations iter iters steps",
    "prune_iterations": "rounds num_rounds levels prunings",
    "prune_percent": "prune_rate pruning_rate sparsity amount",
    "arch_type": "model model_name arch net network",
    "batch_size": "batch batchsize train_batch_size",
    "optimizer": "optim opt",
    "weight_decay": "wd l2",
    "root": "out output output_dir save save_dir results_dir logdir",
    "data": "data_dir datadir data_path datasets",
    "trials": "seeds runs repeats repetitions replicates",
    "seed": "trials random_seed manual_seed",
    "recover": "resume restart checkpoint",
    **{f"ticket_{control}": f"lt_{control}" for control in ("reinit", "shuffle", "sign", "shuffled_signs")},
}


class Problem(str):
    """A setting and a sentence that says what is wrong with it: `must be a number above 0, not '-1'`.

    As a string it names the flag of main.py; the other front doors name the setting in their own way.
    """

    setting: str
    sentence: str

    def __new__(cls, setting: str, sentence: str) -> Problem:
        made = super().__new__(cls, f"--{setting} {sentence}")
        made.setting, made.sentence = setting, sentence
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.setting, self.sentence


class ConfigError(ValueError):
    """Settings that cannot be run. `problems` holds each Problem, or a sentence about no setting; the message has a
    line for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def named(self, names: Mapping[str, str]) -> ConfigError:
        """The same problems with the `names` that a front door has for the settings, by default their own."""
        return ConfigError(
            *(f"{names.get(p.setting, p.setting)} {p.sentence}" if isinstance(p, Problem) else p for p in self.problems)
        )


@contextmanager
def collect_errors(problems: list[str]) -> Iterator[None]:
    """Within it, a ConfigError adds its problems to the list."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def nearest(word: str, choices: Iterable[str]) -> str:
    """`: did you mean ...?` with the choice that a mistyped word is nearest to or is a synonym of; else nothing."""
    bare = word.lower().lstrip("-").replace("-", "_")
    known = {choice.lower().lstrip("-"): choice for choice in choices}
    meant = [setting for setting, words in SYNONYMS.items() if setting in known and bare in words.split()]
    meant += difflib.get_close_matches(bare, known, n=1, cutoff=0.65)
    return f": did you mean {known[meant[0]]}?" if meant else ""
