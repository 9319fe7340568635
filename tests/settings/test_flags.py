"""The command line: durations, presets, folder names, --config, --sweep, and mistakes, all in one message."""

import dataclasses
import json
import os
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import Capture, Mlp, Patch

import main
import utils
from lth.commands import forecast
from lth.commands.prepare import json_settings
from lth.settings import VERSION
from lth.settings.arms import ARMS, CONTROLS, CRITERIA
from lth.settings.config import PROJECT, Config, ConfigError
from lth.settings.flags import FIELDS, PRESETS, experiments, label, parse
from lth.settings.values import Duration
from lth.training.schedule import remarks

# Durations


def test_durations() -> None:
    rows = "5 50 5|5ep 50 5|0.25ep 2 0.25|500it 500 500it|3.0it 3 3it|1% 2 1%|0.1% 1 0.1%|100% 200 100%|0 0 0"
    for text, iterations, shown in (row.split() for row in rows.split("|")):
        found = Duration.parse(text)
        assert str(found) == shown and Duration.parse(str(found)) == found
        assert found.iterations(epoch=10, whole=200) == int(iterations), text
    for text in ("", "it", "5 it", "-5", "1e3", "5.", "nan", "0x5"):
        with pytest.raises(ValueError, match="must be a duration such as 5 or 5ep"):
            Duration.parse(text)
    for text, problem in (("1.5it", "whole number of"), ("101%", "at most 100%"), ("9" * 400 + "it", "at most")):
        with pytest.raises(ValueError, match=problem):
            Duration.parse(text)


SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "augment": True, "prune_scope": "global"}
ADAM = {"optimizer": "adam", "weight_decay": 0.0, "augment": False, "prune_scope": "layer", "lr_milestones": ()}
TABLE: dict[str, tuple[dict[str, Any], str]] = {  # and percents of convolutions, hidden and output layers
    "lenet": (ADAM, "fc1 mnist 50000it 60 0.0012 20 20 10"),
    "conv2": (ADAM, "conv2 cifar10 20000it 60 0.0002 10 20 10"),
    "conv4": (ADAM, "conv4 cifar10 25000it 60 0.0003 10 20 10"),
    "conv6": (ADAM, "conv6 cifar10 30000it 60 0.0003 15 20 10"),
    "resnet18": (SGD, "resnet20 cifar10 30000it 128 0.1 20 20 0 20000it 25000it"),
    "vgg19": (SGD, "vgg19 cifar10 112000it 64 0.1 20 20 0 56000it 84000it"),
}


def test_presets_are_the_papers_table() -> None:
    """Figure 2 of arXiv:1803.03635."""
    assert set(PRESETS) == set(TABLE)
    for name, (common, row) in TABLE.items():
        config = parse(["--preset", name])
        own = [config.arch_type, config.dataset, config.end_iter, config.batch_size, config.lr]
        rates = [f"{rate:g}" for rate in config.rates().values()]
        assert " ".join(map(str, [*own, *rates, *config.lr_milestones])) == row
        assert {key: getattr(config, key) for key in common} == common
        assert (str(config.valid_freq), str(config.test_freq)) == ("100it", "500it")
        assert (config.lr_gamma, config.init) == (0.1, "glorot")
        assert config.pixels == ("unit" if name == "lenet" else "standard")
        assert 33 in parse(["--preset", name, "--prune_percent", "33"]).rates().values(), (
            "its other rates hide the flag"
        )


