"""What survives: how many weights of each layer, which of the first layer, and the initial values of the survivors.

The last two are drawn from the tickets under saves/, and left out where there are none.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from lth.analysis import labels, verdict
from lth.plots import style
from lth.pruning import Masks
from lth.records import tables
from lth.records.store import Store, Ticket
from lth.records.tables import Run
from lth.settings.arms import ARMS

ACROSS = 3  # panels side by side
ROUNDING = 3  # weights by which rounding to whole ones, round after round, makes equal rates differ
MAPS = 12  # rounds whose pixels are drawn
FILTERS, CHANNELS = 24, 3  # of a layer, and of a filter, that are drawn
LINES, BINS = 5, 61  # rounds whose weights are drawn, and how finely
POOLED = "all layers"


def layers(runs: Sequence[Run], file: Path | None = None) -> Figure | None:
    """Percent of each layer's weights that survive, a row per layer and a column per round; arms that keep the same
    counts share a panel. None where all layers are pruned at one rate."""
    table = tables.combined(runs, "layers")
    totals = table.groupby("layer")["total"].first()
    by_arms = _remaining_by_arms(table)
    if not any(_uneven(remaining, totals) for remaining in by_arms.values()):
        return None
    lowest = min(remaining.to_numpy()[remaining.to_numpy() > 0].min() for remaining in by_arms.values())
    norm, across = LogNorm(min(lowest, 99.0), 100), min(len(by_arms), ACROSS)
    down = math.ceil(len(by_arms) / across)
    height = 1.0 + down * max(0.5 + 0.17 * max(map(len, by_arms.values())), 2.0)
    with style.sheet(file, height, runs, "surviving weights by layer") as figure:
        panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
        for axes in panels[len(by_arms) :]:
            axes.remove()
        for axes, (arms, remaining) in zip(panels, by_arms.items(), strict=False):
            everything = len(by_arms) == 1 and arms.count(",") > 2
            axes.set_title("all arms" if everything else textwrap.fill(arms, 90 // across))
            mesh = _map(axes, remaining, norm, small=across > 1)
            names = [f"{name.removesuffix('.weight')} ({totals[name]:,})" for name in remaining.index]
            axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
            axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())
        bar = figure.colorbar(mesh, ax=panels[: len(by_arms)], label="weights remaining (%)", aspect=40, pad=0.01)
        bar.ax.yaxis.set_major_locator(LogLocator(10, (1, 2, 5), numticks=9))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: labels.percent(value)))
    return figure


def _remaining_by_arms(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What each arm keeps, in percent (layers, rounds), mean over trials, by the names of the arms that keep it."""
    result: dict[str, pd.DataFrame] = {}
    for arm in verdict.in_order(table["arm"]):
        of_arm = table[table["arm"] == arm]
        remaining = of_arm.pivot_table(index="layer", columns="round", values="remaining", sort=False)
        same = ""  # the arms that keep the same counts in the rounds that both have
        for arms, other in result.items():
            both = remaining.columns.intersection(other.columns)
            if remaining.index.equals(other.index) and np.allclose(remaining[both], other[both]):
                same = arms
        longer = max(remaining, result.pop(same, remaining), key=lambda each: each.shape[1])
        result[f"{same}, {arm}" if same else arm] = longer
    return result


def _uneven(remaining: pd.DataFrame, totals: pd.Series) -> bool:
    """Whether the layers are pruned at different rates."""
    rounding = 100 * ROUNDING / totals[remaining.index].min()
    return bool((remaining.max() - remaining.min() > np.maximum(0.03 * remaining.max(), rounding)).any())


def _map(axes: Axes, remaining: pd.DataFrame, norm: LogNorm, small: bool) -> Any:
    """The percent as colours, and in numbers where they fit; layers without weights are white."""
    values = remaining.to_numpy()
    mesh = axes.pcolormesh(np.ma.masked_less_equal(np.nan_to_num(values), 0), cmap="viridis", norm=norm, linewidth=0)
    if values.shape[1] <= (0 if small else 15):
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                ink = "black" if value <= 0 or norm(value) > 0.55 else "white"
                spot: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "color": ink}
                axes.text(column + 0.5, row + 0.5, labels.percent(value), **spot)
    axes.set_facecolor("white")
    axes.grid(False)
    axes.set_ylim(len(values), 0)
    numbers = range(0, values.shape[1], math.ceil(values.shape[1] / (5 if small else 15)))
    axes.set_xticks([number + 0.5 for number in numbers], [str(remaining.columns[number]) for number in numbers])
    axes.set_xlabel("round")
    return mesh


