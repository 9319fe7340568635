"""Lightning: a callback that audits a network after each pruning (pip install lightning)."""

import copy
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lth.prune import torch_masks
from lth.pruning import Masks
from lth.testing import AuditError, audit


class TicketAudit(Callback):
    """Checks the network with `lth.audit` whenever the masks of torch.nn.utils.prune have changed in an epoch.

    It stands after the callback that prunes, such as ModelPruning, in the trainer's list. What was pruned before must
    not come back.

    Args:
        reset: whether survivors, and all else that is not pruned, must have been reset to the weights with which the
            fit began.
        strict: raise lth.AuditError, which ends the fit; False: warn.
    """

    def __init__(self, reset: bool = True, strict: bool = True) -> None:
        self.reset, self.strict = reset, strict
        self.initial: dict[str, Any] = {}
        self.masks: Masks = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights with which the fit begins."""
        self.initial = {name.replace("_orig", ""): x for name, x in copy.deepcopy(pl_module.state_dict()).items()}
        self.masks = torch_masks(self.initial)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit what was pruned at the end of the epoch."""
        masks = {name: mask.cpu().clone() for name, mask in torch_masks(pl_module.state_dict()).items()}
        if masks.keys() == self.masks.keys() and all(mask.equal(self.masks[name]) for name, mask in masks.items()):
            return
        before = {name: self.masks.get(name, mask.new_ones(mask.shape)) for name, mask in masks.items()}
        self.masks = masks
        try:
            audit(
                pl_module, masks, initial=self.initial if self.reset else None, previous=before, trained=not self.reset
            )
        except AuditError as error:
            if self.strict:
                raise
            warnings.warn(f"epoch {trainer.current_epoch}: {error}", stacklevel=2)