def test_any_flag_beside_a_preset_wins() -> None:
    expected: dict[str, dict[str, Any]] = {
        "--lr 0.5 --preset lenet": {"lr": 0.5, "batch_size": 60},
        "--preset resnet18 --no-augment --lr_milestones 5ep": {"augment": False, "lr_milestones": (Duration(5),)},
        "--preset lenet --target_remaining 5 --optimizer adamw": {"target_remaining": 5, "output_percent": None},
        "--preset resnet18 --target_remaining 5": {"momentum": 0.9, "target_remaining": 5, "output_percent": None},
        "--preset resnet18 --lr_schedule cosine": {"lr_schedule": "cosine", "lr_milestones": ()},
        "--preset resnet18 --optimizer adam": {"optimizer": "adam", "momentum": 0, "weight_decay": 1e-4},
        "--preset conv6 --prune_pc 0.5 --prune_rounds 1": {"prune_percent": 50, "conv_percent": None},
        "--preset lenet --prune_pc 0.5 --output_percent 10": {"output_percent": 10},
    }
    for argv, values in expected.items():
        config = parse(argv.split())
        assert {key: getattr(config, key) for key in values} == values, argv


def test_the_command_of_the_readme_and_of_those_who_know_such_scripts() -> None:
    known = "--prune_type=lt --arch_type=fc1 --dataset=mnist --prune_percent=10 --prune_iterations=35"
    assert parse(known.split()) == Config()
    readme, docker, conda = (
        (PROJECT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for name in ("README.md", "Dockerfile", "environment.yml")
    )
    posix, powershell = map(shlex.split, re.findall(r"python main\.py (--prune_type lt reinit.*)", readme)[:2])
    (words,) = re.findall(r"(?m)^CMD (\[.*\])$", docker)
    assert posix == powershell == json.loads(words)
    assert "name: lottery-ticket\n" in conda and "-r requirements.txt\n" in conda
    config = parse(posix)
    assert config.prune_type == ("lt", "reinit") and config.end_iter == Duration(5) and config.prune_iterations == 10
    assert config.valid_freq == Duration(300, "it") and config.trials == 2  # so that early stop and its spread are seen


def test_values() -> None:
    argv = "--bs 32 --epochs 7 --gpu 3 --prune-type lt lt reinit --lr_milestones 100it 5ep 90% --rewind=1% --augment"
    more = "--output-percent=0 --optimizer sgd --momentum 0.9 --nesterov --root /some/where --no-prune-embeddings"
    milestones = (Duration(100, "it"), Duration(5), Duration(90, "%"))
    assert parse([*argv.split(), *more.split()]) == Config(
        **{"batch_size": 32, "end_iter": Duration(7), "gpu": "3", "prune_type": ("lt", "reinit"), "augment": True},
        **{"lr_milestones": milestones, "rewind": Duration(1, "%"), "output_percent": 0.0, "optimizer": "sgd"},
        **{"momentum": 0.9, "nesterov": True, "root": Path("/some/where")},
    )


def test_a_fraction_pruned_in_all() -> None:
    for fraction, rounds in ((0.9, 5), (0.5, 1), (0.2, None)):
        config = parse([f"--prune_pc={fraction}", *([f"--prune_rounds={rounds}"] if rounds else [])])
        assert config.prune_iterations == (rounds or 5) + 1
        assert (1 - config.prune_percent / 100) ** (rounds or 5) == pytest.approx(1 - fraction)


def test_folders_are_named_after_what_changes_the_numbers() -> None:
    folders = {
        "": "default",
        "--prune_percent 20 --end_iter 5": "end_iter=5,prune_percent=20",
        "--trials 5 --prune_iterations 12 --jobs 2 --quiet --seed 3 --prune_type reinit --gpu cpu": "default",
        "--target_remaining 5 --prune_iterations 12": "prune_iterations=12,target_remaining=5",
        "--lr_milestones 5 90% --rewind 500it": "lr_milestones=5+90%,rewind=500it",
        "--name mine --lr 5": "mine",
    }
    assert {argv: parse(argv.split()).folder() for argv in folders} == folders


def test_every_setting_that_changes_the_numbers_changes_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "saves" / "fc1" / "mnist" / "default" / "lt" / "seed0"
    run.mkdir(parents=True)
    others = {"TicketName | None": f"{run}:2", "bool": True}
    others |= dict.fromkeys(("Duration", "Duration | None"), Duration(7, "it"))
    others |= dict.fromkeys(("int", "int | None"), 77) | dict.fromkeys(("float", "float | None"), 0.77)
    for spec in dataclasses.fields(Config):
        if spec.metadata.get("changes_numbers", True):
            choices = [c for c in spec.metadata.get("choices", ()) if c != spec.default]
            value = choices[0] if choices else others.get(str(spec.type), (Duration(7, "it"),))
            beside = {"momentum": {"optimizer": "sgd"}, "nesterov": {"optimizer": "sgd", "momentum": 0.9}}
            beside |= {"lr_gamma": {"lr_milestones": ("5",)}}
            config = Config(**{**beside.get(spec.name, {}), spec.name: value})
            assert f"{spec.name}=" in config.folder(), spec.name


def test_a_runs_config_file_repeats_it(tmp_path: Path) -> None:
    for argv in (
        "--preset resnet18 --trials 3 --prune_type lt ticket_reinit --name mine",
        "--lr 0.1234567890123 --rewind 2% --warmup 3it --lr_milestones 1ep 50% --target_remaining 7 --jobs 2 --gpu cpu",
    ):
        config = parse(argv.split())
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"settings": json_settings(config), "versions": {}}))
        assert parse(["--config", str(file)]) == config
        again = parse(["--config", str(file), "--lr", "0.5", "--root", "/else"])
        assert again == dataclasses.replace(config, lr=0.5, root=Path("/else"))


