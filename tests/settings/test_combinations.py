"""--sweep on the command line: every combination, all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lth.settings import flags
from lth.settings.config import ConfigError
from lth.settings.values import Duration


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        flags.experiments(text.split())
    return list(caught.value.problems)


def test_every_combination_is_an_experiment() -> None:
    text = "--trials 2 --lr 5 --sweep lr=1.2e-3,1e-4 arch_type=fc1,lenet5 --epochs 3"
    found = flags.experiments(text.split())
    assert [(config.lr, config.arch_type, config.trials, config.end_iter) for config in found] == [
        (lr, arch, 2, Duration(3)) for lr in (1.2e-3, 1e-4) for arch in ("fc1", "lenet5")
    ]
    labels = ["lr=1.2e-3 fc1", "lr=1.2e-3 lenet5", "lr=1e-4 fc1", "lr=1e-4 lenet5"]
    assert [flags.label(texts) for texts in found.values()] == labels
    found = flags.experiments(["--preset", "lenet", "--sweep", "lr=0.1,0.2"])
    assert [config.lr for config in found] == [0.1, 0.2] and {config.prune_percent for config in found} == {20}
    found = flags.experiments(
        ["--sweep", "bs=60,100", "lr_milestones=1ep+50%,2ep", "augment=true,False", "rewind=0,500it", "seed=3,7"]
    )
    first, *_, last = found
    assert len(found) == 32 and found[last]["batch_size"] == "100" and last.seed == 7
    assert (first.lr_milestones, first.augment) == ((Duration(1), Duration(50, "%")), True)
    assert (last.batch_size, last.lr_milestones, last.augment) == (100, (Duration(2),), False)
    assert last.rewind == Duration(500, "it")


def test_the_number_of_rounds_may_be_swept_where_it_decides_what_each_prunes() -> None:
    for words in (["--target_remaining", "5", "--sweep"], ["--sweep", "target_remaining=5,10"]):
        found = flags.experiments([*words, "prune_iterations=3,6"])
        assert {config.prune_iterations for config in found} == {3, 6}
    assert "give --prune_iterations itself" in problems("--sweep prune_iterations=3,6")[0]


def test_equal_values_and_spellings_are_one() -> None:
    assert [config.lr for config in flags.experiments(["--sweep", "lr=0.1,1e-1,0.10,0.2,0.2"])] == [0.1, 0.2]
    assert [config.arch_type for config in flags.experiments(["--sweep", "arch_type=FC1,fc1"])] == ["fc1"]


def test_tickets_may_have_commas_in_their_names(tmp_path: Path) -> None:
    arms = [tmp_path / "saves" / "fc1" / "mnist" / name / "lt" / "seed0" for name in ("a=1,b=2", "default")]
    for arm in arms:
        arm.mkdir(parents=True)
    found = flags.experiments(["--sweep", f"ticket={arms[0]}:3,{arms[1]}"])
    assert [(config.ticket and config.ticket.folder) for config in found] == arms
    (said,) = problems(f"--sweep ticket={arms[0]},{tmp_path / 'nowhere'}")
    assert "--ticket must be the folder of an existing run" in said and "nowhere" in said


def test_all_mistakes_come_in_one_message() -> None:
    said = problems(
        "--sweep lr=0.1,-1,x arch_type=fc1,fc2 augment=maybe lrr=3 bs= seed prune_type=lt,reinit trials=1,2 root=a,b "
        "lr=5 --jobz 3 --name x --prune_percent 200"
    )
    for sentence in (
        "--sweep lrr is no setting: did you mean lr?",
        "--sweep must be NAME=VALUE,VALUE,..., not 'bs='",
        "--sweep must be NAME=VALUE,VALUE,..., not 'seed'",
        "--sweep prune_type does not change what is trained: give --prune_type itself, once for all",
        "--sweep root does not change what is trained: give --root itself, once for all",
        "--sweep lr is given twice: give all its values at once",
        "--name would give all combinations of --sweep one folder: leave it out",
        "--jobz is no flag of this program: did you mean --jobs?",
        "--augment must be True or False, not 'maybe'",
    ):
        assert said.count(sentence) == 1, (sentence, said)
    assert sum("--prune_percent must be" in sentence for sentence in said) == 1
    (negative,) = [sentence for sentence in said if "not '-1'" in sentence]
    assert (
        negative.startswith("--lr must be a number above 0") and "(with lr=-1 fc1 augment=maybe and 1 more)" in negative
    )
    (unknown,) = [sentence for sentence in said if "'fc2'" in sentence]
    assert unknown.startswith("--arch_type must be a model") and "(with lr=0.1 fc2" in unknown


def test_a_combination_that_cannot_be_is_named() -> None:
    (said,) = problems("--momentum 0.9 --sweep optimizer=sgd,adam")
    assert said == "--momentum belongs to the optimizer sgd, not to adam (with optimizer=adam)"
    with pytest.raises(ConfigError, match="--sweep asks for several experiments, and this is one"):
        flags.parse(["--sweep", "lr=0.1,0.2"])
