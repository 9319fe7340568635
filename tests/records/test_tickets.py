"""Tickets on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lth.records import resume, tickets
from lth.records.tables import Run


def test_a_ticket_keeps_the_order_of_the_layers(tmp_path: Path) -> None:
    """layers.csv must not depend on whether a round's ticket was made just now or read after a stop."""
    run = Run(tmp_path, "net", "images", "default", "lt", 0)
    masks = {"features.conv.weight": torch.tensor([True, False, True]), "classifier.weight": torch.ones(2, 2).bool()}
    start = {"features.conv.weight": torch.randn(3), "classifier.weight": torch.randn(2, 2)}
    tickets.write_ticket(run, tickets.Ticket(3, masks, start, "own"), "settings")
    read = tickets.read_ticket(run, 3, "settings")
    assert list(read.masks) == list(masks)
    assert all(torch.equal(read.masks[name], masks[name]) for name in masks)
    assert all(torch.equal(read.start[name], start[name]) for name in start)


def test_a_digit_altered_in_what_a_file_says_of_itself_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    tickets.save_tensors(file, {"w": torch.ones(2)}, "settings", iteration=4321, val_loss=0.25)
    sound = file.read_bytes()
    assert sound.count(b"4321") == 1 and sound.count(b"0.25") == 1
    for there, instead in ((b"4321", b"4322"), (b"0.25", b"0.15")):
        file.write_bytes(sound.replace(there, instead))
        with pytest.raises(tickets.Damaged, match="its checksum is wrong"):
            tickets.load_tensors(file, "settings")


def test_rounds_that_are_made_again_leave_nothing_but_the_ticket_they_start_from(tmp_path: Path) -> None:
    run = Run(tmp_path, "net", "images", "default", "lt", 0)
    run.saves.mkdir(parents=True)
    files = [f"{kind}_{number:02}.safetensors" for kind in ("ticket", "trained") for number in range(4)]
    copies = ["ticket_02 copy", "ticket_03 (1)", "ticket_3", "ticket_best", "trained_03_old", "trained_best"]
    for name in (*files, "initial.safetensors", "dense.safetensors", *(f"{copy}.safetensors" for copy in copies)):
        (run.saves / name).touch()
    assert tickets.rounds_with_ticket(run) == [0, 1, 2, 3]
    resume.drop_rounds(run, 2)
    kept = ["dense", "initial", "ticket_00", "ticket_01", "ticket_02", "trained_00", "trained_01"]
    assert sorted(file.stem for file in run.saves.iterdir()) == sorted([*kept, *copies])