def test_a_config_file_gives_back_the_data_folder(tmp_path: Path) -> None:
    """Other images under the same name gave 70.78% in place of 61.67%, without a word."""
    (tmp_path / "images").mkdir()
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"settings": json_settings(parse(["--data", os.path.relpath(tmp_path / "images")]))}))
    assert parse(["--config", str(file)]).data == tmp_path / "images"
    (tmp_path / "images").rmdir()
    with pytest.raises(ConfigError, match=r"--config .*images, which is no folder here: give --data"):
        parse(["--config", str(file)])
    assert parse(["--config", str(file), "--data", "here"]).data == Path("here")


def test_bad_config_files(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    problems = dict.fromkeys(("", "[]", '{"lr": 0.1}', '{"settings": [1]}', "[" * 100_000), "cannot be read") | {
        '{"settings": {"lrr": 1, "lr": 1}}': "does not know: lrr",
        '{"settings": {"lr": null}}': "--lr must",
        '{"settings": {"prune_type": ["ltt"]}}': "--prune_type must be one of .*did you mean lt",
        '{"settings": {"augment": "yes"}}': "--augment must be True or False",
    }
    for content, problem in {"no file": "cannot be read as the config.json of a run", **problems}.items():
        if content != "no file":
            file.write_bytes(content.encode("latin-1"))
        with pytest.raises(ConfigError, match=problem) as caught:
            parse(["--config", str(file)])
        assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)


