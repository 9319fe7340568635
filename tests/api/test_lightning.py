"""The Lightning callback finds what a pruning left wrong, and is silent where nothing is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from own import EXAMPLES
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import lth

pytest.importorskip("lightning")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("resets, problem", [(True, ""), (False, "the model was not reset"), (None, "")])
def test_each_pruning_is_audited(resets: bool | None, problem: str) -> None:
    from lightning.pytorch import Callback, LightningModule, Trainer

    from lth.integrations.lightning import TicketAudit

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(64, 4)

        def training_step(self, batch: Any) -> Any:
            return torch.nn.functional.cross_entropy(self.fc(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Pruner(Callback):
        def __init__(self, net: Net) -> None:
            self.initial = copy.deepcopy(net.state_dict())

        def on_train_epoch_end(self, trainer: Trainer, net: Any) -> None:
            prune.l1_unstructured(net.fc, "weight", 0.5)
            if resets:
                net.fc.weight_orig.data.copy_(self.initial["fc.weight"])
                net.fc.bias.data.copy_(self.initial["fc.bias"])

    net = Net()
    audits = [TicketAudit(reset=resets is not None, strict=False), TicketAudit(reset=resets is not None)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=[Pruner(net), *audits], enable_model_summary=False, **quiet)
    loader = DataLoader(TensorDataset(*EXAMPLES), batch_size=20)
    if problem:
        with pytest.raises(lth.AuditError, match=problem):
            trainer.fit(net, loader)
    else:
        trainer.fit(net, loader)
        assert [int(one.masks["fc.weight"].sum()) for one in audits] == [64, 64], "a quarter of 256"
