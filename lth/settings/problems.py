"""What is wrong with what a user asked for: a setting and a sentence, and the word that was perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

SYNONYMS = {  # words of other programs and libraries for settings here; only those that a front door has are suggested
    **dict.fromkeys(("device", "cuda", "gpus"), "gpu"),
    **dict.fromkeys(("learning_rate", "learn_rate", "lrate"), "lr"),
    **dict.fromkeys(("workers", "num_workers", "processes", "nproc"), "jobs"),
    **dict.fromkeys(("num_epochs", "train_epochs", "epoch", "iterations", "iter", "iters", "steps"), "end_iter"),
    **dict.fromkeys(("rounds", "num_rounds", "levels", "prunings"), "prune_iterations"),
    **dict.fromkeys(("prune_rate", "pruning_rate", "sparsity", "amount"), "prune_percent"),
    **dict.fromkeys(("model", "model_name", "arch", "net", "network"), "arch_type"),
    **dict.fromkeys(("batch", "batchsize", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("wd", "l2"), "weight_decay"),
    **dict.fromkeys(("out", "output", "output_dir", "save", "save_dir", "results_dir", "logdir"), "root"),
    **dict.fromkeys(("data_dir", "datadir", "data_path", "datasets"), "data"),
    **dict.fromkeys(("seeds", "runs", "repeats", "repetitions", "replicates"), "trials"),
    **dict.fromkeys(("trials", "random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("resume", "restart", "checkpoint"), "recover"),
    "lt_reinit": "ticket_reinit",
    "lt_shuffle": "ticket_shuffle",
    "lt_sign": "ticket_sign",
    "lt_shuffled_signs": "ticket_shuffled_signs",
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
        """The same problems in the words of a front door: `names` has its names of settings, by default their own."""
        return ConfigError(
            *(
                f"{names.get(problem.setting, problem.setting)} {problem.sentence}"
                if isinstance(problem, Problem)
                else problem
                for problem in self.problems
            )
        )


def nearest(word: str, choices: Iterable[str]) -> str:
    """`: did you mean ...?` with the choice that a mistyped word is nearest to or is a synonym of; else nothing."""
    bare = word.lower().lstrip("-").replace("-", "_")
    known = {choice.lower().lstrip("-"): choice for choice in choices}
    close = difflib.get_close_matches(bare, known, n=1, cutoff=0.65)
    meant = known.get(SYNONYMS.get(bare, ""), known[close[0]] if close else "")
    return f": did you mean {meant}?" if meant else ""