ONE: dict[str, str] = {  # of each kind of value one that is too low, too high, of another kind
    "--arch_type resnet81": "--arch_type must be a model of archs/mnist/, .* not 'resnet81': did you mean resnet18?",
    "--dataset mnits": "--dataset must be one of mnist, .*not 'mnits': did you mean mnist?",
    "--dataset data/flowers.npz": "--dataset must be the name alone, flowers, and data the folder",
    "--prune_type ltt": "--prune_type must be one of lt, reinit, .* not 'ltt': did you mean lt?",
    "--prune_type lt_reinit": "--prune_type must be one of .*, or one but lt with _reinit",
    "--preset lennet": "--preset must be one of lenet, .* not 'lennet': did you mean lenet?",
    "--name a/b": "--name must be a plain name",
    "--root file": "--root must be a folder, or a new one, not 'file'",
    "--root file/in": "--root must be a folder, or a new one, not 'file/in'",
    "--ticket nowhere": "--ticket must be the folder of an existing run",
    # flags
    "--prune_percnt 20": "--prune_percnt is no flag of this program: did you mean --prune_percent?",
    "--learning_rate=5": "--learning_rate is no flag of this program: did you mean --lr?",
    "lt": "'lt' does not belong to any flag",
    "--lr": "--lr expected one argument",
    # numbers
    **{f"--prune_percent {text}": "must be a number at least 0, below 100" for text in ("100", "nan")},
    "--target_remaining 0": "--target_remaining must be a number above 0, at most 100, not '0'",
    **{f"--trials {text}": "must be a whole number at least 1, at most 9999" for text in ("0", "2.5")},
    **{f"--lr {text}": "--lr must be a number above 0" for text in ("0", "inf")},
    "--gpu cuda:0": "--gpu must be the number of a GPU, or cpu, or mps",
    # durations
    "--end_iter 0": "--end_iter must be longer than 0, not '0'",
    "--end_iter 5x": "--end_iter must be a duration such as 5 or 5ep .* not '5x'",
    "--end_iter 50%": "--end_iter must be in epochs .5. or iterations .500it., not '50%'",
    # combinations
    "--target_remaining 5 --conv_percent 5 --fc_percent 9": "leave out conv_percent and fc_percent$",
    "--target_remaining 5 --prune_percent 10": "leave out prune_percent$",
    "--target_remaining 5 --prune_iterations 1": "--target_remaining needs at least 2 rounds",
    "--preset resnet18 --optimizer adam --momentum 0.5": "--momentum belongs to the optimizer sgd, not to adam",
    "--optimizer sgd --nesterov": "--nesterov needs a momentum above 0",
    "--lr_gamma 0.5": "--lr_gamma needs lr_milestones",
    "--lr_schedule cosine --lr_milestones 5": "--lr_milestones cannot be given with lr_schedule cosine",
    "--prune_type transfer": "--prune_type transfer needs a ticket",
    "--join --overwrite": "--overwrite cannot be given with join",
    "--ray ray://host:10001": "--ray must be auto, local or the host:port",
    "--ray auto --gpu 1": "--gpu 1 cannot be given with ray",
    # a fraction in all
    **{f"--prune_pc {text}": "--prune_pc must be a number above 0, below 1" for text in ("0", "1")},
    "--prune_rounds 3": "--prune_rounds .* give --prune_pc too",
    "--prune_pc 0.5 --prune_iterations 20 --target_remaining 5": "leave out --prune_iterations --target_remaining$",
    # files
    "--config .": "--config . cannot be read as the config.json of a run",
}


