"""The command `lth`: short flags for common runs, the programs of a clone as subcommands, `lth audit`; public names."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import Capture, Patch, argv_of, do, settings

import lth
from lth.__main__ import main, parse
from lth.api import audit_files
from lth.commands import command
from lth.records.tables import Run, read_config
from lth.settings import VERSION
from lth.settings.config import PROJECT, Config, ConfigError


def lth_command(*argv: str) -> int:
    """The exit code of `lth`, as it is installed."""
    sys.argv = ["/usr/bin/lth", *argv]
    return command.exit_code(main, argv)


@pytest.fixture(autouse=True)
def kept_argv(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_lth_runs_plots_and_audits(place: Path, capsys: Capture) -> None:
    assert lth_command("run", *argv_of(place, "--quiet")) == 0
    assert "written to" in capsys.readouterr().out
    folder = next(place.glob("dumps/*/*/*/lt/seed0"))
    run = Run(place, "mlp", "tiny", folder.parent.parent.name, "lt", 0)
    assert read_config(run)["program"] == ["-m", "lth", "run"]
    assert lth_command("plot", "--root", str(place)) == 0 and "up to date" in capsys.readouterr().out
    assert lth_command("audit", str(place)) == 0 and "3 rounds, as they should be" in capsys.readouterr().out
    assert lth_command("reproduce", "lennet") == 2 and "did you mean lenet?" in capsys.readouterr().err
    assert lth_command("run", "--lr", "0") == 2 and "--lr must be a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "run", "plot", "reproduce", "audit"])
def test_each_command_is_called_as_it_was(name: str, capsys: Capture) -> None:
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit):
            lth_command(*[name] * bool(name), flag)
    version, usage, *rest = capsys.readouterr().out.splitlines()
    assert version == f"lth {name} {VERSION}".replace("  ", " ") and usage.startswith(f"usage: lth {name}".rstrip())
    assert lth.__version__ == VERSION and (not name or "python " not in "\n".join(rest).split("experiment:")[0])


@pytest.mark.parametrize("arm", ["lt", "reinit", "ticket_reinit", "ticket_shuffle", "one_shot", "finetune"])
def test_rounds_of_runs_are_checked(place: Path, arm: str, capsys: Capture, monkeypatch: Patch) -> None:
    run = do(settings(place, prune_type=["lt", arm], rewind="2it" if arm == "lt" else "0"))[-1]
    assert lth_command("audit", str(place)) == 0 and "wrong" not in capsys.readouterr().out
    ticket = lth.load_ticket(run.dumps, round=2)
    weight = next(iter(ticket.masks))
    assert ticket.trained is not None
    torch.save({**ticket.trained, weight: torch.ones_like(ticket.trained[weight])}, place / "after.pt")
    assert lth_command("audit", str(place / "after.pt"), "--ticket", f"{run.dumps}:2") == 1
    assert f"pruned weights of {weight} are not 0 in the model" in capsys.readouterr().out
    moved = {"lt": "the model was not reset", "ticket_reinit": "it is no control"}
    moved |= {"ticket_shuffle": "the control is not random"}
    if arm in moved:  # as if a bug had given it the weights, or the places, of another arm
        other = lth.load_ticket(run.of_arm("lt").dumps, round=2)
        taken = {"masks": other.masks, "start_masks": other.masks, "start": other.start}
        wrong = replace(ticket, **taken, trained=None)
        if arm == "lt":
            wrong.start[weight][other.masks[weight]] += 1
        load = audit_files.load_ticket
        monkeypatch.setattr(
            audit_files,
            "load_ticket",
            lambda folder, round: wrong if (folder, round) == (run.dumps, 2) else load(folder, round),
        )
        assert lth_command("audit", str(run.dumps)) == 1 and moved[arm] in capsys.readouterr().out


def test_state_dicts_of_other_programs(tmp_path: Path, capsys: Capture) -> None:
    layer = torch.nn.utils.prune.l1_unstructured(torch.nn.Linear(10, 4), "weight", 0.25)
    torch.save({"state_dict": layer.state_dict()}, tmp_path / "masked.pt")
    torch.save({"weight": layer.weight.detach() + 1, "bias": layer.bias}, tmp_path / "lost.pt")
    assert lth_command("audit", str(tmp_path / "masked.pt")) == 0
    assert capsys.readouterr().out.split()[-4:] == ["all", "40", "30", "75.00%"]
    assert lth_command("audit", str(tmp_path / "lost.pt"), "--ticket", str(tmp_path / "masked.pt")) == 1
    assert "10 of the 10 pruned weights of weight are not 0" in capsys.readouterr().out
    (tmp_path / "spoiled.pt").write_bytes(b"no file of PyTorch")
    for words, problem in (
        (["nowhere"], "there is no nowhere"),
        ([str(tmp_path)], "FOLDER must be"),
        ([str(tmp_path / "spoiled.pt")], "cannot be read as a state dict"),
        ([str(tmp_path / "lost.pt"), "--ticket", "none"], "--ticket must be the folder of an existing run"),
    ):
        assert lth_command("audit", *words) == 2 and problem in capsys.readouterr().err


def test_python_lth_runs_from_the_projects_root(tmp_path: Path) -> None:
    save = str(tmp_path / "out")
    flags = ["-i", "6", "-s", save, "--gpu", "cpu", "-p", str(tmp_path)]
    words = [sys.executable, "lth", "lenet", "mnist", "--rounds", "1", "--prune_rate", "0.2", *flags]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob("dumps/fc1/mnist/*/lt/seed0/rounds.csv")
    assert pd.read_csv(file)["remaining"].tolist() == [100, 80]
    assert str(tmp_path / "out" / "plots") in done.stdout


def test_python_lth_means_the_settings_of_main_py(tmp_path: Path) -> None:
    assert parse(["lenet", "mnist"]) == Config(
        prune_percent=20, prune_iterations=27, end_iter="50000it", root=Path("experiments")
    )
    text = (
        "VGG fashion --batch_size 64 -o SGD -lr 0.1 -i 300 -r 4 -es 50 -rw 0.1 -pr 0.3 -fc 0.5 -s out -rs 7 "
        f"--prune_global --quiet -p {tmp_path} --gpu"
    )
    assert parse(text.split()) == Config(
        **{"arch_type": "vgg16", "dataset": "fashionmnist", "batch_size": 64, "optimizer": "sgd", "lr": 0.1},
        **{"end_iter": "300it", "prune_iterations": 5, "valid_freq": "50it", "rewind": "30it", "prune_percent": 30},
        **{"fc_percent": 50, "root": "out", "seed": 7, "prune_scope": "global", "quiet": True, "data": tmp_path},
        gpu="0",
    )
    assert parse(["--random", "lenet", "mnist"]).prune_type == ("reinit",)
    assert parse(["resnet", "cifar10", "-es", "-1"]).arch_type == "resnet20"
    assert parse(["lenet5", "mnist", "--gpu", "cpu"]).gpu == "cpu"
    (tmp_path / "MNIST").mkdir()
    assert parse(["lenet", "mnist", "-p", str(tmp_path)]).data == tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lenat mnist --round 3 -rw 50000", "net must be a model AND --round is no flag AND --rewind must be"),
        ("lenet", "the following arguments are required: dataset"),
        ("lenet mnist -o adan", "^--optim must be one of adam, adamw, sgd, not 'adan': did you mean adam?"),
        (f"lenet mnist -i {'9' * 60}", "^--iter must be a whole number at least 1, at most 1000000000"),
        ("lenet mnist -r -1", "^--rounds must be a whole number at least 0"),
        ("lenet mnist -rw x", "^--rewind must be a number at least 0, not 'x'"),
        ("lenet mnist -rw 5 --random", "^--random cannot be given with --rewind$"),
        ("lenet mnist -s here --recover there", "^--recover cannot be given with --save$"),
        ("lenet mnist --recover .", "^--recover must hold results of these settings"),
        ("lenet mnist --recover . --epochs 3", "--epochs is no flag of this program$"),
    ],
)
def test_python_lth_names_mistakes(text: str, words: str, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parse(text.split())
    for pattern in words.split(" AND "):
        assert any(re.search(pattern, problem) for problem in caught.value.problems), caught.value
    assert not list(tmp_path.iterdir())


def test_python_lth_goes_on(place: Path, monkeypatch: Patch) -> None:
    concluded: list[Any] = []
    monkeypatch.setattr(command, "conclude", lambda runs, *rest: concluded.append(runs) or [])
    monkeypatch.chdir(place)
    archs = place / "archs" / "tiny" / "mlp.py"
    (place / "archs" / "mnist").mkdir()
    (place / "archs" / "mnist" / "mlp.py").write_text(archs.read_text().replace("64", "784"))
    flags = ["mlp", "mnist", "-i", "4", "--quiet", "--gpu", "cpu", "--batch_size", "100"]
    assert main([*flags, "-r", "1"]) == 0
    assert main([*flags, "-r", "2", "--recover", "experiments"]) == 0
    table = lth.results(place / "experiments")
    assert table["round"].tolist() == [0, 1, 2] and len(concluded) == 2
    with pytest.raises(ConfigError, match="--batch_size must be at most 55000"):
        main(["mlp", "mnist", "-i", "4", "--quiet", "--gpu", "cpu", "--batch_size", "60000"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("-m lth --help", 0, "usage:"),
        ("main.py --lr x --arch_type alexnt --dataset MNIST", 2, "did you mean AlexNet?"),
        ("-m lth lenat mnist", 2, "net must be a model of archs/mnist/"),
        ("combine_plots.py --formt svg", 2, "--formt"),
    ],
)
def test_help_and_mistakes_do_not_wait_for_torch(words: str, code: int, said: str) -> None:
    called = [sys.executable, "-X", "importtime", *words.split()]
    done = subprocess.run(called, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.returncode == code and said in done.stdout + done.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported and not imported & {"torch", "pandas", "numpy", "matplotlib"}


def test_the_library_loads_torch_when_it_is_needed() -> None:
    code = "import sys, lth; dir(lth); from lth import Config; print('torch' in sys.modules, lth.prune.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "lth.prune"], done.stderr


def test_every_public_name_is_there() -> None:
    assert set(lth.__all__) <= set(dir(lth))
    assert all(getattr(lth, name) is not None for name in lth.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lth.nonsense
