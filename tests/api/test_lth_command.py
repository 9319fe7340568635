"""The command `lth`: the programs of a clone as its subcommands, and `lth audit`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import do, settings

import lth
from lth.__main__ import main
from lth.api import audit_files
from lth.commands import command
from lth.records.tables import Run, config_of
from lth.settings import VERSION

FLAGS = (
    "--arch_type mlp --dataset tiny --gpu cpu --jobs 1 --valid_size 40 --batch_size 10 --end_iter 8it --valid_freq 4it"
)


def lth_command(*argv: str) -> int:
    """The exit code of `lth`, as it is installed."""
    sys.argv = ["/usr/bin/lth", *argv]
    return command.exit_code(main, argv)


@pytest.fixture(autouse=True)
def kept_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_lth_runs_plots_and_audits(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", str(place / "data"), "--root", str(place)]
    assert lth_command("run", *FLAGS.split(), "--prune_iterations", "3", "--quiet", *where) == 0
    assert "written to" in capsys.readouterr().out
    folder = next(place.glob("dumps/*/*/*/lt/seed0"))
    run = Run(place, "mlp", "tiny", folder.parent.parent.name, "lt", 0)
    assert config_of(run)["program"] == ["-m", "lth", "run"]
    assert lth_command("plot", "--root", str(place)) == 0 and "up to date" in capsys.readouterr().out
    assert lth_command("audit", str(place)) == 0 and "3 rounds, as they should be" in capsys.readouterr().out
    assert lth_command("reproduce", "lennet") == 2 and "did you mean lenet?" in capsys.readouterr().err
    assert lth_command("run", "--lr", "0") == 2 and "--lr must be a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "run", "plot", "reproduce", "audit"])
def test_each_command_is_called_as_it_was(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit):
            lth_command(*[name] * bool(name), flag)
    version, usage, *rest = capsys.readouterr().out.splitlines()
    assert version == f"lth {name} {VERSION}".replace("  ", " ") and usage.startswith(f"usage: lth {name}".rstrip())
    assert lth.__version__ == VERSION and (not name or "python " not in "\n".join(rest).split("experiment:")[0])


@pytest.mark.parametrize("arm", ["lt", "reinit", "ticket_reinit", "ticket_shuffle", "one_shot", "finetune"])
def test_rounds_of_runs_are_checked(
    place: Path, arm: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_state_dicts_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
