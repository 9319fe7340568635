"""Do two trainings find the same ticket? The overlap of masks, compared with random masks of as many weights."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaln
from torch import Tensor

from lth.analysis import verdict
from lth.pruning import Masks
from lth.records import files, tables
from lth.records.store import Store, numbered
from lth.records.tables import Run
from lth.settings.arms import ARMS

FILE = "masks.csv"
ALL = "all"  # layers together, in the column `layer`
TAIL = 0.025  # of the distribution, on either side of the 95% range
WIDTH = 12  # standard deviations on either side of the mean that are computed; what lies outside is below 1e-30


class Chance(NamedTuple):
    """How many weights two random masks share: the mean, and the 2.5% and 97.5% quantiles."""

    mean: float
    low: int
    high: int


def compare(a: Any, b: Any) -> pd.DataFrame:
    """How far two tickets of one model are the same: arms, trials, rounds or runs of other settings.

    Args:
        a: a ticket as `lth.load_ticket` gives it, or a dict of boolean masks by the names of parameters.
        b: another one, with masks of the same names and shapes.

    Returns:
        A row for each layer, and `all` for the whole network: `weights` in it; `kept_a`, `kept_b` and `both`, how many
        of them a, b and both keep; `jaccard`, both divided by how many a or b keeps; `of_smaller`, both divided by the
        smaller of kept_a and kept_b. `chance` is what of_smaller would be on average if both masks were random with
        the same number of weights in each layer, 95% of the time from `chance_low` to `chance_high` (hypergeometric
        distribution); `jaccard_chance`, `jaccard_low` and `jaccard_high` are the Jaccard indices of that many common
        weights. `signs_start` and `signs_trained`: the share of the common weights that have the same sign, before and
        after training; NaN for dicts and for weights that were not kept. Shares of nothing are NaN.

    Raises TypeError, ValueError: an argument is no ticket, or the two are not of one model.
    """
    masks_a, masks_b = _masks("a", a), _masks("b", b)
    shapes_a, shapes_b = ({(name, mask.shape) for name, mask in masks.items()} for masks in (masks_a, masks_b))
    different = {name for name, _ in shapes_a ^ shapes_b}
    if different or not masks_a:
        which = f"{min(different)} differs" if different else "they have no masks"
        raise ValueError(f"a and b must be tickets of one model, with masks of the same names and shapes, but {which}")
    both = {name: mask & masks_b[name] for name, mask in masks_a.items()}
    counted: dict[str, list[float]] = {
        "weights": [mask.numel() for mask in both.values()],
        "kept_a": [int(mask.sum()) for mask in masks_a.values()],
        "kept_b": [int(masks_b[name].sum()) for name in masks_a],
        "both": [int(mask.sum()) for mask in both.values()],
    }
    for kind in ("start", "trained"):
        first, second = getattr(a, kind, None) or {}, getattr(b, kind, None) or {}
        counted[f"signs_{kind}"] = [np.nan] * len(both)
        if first and second:
            same = {name: first[name].sign() == second[name].sign() for name in both}
            counted[f"signs_{kind}"] = [int(same[name][mask].sum()) for name, mask in both.items()]
    layers = pd.DataFrame(counted, index=pd.Index(masks_a, name="layer"))
    sizes = list(layers[["weights", "kept_a", "kept_b"]].itertuples(index=False, name=None))
    layers.loc[ALL] = layers.sum(min_count=1)
    table = layers[["weights", "kept_a", "kept_b", "both"]].astype(int)
    smaller, kept = table[["kept_a", "kept_b"]].min(axis=1), table["kept_a"] + table["kept_b"]
    table["jaccard"], table["of_smaller"] = table["both"] / (kept - table["both"]), table["both"] / smaller
    expected = np.array([*map(chance, sizes), chance(*sizes)]).T
    for end, common in zip(("", "_low", "_high"), expected, strict=True):
        table[f"chance{end}"] = common / smaller
        table[f"jaccard{end or '_chance'}"] = common / (kept - common)
    for kind in ("start", "trained"):
        table[f"signs_{kind}"] = layers[f"signs_{kind}"] / table["both"]
    return table.reset_index()


def _masks(name: str, ticket: Any) -> Masks:
    masks = ticket if isinstance(ticket, Mapping) else getattr(ticket, "masks", None)
    if not isinstance(masks, Mapping) or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError(f"{name} must be a ticket of lth.load_ticket or a dict of masks, not {type(ticket).__name__}")
    return {key: mask.detach().cpu().bool() for key, mask in masks.items()}


@functools.lru_cache(maxsize=4096)  # arms and trials keep the same counts
def chance(*layers: tuple[int, int, int]) -> Chance:
    """How many weights two random masks share in all of these layers, each (weights, kept_a, kept_b): the sum of
    independent hypergeometric variables."""
    starts, parts = zip(*(_hypergeometric(*sizes) for sizes in layers), strict=True)
    length = sum(len(part) - 1 for part in parts) + 1
    # The distribution of a sum is the convolution of the parts', here by the product of their Fourier transforms.
    distribution = np.fft.irfft(np.prod([np.fft.rfft(part, length) for part in parts], axis=0), length)
    low, high = np.searchsorted(np.cumsum(distribution), (TAIL, 1 - TAIL))
    mean = sum(kept_a * kept_b / max(total, 1) for total, kept_a, kept_b in layers)
    return Chance(mean, sum(starts) + int(low), sum(starts) + int(high))


def _hypergeometric(total: int, kept_a: int, kept_b: int) -> tuple[int, np.ndarray]:
    """The lowest number of common weights with a computed probability, and the probabilities from it upwards."""
    mean, rest = kept_a * kept_b / max(total, 1), max(total - 1, 1)
    deviation = np.sqrt(mean * (total - kept_a) / max(total, 1) * (total - kept_b) / rest)
    reach = WIDTH * deviation + 10
    first, last = max(0, kept_a + kept_b - total, int(mean - reach)), min(kept_a, kept_b, int(mean + reach) + 1)
    common = np.arange(first, last + 1)
    logs = -sum(gammaln(x + 1.0) for x in (common, kept_a - common, kept_b - common, total - kept_a - kept_b + common))
    probabilities = np.exp(logs - np.max(logs))
    return first, probabilities / probabilities.sum()


def pairs(runs: Sequence[Run]) -> pd.DataFrame:
    """`compare` for every two of these runs of one model and every round that both have: its columns behind `round`,
    `remaining` (percent, mean of both), and the arms and seeds of both. Arms that take over another's masks as they are
    would say nothing new and are left out."""
    arms = verdict.in_order([run.arm for run in runs])
    finders = [run for run in runs if run.arm not in ARMS or not ARMS[run.arm].mask_of or ARMS[run.arm].shuffled]
    finders.sort(key=lambda run: (arms.index(run.arm), run.seed))
    rounds = {
        run: set(Store(run).files_by_round("ticket")) & set(tables.table(run, "rounds")["round"]) for run in finders
    }
    frames = []
    for number in sorted(set().union(*rounds.values()) - {0}):
        tickets = {run: _signs(run, number) for run in finders if number in rounds[run]}
        for a, b in itertools.combinations(tickets, 2):
            overlaps = compare(tickets[a], tickets[b])
            remaining = 50 * (overlaps["kept_a"] + overlaps["kept_b"]).iloc[-1] / overlaps["weights"].iloc[-1]
            keys = {"round": number, "remaining": round(remaining, 4)}
            keys |= {"arm_a": a.arm, "seed_a": a.seed, "arm_b": b.arm, "seed_b": b.seed}
            frames.append(overlaps.assign(**keys)[[*keys, *overlaps]])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _signs(run: Run, number: int) -> SimpleNamespace:
    """A saved ticket of which only the signs of its weights are kept, so that many fit into memory."""
    store = Store(run)
    masks, states = store.masks(number), {"start": store.ticket(number).start}
    with suppress(FileNotFoundError):
        states["trained"] = store.weights(numbered("trained", number))
    signs = {kind: {name: state[name].sign().to(torch.int8) for name in masks} for kind, state in states.items()}
    return SimpleNamespace(masks=masks, **signs)


def write(runs: Sequence[Run], folder: Path) -> bool:
    """Write masks.csv, the table of `pairs`, into `folder`; False, and no file, where there are no two masks."""
    table, file = pairs(runs), folder / FILE
    if table.empty:
        files.delete(file)
        return False
    files.write(file, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    return True