def test_a_mistake_is_one_line_and_touches_no_file(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    for argv, expected in ONE.items():
        assert utils.exit_code(main.main, argv.split()) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: "), (argv, said)
        assert re.search(expected, said.err[len("error: ") : -1]), (argv, said.err)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_all_mistakes_come_in_one_message(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    argv = "--lr 0 --batch_size x --prune_tpe lt --end_iter 5x --momentum 0.9 --arch_type resnet81 --prune_rounds 3"
    assert utils.exit_code(main.main, ["stray", *argv.split(), "--preset", "lennet"]) == 2
    said = capsys.readouterr().err.splitlines()
    expected = ("--lr must", "--batch_size must", "--prune_tpe is no flag", "--end_iter must", "--momentum belongs")
    expected += ("--arch_type must", "--prune_rounds is", "'stray' does not", "--preset must")
    assert len(said) == len(expected)
    assert all(any(line.startswith(f"error: {text}") for line in said) for text in expected)


def test_a_config_made_in_python_gives_the_same_errors_by_its_own_names() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(lr=0, batch_size="x", prune_type=5, end_iter=True, optimizer="adm", nesterov=True)  # type: ignore
    assert len(caught.value.problems) == 6 and "did you mean adam?" in str(caught.value)
    with pytest.raises(ConfigError, match="prune_type needs at least one"):
        Config(prune_type=())
    with pytest.raises(ConfigError) as caught:
        Config(trials=True, end_iter=False, root=None)  # type: ignore[arg-type]
    assert caught.value.problems == (
        "--trials must be a whole number at least 1, at most 9999, not True",
        "--end_iter must be a duration such as 5 or 5ep (epochs), 500it (iterations) or 1% (of a round), not False",
        "--root must be a folder, or a new one, not None",
    )
    assert Config(prune_type="lt", end_iter=5, lr="0.1", root="x") == Config(
        end_iter=Duration(5), lr=0.1, root=Path("x")
    )
    with pytest.raises(ConfigError, match=r"^--prune_percent must be a number") as caught:
        Config(lr=0, prune_percent=200)
    error = ConfigError(*caught.value.problems, "a sentence about --lr").named({"lr": "learning_rate"})
    begun = [problem.split(" must")[0] for problem in pickle.loads(pickle.dumps(error)).problems]
    assert begun == ["prune_percent", "learning_rate", "a sentence about --lr"]


def swept_problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        experiments(text.split())
    return list(caught.value.problems)


def test_every_combination_is_an_experiment() -> None:
    text = "--trials 2 --lr 5 --sweep lr=1.2e-3,1e-4 arch_type=fc1,lenet5 --epochs 3"
    found = experiments(text.split())
    assert [(config.lr, config.arch_type, config.trials, config.end_iter) for config in found] == [
        (lr, arch, 2, Duration(3)) for lr in (1.2e-3, 1e-4) for arch in ("fc1", "lenet5")
    ]
    labels = ["lr=1.2e-3 fc1", "lr=1.2e-3 lenet5", "lr=1e-4 fc1", "lr=1e-4 lenet5"]
    assert [label(texts) for texts in found.values()] == labels
    found = experiments(["--preset", "lenet", "--sweep", "lr=0.1,0.2"])
    assert [config.lr for config in found] == [0.1, 0.2] and {config.prune_percent for config in found} == {20}
    found = experiments(
        ["--sweep", "bs=60,100", "lr_milestones=1ep+50%,2ep", "augment=true,False", "rewind=0,500it", "seed=3,7"]
    )
    first, *_, last = found
    assert len(found) == 32 and found[last]["batch_size"] == "100" and last.seed == 7
    assert (first.lr_milestones, first.augment) == ((Duration(1), Duration(50, "%")), True)
    assert (last.batch_size, last.lr_milestones, last.augment) == (100, (Duration(2),), False)
    assert last.rewind == Duration(500, "it")


def test_the_number_of_rounds_may_be_swept_where_it_decides_what_each_prunes() -> None:
    for words in (["--target_remaining", "5", "--sweep"], ["--sweep", "target_remaining=5,10"]):
        found = experiments([*words, "prune_iterations=3,6"])
        assert {config.prune_iterations for config in found} == {3, 6}
    assert "give --prune_iterations itself" in swept_problems("--sweep prune_iterations=3,6")[0]


def test_equal_values_and_spellings_are_one() -> None:
    assert [config.lr for config in experiments(["--sweep", "lr=0.1,1e-1,0.10,0.2,0.2"])] == [0.1, 0.2]
    assert [config.arch_type for config in experiments(["--sweep", "arch_type=FC1,fc1"])] == ["fc1"]


def test_tickets_may_have_commas_in_their_names(tmp_path: Path) -> None:
    arms = [tmp_path / "saves" / "fc1" / "mnist" / name / "lt" / "seed0" for name in ("a=1,b=2", "default")]
    for arm in arms:
        arm.mkdir(parents=True)
    found = experiments(["--sweep", f"ticket={arms[0]}:3,{arms[1]}"])
    assert [(config.ticket and config.ticket.folder) for config in found] == arms
    (said,) = swept_problems(f"--sweep ticket={arms[0]},{tmp_path / 'nowhere'}")
    assert "--ticket must be the folder of an existing run" in said and "nowhere" in said


def test_all_mistakes_of_a_sweep_come_in_one_message() -> None:
    said = swept_problems(
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
    for value, start in (("'-1'", "--lr must be a number above 0"), ("'fc2'", "--arch_type must be a model")):
        (sentence,) = [sentence for sentence in said if value in sentence]
        assert sentence.startswith(start)


def test_a_combination_that_cannot_be_is_named() -> None:
    (said,) = swept_problems("--momentum 0.9 --sweep optimizer=sgd,adam")
    assert said == "--momentum belongs to the optimizer sgd, not to adam"
    with pytest.raises(ConfigError, match="--sweep asks for several experiments, and this is one"):
        parse(["--sweep", "lr=0.1,0.2"])


def test_help_fits_and_mentions_every_flag_arm_and_preset(capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for asked in ("--help", "--version"):
        with pytest.raises(SystemExit) as caught:
            parse([asked])
        assert not caught.value.code
    *lines, version = capsys.readouterr().out.splitlines()
    assert version == f"main.py {VERSION}" and len(lines) < 150 and max(map(len, lines)) <= 100
    text = " ".join(" ".join(lines).split())
    names = [f"--{name}" for name in (*FIELDS, "preset", "config", "sweep", "prune_pc", "prune_rounds", "bs", "epochs")]
    names += [f"{name} {arm.help}" for name, arm in ARMS.items() if not name.startswith("ticket_")]
    names += [f"ARM_shuffle {CONTROLS['shuffle'].help}", *(f"ARM_{name}" for name in CONTROLS)]
    names += [f"{name} {flags}" for name, flags in PRESETS.items()]
    names += [f"{name} {score.__doc__}" for name, score in CRITERIA.items()]
    assert [name for name in [*names, "data order (default: 0)"] if name not in text] == []


def test_settings_that_no_arm_uses_are_reported(tmp_path: Path) -> None:
    (ticket := tmp_path / "saves" / "fc1" / "mnist" / "default" / "lt" / "seed0").mkdir(parents=True)
    expected = {
        "--prune_type lt --random_rates erk --score_batches 3": ["--random_rates erk", "--score_batches 3"],
        "--prune_type snip_reinit random_init --random_rates erk --score_batches 3": [],
        "--prune_type reinit finetune --rewind 5it": ["--rewind 5it"],
        "--prune_type snip random --prune_method movement": ["--prune_method movement"],
        "--prune_type snip_reinit random --draw_at 1ep": ["--draw_at 1"],
        "--prune_type snip one_shot_shuffle --draw_at 1ep": [],
        "--prune_type ticket_reinit --prune_method movement --rewind 5it": [],
        "--prune_type reinit --rewind 5it --connectivity": [],
        f"--prune_type transfer --prune_method movement --ticket {ticket}": ["--prune_method movement"],
    }
    for argv, unused in expected.items():
        told = forecast._unused(parse(argv.split()), Mlp())
        assert sorted(sentence.split(" only")[0] for sentence in told) == unused, argv


def test_values_that_are_hardly_meant_are_reported() -> None:
    (told,) = remarks(parse(["--valid_freq", "300", "--end_iter", "5"]), 900)
    assert told.startswith("--valid_freq 300 (epochs): each round is evaluated once, at its end after 4,500")
    assert not [*remarks(parse(["--valid_freq", "300it", "--end_iter", "5"]), 900)]
    argv = ["--score_batches", "1000", "--prune_type"]
    (told,) = remarks(parse([*argv, "snip_reinit"]), 916)
    assert told == "--score_batches 1000: scores look at all of an epoch, which has 916 batches"
    assert not [*remarks(parse([*argv, "snip"]), 1000)] and not [*remarks(parse([*argv, "lt"]), 916)]
