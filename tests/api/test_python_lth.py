"""`python lth`, and the public names of the library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lth
from lth.__main__ import main as short_main
from lth.__main__ import parse
from lth.commands import command
from lth.settings.config import PROJECT, Config, ConfigError


def test_python_lth_runs_from_the_projects_root(tmp_path: Path) -> None:
    save = str(tmp_path / "out")
    flags = ["-i", "6", "-s", save, "--gpu", "cpu", "-p", str(tmp_path)]
    command = [sys.executable, "lth", "lenet", "mnist", "--rounds", "1", "--prune_rate", "0.2", *flags]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
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
        ("lenet mnst", "dataset must be one of .*did you mean mnist?"),
        ("lenet", "the following arguments are required: dataset"),
        ("lenet mnist -o adan", "^--optim must be one of adam, adamw, sgd, not 'adan': did you mean adam?"),
        ("lenet mnist -lr 0", "^--learn_rate must be a number above 0, not '0'"),
        (f"lenet mnist -i {'9' * 60}", "^--iter must be a whole number at least 1, at most 1000000000"),
        ("lenet mnist -r -1", "^--rounds must be a whole number at least 0"),
        ("lenet mnist -rw x", "^--rewind must be a number at least 0, not 'x'"),
        ("lenet mnist -rw 5 --random", "^--random cannot be given with --rewind$"),
        ("lenet mnist -s here --recover there", "^--recover cannot be given with --save$"),
        ("lenet mnist --recover .", "^--recover must hold results of these settings"),
        ("lenet mnist --recover . --epochs 3", "--epochs is no flag of this program$"),
    ],
)
def test_python_lth_names_mistakes(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parse(text.split())
    for pattern in words.split(" AND "):
        assert any(re.search(pattern, problem) for problem in caught.value.problems), caught.value
    assert not list(tmp_path.iterdir())


def test_python_lth_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concluded: list[Any] = []
    monkeypatch.setattr(command, "conclude", lambda runs, *rest: concluded.append(runs) or [])
    monkeypatch.chdir(place)
    archs = place / "archs" / "tiny" / "mlp.py"
    (place / "archs" / "mnist").mkdir()
    (place / "archs" / "mnist" / "mlp.py").write_text(archs.read_text().replace("64", "784"))
    flags = ["mlp", "mnist", "-i", "4", "--quiet", "--gpu", "cpu", "--batch_size", "100"]
    assert short_main([*flags, "-r", "1"]) == 0
    assert short_main([*flags, "-r", "2", "--recover", "experiments"]) == 0
    table = lth.results(place / "experiments")
    assert table["round"].tolist() == [0, 1, 2] and len(concluded) == 2
    with pytest.raises(ConfigError, match="--batch_size must be at most 55000"):
        short_main(["mlp", "mnist", "-i", "4", "--quiet", "--gpu", "cpu", "--batch_size", "60000"])


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
    command = [sys.executable, "-X", "importtime", *words.split()]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
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
