"""Tickets on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from lth.records import tickets
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
