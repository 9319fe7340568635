"""Pictures of weights: which survive in the first layer, and what the survivors began as.

From the tickets under saves/; a picture whose files are not there is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lth.analysis import labels, verdict
from lth.plots import style
from lth.records import tables
from lth.records.store import Store, Ticket
from lth.records.tables import Run
from lth.settings.arms import ARMS


class TicketRun(NamedTuple):
    """A run whose tickets are kept, and the rounds they are kept of."""

    run: Run
    rounds: list[int]

    def ticket(self, number: int) -> Ticket:
        return Store(self.run).ticket(number)

    def remaining(self) -> dict[int, float]:
        found = tables.table(self.run, "rounds")
        return dict(zip(found["round"], found["remaining"], strict=True))


def ticket_run(runs: Sequence[Run], starts: Sequence[str] = ()) -> TicketRun | None:
    """The first run of the first arm (among `starts`, if given) that has tickets of finished rounds."""
    arms = [arm for arm in verdict.in_order([run.arm for run in runs]) if not starts or arm in starts]
    for run in sorted((run for run in runs if run.arm in arms), key=lambda run: (arms.index(run.arm), run.seed)):
        finished = tables.finished_rounds(run)
        rounds = [number for number in Store(run).of_rounds("ticket") if number < finished]
        if rounds and (run.saves / "initial.safetensors").exists():
            return TicketRun(run, rounds)
    return None


def first_layer(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """What the first layer looks at: how many weights each pixel keeps, or the filters with their masks."""
    source = ticket_run(runs)
    first = input_layer(source) if source else None
    if source is None or first is None:
        return []
    file = folder / f"first_layer.{format}"
    if first.image:
        _pixels(source, first, file)
    else:
        _filters(source, first.name, file)
    return [file]


class InputLayer(NamedTuple):
    """The layer of this name reads the images: with filters, or pixel by pixel of the shape `image` (C, H, W)."""

    name: str
    image: tuple[int, ...] = ()


def input_layer(source: TicketRun) -> InputLayer | None:
    """The first layer, in the order of the model's constructor, whose inputs are those of the images whose shape
    config.json has. None if there is none."""
    masks, image = source.ticket(source.rounds[0]).masks, tables.image_shape(source.run)
    if not image:
        return None
    filters = [name for name, mask in masks.items() if mask.ndim == 4]
    for name in filters:  # before a matrix, whose number of inputs may be that of pixels by chance
        if masks[name].shape[1] == image[0]:
            return InputLayer(name)
    for name, mask in masks.items():
        if mask.ndim == 2 and mask.shape[1] == math.prod(image):
            return InputLayer(name, image)
    return InputLayer(filters[0]) if filters and filters[0] == next(iter(masks)) else None  # of groups of channels


MAPS = 12  # rounds whose pixels are drawn
PIXELS = "RdBu_r"  # white at 1, the average pixel


def _pixels(source: TicketRun, first: InputLayer, file: Path) -> None:
    """How many weights each pixel keeps, relative to the round's average: small maps, one per round, on one scale that
    ends where the last round does, which has the largest contrast."""
    maps, remaining = {}, source.remaining()
    for number in labels.spread(source.rounds, MAPS):
        kept = source.ticket(number).masks[first.name].sum(0).view(first.image).sum(0).numpy()
        maps[number] = kept / max(kept.mean(), 1e-12)
    scale = TwoSlopeNorm(1.0, 0.0, float(np.clip(np.quantile(maps[max(maps)], 0.995), 1.5, 6.0)))
    colors: dict[str, Any] = {"cmap": PIXELS, "norm": scale, "interpolation": "nearest"}
    rows = math.ceil(len(maps) / 6)
    columns = math.ceil(len(maps) / rows)
    what = f"first layer ({source.run.arm}, seed {source.run.seed})"
    with style.sheet(file, 1.1 + 1.17 * rows, [source.run], what) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for (number, kept), axes in zip(maps.items(), panels.flat, strict=False):
            shown = axes.imshow(kept, **colors)
            axes.set_title(f"round {number}: {labels.percent(remaining[number])}%", fontsize=8)
        bar: dict[str, Any] = {"orientation": "horizontal", "aspect": 50, "pad": 0.03, "shrink": 0.6}
        figure.colorbar(shown, ax=panels, label="weights kept, relative to the average pixel", extend="max", **bar)


def _filters(source: TicketRun, name: str, file: Path) -> None:
    """The first filters as they begin in the first and in the last round, pruned weights hatched."""
    remaining = source.remaining()
    chosen = [source.rounds[0], source.rounds[-1]] if len(source.rounds) > 1 else source.rounds
    begun = {number: source.ticket(number) for number in chosen}
    drawn = {number: filter_sheet(ticket.start[name], ticket.masks[name]) for number, ticket in begun.items()}
    first = drawn[chosen[0]]
    known = np.abs(first[np.isfinite(first) & (first != PRUNED)])
    limit = (float(np.quantile(known, 0.97)) if known.size else 0.0) or 1.0  # a few large ones would grey all others
    total, channels = begun[chosen[0]].masks[name].shape[:2]
    some = f"{channels}" if channels <= CHANNELS else f"{CHANNELS} of {channels}"
    across = "" if channels == 1 else f", their {'R, G and B' if channels == 3 else some} channels side by side"
    what = f"filters of the first layer at the start ({source.run.arm}, seed {source.run.seed})"
    height = 1.1 + len(chosen) * (0.35 + 6.0 * first.shape[0] / first.shape[1])
    with style.sheet(file, min(height, 9.0), [source.run], what) as figure:
        panels = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
        for axes, number in zip(panels, chosen, strict=True):
            shown = _filter_panel(axes, drawn[number], limit)
            kept = begun[number].masks[name].float().mean().item()
            title = f"round {number}, {labels.percent(remaining[number])}% of all weights remaining, "
            rgb = "RGB" if channels == 3 else ""
            axes.set_title(f"{title}{labels.percent(100 * kept)}% of this layer's", fontsize=8, pad=10 if rgb else None)
            wide = begun[number].masks[name].shape[3]
            for place, letter in enumerate(rgb):  # above the first filter
                axes.text((place + 0.5) * wide, -0.4, letter, fontsize=7, ha="center", va="bottom")
        figure.colorbar(shown, ax=list(panels), label="weight (hatched: pruned)", aspect=25, pad=0.01, extend="both")
        how_many = f"{FILTERS} of {total} filters" if total > FILTERS else f"all {total} filters"
        figure.supxlabel(f"{how_many}{across}", fontsize=8)


PRUNED = 1e9  # marks pruned weights in a sheet of filters; the gaps between filters are NaN
FILTERS = 24  # of a layer that are drawn
CHANNELS = 3  # of a filter that are drawn


def filter_sheet(weight: Tensor, mask: Tensor) -> np.ndarray:
    """The first filters (O, I, h, w), laid out with gaps, channels side by side; NaN in gaps, PRUNED where pruned."""
    outputs, channels, high, wide = weight.shape
    count, shown = min(outputs, FILTERS), min(channels, CHANNELS)
    values = np.where(mask[:count, :shown].numpy(), weight[:count, :shown].detach().float().numpy(), PRUNED)
    across = max(1, min(count, round(math.sqrt(count * 6 / shown))))
    rows = math.ceil(count / across)
    sheet = np.full((rows * (high + 1) - 1, across * (shown * wide + 1) - 1), np.nan)
    for index, filter in enumerate(values):
        top, left = index // across * (high + 1), index % across * (shown * wide + 1)
        sheet[top : top + high, left : left + shown * wide] = np.concatenate(list(filter), axis=1)
    return sheet


def _filter_panel(axes: Axes, sheet: np.ndarray, limit: float) -> Any:
    """One sheet of filters; cividis, because its lightness alone tells negative from positive."""
    weights = np.ma.masked_invalid(np.where(sheet == PRUNED, np.nan, sheet))
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        shown = axes.pcolormesh(weights, cmap="cividis", vmin=-limit, vmax=limit, edgecolors="none")
        pruned = np.ma.masked_where(sheet != PRUNED, sheet)
        if pruned.count():
            axes.pcolor(pruned, hatch="//////", facecolor="white", edgecolor="#888888", cmap="gray_r", vmin=PRUNED)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_axis_off()
    return shown


def initial_weights(runs: Sequence[Run], folder: Path, format: str = "png") -> list[Path]:
    """How the weights that survive until a round were distributed at the start, one line per round (Frankle & Carbin,
    Appendix F): a panel per layer, or, for models with many layers, all together in units of their layer's spread."""
    source = ticket_run(runs, [arm for arm, facts in ARMS.items() if facts.start == "original"])
    if source is None or len(source.rounds) < 2:
        return []
    chosen, remaining = labels.spread(source.rounds, LINES), source.remaining()
    weights = list(source.ticket(chosen[0]).masks)  # later rounds may have more: biases that a rule prunes
    samples = {number: _starts(source.ticket(number), weights) for number in chosen}
    names = list(samples[chosen[0]])
    file = folder / f"initial_weights.{format}"
    rewound = source.ticket(chosen[0]).origin == "rewind"
    what = f"{'rewound' if rewound else 'initial'} weights of the survivors ({source.run.arm}, seed {source.run.seed})"
    with style.sheet(file, 3.3, [source.run], what) as figure:
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            some = [values for number in chosen if len(values := samples[number][name])]
            limit = 1.1 * max((float(np.quantile(np.abs(values), 0.995)) for values in some), default=0.0) or 1.0
            for number, color, dashes in zip(chosen, style.shades(len(chosen)), style.DASHES, strict=False):
                values = samples[number][name]
                if len(values) > 1:
                    counts, edges = np.histogram(values, bins=BINS, range=(-limit, limit))
                    density = counts / (edges[1] - edges[0]) / len(samples[chosen[0]][name])
                    label = f"{labels.percent(remaining[number])}%" + (" (all)" if remaining[number] > 99.9 else "")
                    middles = (edges[1:] + edges[:-1]) / 2
                    axes.plot(middles, density, color=color, linestyle=dashes, linewidth=1.5, label=label)
            axes.set_title(name)
            axes.set_xlim(-limit, limit)
            axes.set_ylim(0)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlabel("weight / its layer's standard deviation" if name == POOLED else "weight")
        panels[0].set_ylabel("density × share that remains")
        style.legend(figure, panels, "weights remaining", columns=6)
    return [file]


POOLED = "all layers"
LINES, BINS = 5, 61  # rounds whose weights are drawn, and how finely


def _starts(ticket: Ticket, weights: Sequence[str]) -> dict[str, np.ndarray]:
    """The values that survivors start from, by layer, or pooled where there are more than three layers."""
    own = {name.removesuffix(".weight"): (ticket.start[name], ticket.masks[name]) for name in weights}
    if len(own) <= 3:
        return {name: start[mask].float().numpy() for name, (start, mask) in own.items()}
    several = [(start, mask) for start, mask in own.values() if start.numel() > 1]
    parts = [(start[mask] / start.std().clamp_min(1e-12)).float().numpy() for start, mask in several]
    return {POOLED: np.concatenate(parts)}
