"""Saved tickets: loaded from a run, put on a model, evaluated and exported."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from lth import prune, pruning
from lth.api import export
from lth.commands import device as devices
from lth.data.images import Images
from lth.data.loaders import test_batches
from lth.data.sets import as_images, load
from lth.models import building, fingerprints
from lth.models.building import State
from lth.pruning import Masks
from lth.records import identity, tables
from lth.records.store import Store, numbered
from lth.records.tables import Run, read_config
from lth.settings import checks, names
from lth.settings.config import Config, ConfigError
from lth.training.hardware import channels_last, numerics
from lth.training.network import Network
from lth.training.sparse import choose


@dataclass(frozen=True)
class SavedTicket:
    """The ticket of one round of a run.

    masks: a boolean tensor per pruned parameter, by its name: True kept.
    start_masks: the masks that its training starts from; they differ only in arms whose trainings change masks.
    start: the weights that its training starts from, 0 where pruned: every parameter and buffer, by name.
    trained: the weights at the early-stop iteration of that training; None if they were not kept or not trained yet.
    row: the row of rounds.csv: round, remaining (percent), ES, val and test (percent), ...; empty before the training.
    """

    run: Run
    round: int
    masks: Masks = field(repr=False)
    start_masks: Masks = field(repr=False)
    start: State = field(repr=False)
    trained: State | None = field(repr=False)
    row: dict[str, Any]

    @property
    def remaining(self) -> float:
        """Percent of the prunable weights that survive."""
        return pruning.remaining(self.masks)

    def apply(self, model: nn.Module, as_pruned: bool = False, weights: str = "start") -> nn.Module:
        """Put the ticket on `model`, which is changed in place and returned.

        Args:
            model: has the parameters and buffers of the run's model; on any device.
            as_pruned: also put the masks on it as torch.nn.utils.prune does (weight_orig, weight_mask), so that pruned
                weights stay 0 in training and PyTorch's tools see them.
            weights: "start" or "trained".

        Raises TypeError, ValueError: model is no module or has other parameters; these weights were not kept.
        """
        state = self._weights(weights)
        checks.boolean("as_pruned", as_pruned)
        building.load_state(_bare(checks.network("model", model)), state)  # refused before anything is changed
        prune.detach(model)
        building.load_state(model, state)
        return prune.attach(model, self._masks(weights)) if as_pruned else model

    def evaluate(
        self,
        data: Any,
        model: nn.Module | None = None,
        weights: str = "trained",
        device: str | torch.device | None = None,
    ) -> float:
        """The accuracy of the ticket in percent: on the test images of the run, the column `test` of rounds.csv.

        Args:
            data: the name of a data set (the run's own is read from the folder that the run used), an .npz file or
                `lth.data.Images`, whose test images are used; or a loader: any re-iterable of batches
                (examples (B, ...), labels (B,)).
            model: a network of the run's architecture, which is not changed. It must be given for a network of your
                own; others are found under archs/, where they must not have been edited since.
            weights: "trained" or "start".
            device: None: a GPU where there is one.
        """
        place, config = choose_device(device)[0], read_config(self.run)
        images = self._images(data, config)
        model, masks = self._applied(model, weights)
        precision = config.get("settings", {}).get("precision", Config.precision)
        correct = count = 0
        with numerics(precision, config.get("threads") or 1), torch.no_grad():
            batches = images.feed([self.run.seed], 1, 1, place).test() if images else test_batches(data, place)
            first = next(batches)
            example = first[0][:2]
            network = Network(  # with the products that gave the accuracy in rounds.csv
                model,
                [building.state_of(model)],
                [masks],
                place,
                autocast=precision == "bf16",
                sparse=choose(model, [masks], config.get("sparse_up_to", {}), example),
                channels_last=channels_last(lambda: building.copy_model(model), example),
            )
            network.model.eval()
            for x, y in itertools.chain([first], batches):
                try:
                    predicted = network.logits(x, True)[0].argmax(-1)
                except (RuntimeError, ValueError, TypeError, IndexError) as error:
                    shape = tuple(x.shape[1:])
                    raise ValueError(f"data must be such as {self.run.arch_type} takes, not {shape}: {error}") from None
                correct += int((predicted == y).sum())
                count += len(y)
        return 100 * correct / count

    def export(
        self,
        file: str | os.PathLike[str],
        example: Tensor | None = None,
        model: nn.Module | None = None,
        weights: str = "trained",
        compact: bool = False,
    ) -> Path:
        """Write the network, pruned weights as zeros, for other programs. Returns the file's path.

        It takes images with pixels from 0 to 1, which it normalises as the run did, or batches of your own data as they
        are. The metadata `input` says which.

        Args:
            file: ends in .onnx (current opset, any batch size; needs the packages onnx and onnxscript) or .pt2
                (torch.export).
            example: two or more examples (B, ...), only for their shape and type; None: of the shape of the run's
                images, if config.json has it.
            model: as in `evaluate`.
            weights: "trained" or "start".
            compact: write the smaller network that `compact` returns.

        Raises TypeError, ValueError: an argument is wrong, or the model cannot be exported; ImportError: ONNX is not
        installed; lth.records.files.RecordError: the file cannot be written.
        """
        example, (network, _) = self._examples(example), self._applied(model, weights)
        if checks.boolean("compact", compact):
            network = export.compact(network, example)
        normalisation = read_config(self.run).get("normalisation")
        if normalisation is None:
            raise ValueError(f"folder must have a config.json that says how images are normalised: {self.run.dumps}")
        return export.export(network, checks.path("file", file), example, normalisation)

    def compact(
        self, example: Tensor | None = None, model: nn.Module | None = None, weights: str = "trained"
    ) -> nn.Module:
        """A smaller dense network with the same logits, in evaluation mode on the CPU, without the units and channels
        that have no outgoing weights left or a constant value, which is added to biases. `sizes` shows what it saves.

        `example`, `model` and `weights` are as in `export`. Raises TypeError, ValueError: an argument is wrong, or the
        model has other parts than Linear, Conv2d, batch norm, ReLU, pooling, flatten and residual additions.
        """
        network, _ = self._applied(model, weights)
        return export.compact(network, self._examples(example))

    def sizes(
        self, example: Tensor | None = None, model: nn.Module | None = None, weights: str = "trained"
    ) -> pd.DataFrame:
        """The size of the ticket on disk and its speed on this machine's CPU, in four forms. Takes seconds.

        `example`, `model` and `weights` are as in `export`. Raises TypeError, ValueError: an argument is wrong.

        Returns:
            A row per form: `dense`, with zeros; `compact`, from the method of that name (missing if the model has other
            parts); `csr`, pruned weights in CSR form with 32-bit indices (all on disk, in time only the Linear layers
            of `sparse`); `packed`, the survivors and a mask of one bit per weight, which must be unpacked to be used.
            Columns: `numbers` of floating point, `bytes` as a safetensors file, `multiply_adds` of an example's forward
            pass, and `ms_1` and `ms_100`, the milliseconds of a call with 1 and 100 examples, with PyTorch's current
            number of threads: the lowest of several measurements.
        """
        return export.sizes(*self._applied(model, weights), self._examples(example))

    def _examples(self, example: Tensor | None) -> Tensor:
        """`example` or, if it is None, blank images of the shape of the run's."""
        if example is None:
            if not (shape := tables.image_shape(self.run)):
                raise ValueError(f"example must be given: the shape of the images of {self.run.dataset} is not known")
            example = torch.zeros(2, *shape)
        if not isinstance(example, Tensor) or len(example) < 2:
            raise TypeError("example must be a tensor of two or more examples")
        return example

    def sparse(self, model: nn.Module | None = None, weights: str = "trained") -> nn.Module:
        """The network in evaluation mode on the CPU, its pruned Linear layers with weights in CSR form: at 5% of the
        weights it is faster than the dense one (benchmarks/README.md). Those of nn.TransformerEncoderLayer with
        batch_first stay dense, which its fast path needs. `model` and `weights` are as in `export`."""
        return export.sparse(*self._applied(model, weights))

    def _applied(self, model: nn.Module | None, weights: str) -> tuple[nn.Module, Masks]:
        """A copy of `model` (by default the run's) with the weights of the ticket, and the ticket's masks by the names
        of its parameters."""
        network = self._model() if model is None else _bare(checks.network("model", model))
        building.load_state(network, self._weights(weights))
        return network, building.match_names(self._masks(weights), dict(network.named_parameters()))

    def _images(self, data: Any, config: Mapping[str, Any]) -> Images | None:
        """The images that `data` names, scaled as in the run with that config.json; None if `data` is a loader."""
        settings, dataset = config.get("settings", {}), self.run.dataset
        of_run = isinstance(data, str) and names.canonical_dataset(data) == names.canonical_dataset(dataset)
        if not of_run or "own" in config:
            images = as_images(data)
        else:
            folder, size = Path(settings.get("data") or Config.data), settings.get("image_size")
            exists = names.npz_file(folder, dataset, size).is_file() or names.picture_folder(dataset, folder)
            images = load(dataset, folder, image_size=size) if exists else as_images(data)
            if images and identity.differing(identity.read_fingerprints(self.run), {"data": images.fingerprint}):
                raise ValueError(f"data must be the images of the run, but {data} here differs: give their file")
        return replace(images, pixels=settings.get("pixels", Config.pixels)) if images else None

    def _masks(self, which: str) -> Masks:
        return self.start_masks if which == "start" else self.masks

    def _weights(self, which: str) -> State:
        if checks.one_of("weights", which, ("start", "trained")) == "start":
            return self.start
        if self.trained is None:
            raise ValueError(f"weights must be 'start': the trained weights of round {self.round} were not kept")
        return self.trained

    def _model(self) -> nn.Module:
        """The run's model from archs/; ValueError if there is none, or if it has changed since."""
        config, arch = read_config(self.run), self.run.arch_type
        if "own" in config:
            raise ValueError(f"model must be given, since {arch} is a network of your own, not a model under archs/")
        try:
            make = building.find(arch, self.run.dataset, config.get("classes"), image=tables.image_shape(self.run))
            model = building.deterministic(make)()
        except ConfigError as error:
            raise ValueError(f"model must be given, since {arch} is not found under archs/ ({error})") from None
        if identity.differing(identity.read_fingerprints(self.run), {"model": fingerprints.fingerprint_model(make)}):
            raise ValueError(f"model must be given, since {arch} under archs/ has changed since this ticket was found")
        return model


def _bare(model: nn.Module) -> nn.Module:
    """A copy of `model` without masks of torch.nn.utils.prune."""
    bare = building.copy_model(model)
    prune.detach(bare)
    return bare


def choose_device(device: str | torch.device | None) -> tuple[torch.device, str]:
    """The device that an argument `device` means, and a remark if the default is the CPU."""
    try:
        return devices.choose(checks.device("device", device))
    except ConfigError as error:
        raise error.named({"gpu": "device"}) from None


def load_ticket(folder: str | os.PathLike[str], round: int | None = None) -> SavedTicket:
    """The saved ticket of a round.

    Args:
        folder: of a run, under dumps/ or saves/ (`saves/fc1/mnist/default/lt/seed0`), or a parent of only one run.
        round: counted from 0, the dense network; None: the last finished one.

    Raises:
        TypeError, ValueError: there is no such run or no such round; the message says which there are.
        lth.records.files.Damaged, RecordError: a file is damaged.
    """
    run = tables.run_of("folder", checks.path("folder", folder))
    table = tables.table(run, "rounds")
    store = Store(run)
    rounds = list(store.files_by_round("ticket"))
    if not rounds:
        raise ValueError(f"folder must be of a run with tickets, but there are none in {run.saves}")
    if round is None:
        round = store.last_finished()
    if checks.integer("round", round, 0) not in rounds:
        raise ValueError(f"round must be one of {rounds[0]} to {rounds[-1]}, the rounds of {run.saves}, not {round}")
    ticket = store.ticket(round)
    start = {name: x * ticket.masks[name] if name in ticket.masks else x for name, x in ticket.start.items()}
    try:
        trained = store.weights(numbered("trained", round)) if round < len(table) else None
    except FileNotFoundError:
        trained = None
    masks = store.masks(round) if round < len(table) else ticket.masks
    rows: list[Any] = table[table["round"] == round].to_dict("records")
    return SavedTicket(run, round, masks, ticket.masks, start, trained, rows[0] if rows else {})