def _with_tickets(runs: Sequence[Run], starts: Sequence[str] = ()) -> tuple[Run, dict[int, float]] | None:
    """The first run of the first arm (among `starts`, if given) that has tickets of finished rounds, with the percent
    of the weights that each of these rounds has."""
    arms = verdict.in_order([run.arm for run in runs if not starts or run.arm in starts])
    for run in sorted((run for run in runs if run.arm in arms), key=lambda run: (arms.index(run.arm), run.seed)):
        saved = set(Store(run).files_by_round("ticket"))
        if saved and (run.saves / "initial.safetensors").exists():
            rounds = tables.table(run, "rounds").set_index("round")["remaining"]
            if remaining := {number: share for number, share in rounds.items() if number in saved}:
                return run, remaining
    return None


def first_layer(runs: Sequence[Run], file: Path | None = None) -> Figure | None:
    """What the first layer looks at: how many weights each pixel keeps, or the filters with their masks. None where no
    layer reads the images."""
    if (source := _with_tickets(runs)) is None:
        return None
    run, remaining = source
    masks, image = Store(run).ticket(min(remaining)).masks, tables.image_shape(run)
    name = input_layer(masks, image) if image else ""
    if not name:
        return None
    return _filters(run, remaining, name, file) if masks[name].ndim == 4 else _pixels(run, remaining, name, image, file)


def input_layer(masks: Masks, image: tuple[int, ...]) -> str:
    """The name of the first layer that reads images of the shape `image` (C, H, W): with filters, or, where there is
    none, pixel by pixel. Empty where no layer reads them."""
    filters = [name for name, mask in masks.items() if mask.ndim == 4 and mask.shape[1] == image[0]]
    matrices = [name for name, mask in masks.items() if mask.ndim == 2 and mask.shape[1] == math.prod(image)]
    return next(iter([*filters, *matrices]), "")


def _pixels(run: Run, remaining: Mapping[int, float], name: str, image: tuple[int, ...], file: Path | None) -> Figure:
    """How many weights each pixel keeps, relative to the round's average: small maps, one per round, on one scale that
    ends where the last round does, which has the largest contrast."""
    maps = {}
    for number in labels.spread(list(remaining), MAPS):
        counts = Store(run).ticket(number).masks[name].sum(0).view(image).sum(0).numpy()
        maps[number] = counts / max(counts.mean(), 1e-12)
    scale = TwoSlopeNorm(1.0, 0.0, float(np.clip(np.quantile(maps[max(maps)], 0.995), 1.5, 6.0)))
    rows = math.ceil(len(maps) / 6)
    with style.sheet(file, 1.1 + 1.17 * rows, [run], f"first layer ({run.arm}, seed {run.seed})") as figure:
        panels = figure.subplots(rows, math.ceil(len(maps) / rows), squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for (number, shares), axes in zip(maps.items(), panels.flat, strict=False):
            picture = axes.imshow(shares, cmap="RdBu_r", norm=scale, interpolation="nearest")
            axes.set_title(f"round {number}: {labels.percent(remaining[number])}%", fontsize=8)
        bar: dict[str, Any] = {"orientation": "horizontal", "aspect": 50, "pad": 0.03, "shrink": 0.6}
        figure.colorbar(picture, ax=panels, label="weights kept, relative to the average pixel", extend="max", **bar)
    return figure


def _filters(run: Run, remaining: Mapping[int, float], name: str, file: Path | None) -> Figure:
    """The first filters at the start of the first and of the last round, a column per filter, a row per channel."""
    chosen = sorted({min(remaining), max(remaining)})
    tickets = {number: Store(run).ticket(number) for number in chosen}
    total, channels, high, wide = tickets[chosen[0]].masks[name].shape
    count, depth = min(total, FILTERS), min(channels, CHANNELS)
    started = tickets[chosen[0]]
    magnitudes = started.start[name][started.masks[name]].abs().float()
    # Not the largest magnitude: a few large ones would grey all others.
    limit = (float(np.quantile(magnitudes, 0.97)) if len(magnitudes) else 0.0) or 1.0
    heading = f"filters of the first layer at the start ({run.arm}, seed {run.seed})"
    height = 1.1 + len(chosen) * (0.35 + 6.0 * depth * (high + 1) / (max(count, 12) * (wide + 1)))
    with style.sheet(file, min(height, 9.0), [run], heading) as figure:
        panels = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
        for axes, (number, ticket) in zip(panels, tickets.items(), strict=True):
            mask = ticket.masks[name][:count, :depth]
            weights = tiled(ticket.start[name][:count, :depth].detach().float().where(mask, math.nan))
            axes.imshow(tiled(mask.float().where(~mask, math.nan)), cmap="Greys", vmin=-0.2, vmax=1)
            drawn = axes.imshow(weights, cmap="cividis", vmin=-limit, vmax=limit)  # whose lightness tells signs apart
            rows = [place * (high + 1) + (high - 1) / 2 for place in range(depth)]
            axes.set_yticks(rows, list("RGB") if channels == 3 else [""] * depth, fontsize=7)
            axes.set_xticks([])
            axes.grid(False)
            axes.set_facecolor("white")
            share = labels.percent(100 * ticket.masks[name].float().mean().item())
            all_weights = f"{labels.percent(remaining[number])}% of all weights remaining"
            axes.set_title(f"round {number}, {all_weights}, {share}% of this layer's", fontsize=8)
        figure.colorbar(drawn, ax=list(panels), label="weight (grey: pruned)", aspect=25, pad=0.01, extend="both")
        filters = f"{FILTERS} of {total} filters" if total > FILTERS else f"all {total} filters"
        shown = f"{CHANNELS} of {channels}" if channels > CHANNELS else f"{channels}"
        figure.supxlabel(filters + (f", their {shown} channels below each other" if channels > 1 else ""), fontsize=8)
    return figure


def tiled(filters: Tensor) -> np.ndarray:
    """Filters (O, C, h, w) as one picture: a column per filter, a row per channel, NaN in the gaps."""
    outputs, channels, high, wide = filters.shape
    apart = np.pad(filters.numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=math.nan)
    return apart.transpose(1, 2, 0, 3).reshape(channels * (high + 1), outputs * (wide + 1))[:-1, :-1]


def initial_weights(runs: Sequence[Run], file: Path | None = None) -> Figure | None:
    """How the weights that survive until a round were distributed at the start, one line per round (Frankle & Carbin,
    Appendix F): a panel per layer, or, for models with many layers, all together in units of their layer's spread."""
    source = _with_tickets(runs, [arm for arm, facts in ARMS.items() if facts.start == "original"])
    if source is None or len(source[1]) < 2:
        return None
    run, remaining = source
    chosen = labels.spread(list(remaining), LINES)
    first = Store(run).ticket(chosen[0])
    weights = list(first.masks)  # later rounds may have more: biases that a rule prunes
    samples = {number: _starts(Store(run).ticket(number), weights) for number in chosen}
    names = list(samples[chosen[0]])
    heading = f"{'rewound' if first.origin == 'rewind' else 'initial'} weights of the survivors"
    with style.sheet(file, 3.3, [run], f"{heading} ({run.arm}, seed {run.seed})") as figure:
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            samples_left = [values for number in chosen if len(values := samples[number][name])]
            reaches = [float(np.quantile(np.abs(values), 0.995)) for values in samples_left]
            limit = 1.1 * max(reaches, default=0.0) or 1.0
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
    return figure


def _starts(ticket: Ticket, weights: Sequence[str]) -> dict[str, np.ndarray]:
    """The values that survivors start from, by layer, or pooled where there are more than three layers."""
    layers = {name.removesuffix(".weight"): (ticket.start[name], ticket.masks[name]) for name in weights}
    if len(layers) <= 3:
        return {name: start[mask].float().numpy() for name, (start, mask) in layers.items()}
    several = [(start, mask) for start, mask in layers.values() if start.numel() > 1]
    parts = [(start[mask] / start.std().clamp_min(1e-12)).float().numpy() for start, mask in several]
    return {POOLED: np.concatenate(parts)}
