"""What a command refuses before it writes anything: going on with results that are of other settings, another model or
other data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from lth import data
from lth.data import prints
from lth.experiment import start_tickets
from lth.records import same, tables, tickets
from lth.records.files import read_json
from lth.records.same import Prints
from lth.records.tables import Run, config_of
from lth.run.tasks import runs_of
from lth.settings import names
from lth.settings.config import Config, ConfigError
from lth.settings.ticket import TicketName
from lth.training import identity, models


def refuse_other_settings(config: Config, runs: Sequence[Run]) -> None:
    """ConfigError if a folder of these runs (unless --overwrite), or other arms and trials beside them, hold results of
    other settings, which --name makes possible, or do not say so any more."""
    anew = config.overwrite
    for run in same.around(runs):
        file, ours = run.dumps / "config.json", run in runs
        if anew and ours:
            continue
        if ours and (copy := tables.copied(run)):
            raise ConfigError(f"{copy}, or use --overwrite")
        if read_json(file):
            continue
        if ours and file.exists():
            raise ConfigError(f"{file} is damaged: restore it or move it away, or use --overwrite")
        meaning = config.meaning(run.arm) if run.arm in {one.arm for one in runs} else {}
        theirs = same.settings_of(run.saves / "initial.safetensors") if (run.dumps / "rounds.csv").exists() else ""
        if theirs not in ("", tickets.identity({**config.deciding(), **meaning}, run)):
            beside, way = _beside(run, runs)
            raise ConfigError(
                f"{run.dumps}{beside} holds results of other settings, as its weights say, since {file.name} is "
                f"{'damaged' if file.exists() else 'gone'}: use another --name, or {way}"
            )
    if found := same.other_settings(runs, config, anew):
        run, changes = found
        beside, way = _beside(run, runs)
        differ = ", ".join(f"{key} {before}, now {now}" for key, (before, now) in changes.items())
        raise ConfigError(
            f"{run.dumps}{beside} holds results of other settings ({differ}): use another --name, or {way}"
        )


def refuse_one_place(asked: Iterable[Config]) -> None:
    """ConfigError if two of these experiments have the same folders and start from other tickets: those of one name in
    two places."""
    known: dict[Path, TicketName] = {}
    for config in asked:
        ticket, place = config.ticket, runs_of(config)[0].plots
        if ticket and known.setdefault(place, ticket) != ticket:
            raise ConfigError(
                f"--ticket {known[place]} and --ticket {ticket} have one name, so that their results would be in one "
                f"folder, {place.name}: ask for them with different --root"
            )


def refuse_later_ticket(path: str, config: Config) -> None:
    """ConfigError if the run whose config.json is at `path` began with another round of its ticket, that of these
    settings, than they mean by now: the last that is finished."""
    if config.ticket is None or config.ticket.round is not None:
        return
    began = read_json(Path(path)).get("fingerprint")
    was = began.get("ticket_round") if isinstance(began, dict) else None
    now = str(start_tickets.StartTickets.of(config).first)
    if was not in (None, now):
        raise ConfigError(
            f"--config {path} is of a run that began with round {was} of --ticket {config.ticket}, whose last finished "
            f"round is {now} by now: add --ticket {config.ticket}:{was}"
        )


def _beside(run: Run, runs: Sequence[Run]) -> tuple[str, str]:
    """Where results are, seen from these runs, in words, and what can be done about them."""
    return ("", "--overwrite") if run in runs else (", beside these runs,", "move them away")


def refuse_another_experiment(runs: Sequence[Run], now: Prints, model: nn.Module | None, config: Config) -> None:
    """ConfigError if these runs (unless --overwrite), or other arms and trials beside them, have results of an
    experiment with other fingerprints than `now`, or (an older version's) with weights of other shapes than `model`."""
    anew = config.overwrite
    found = same.other_results(runs, now, anew) or _other_shapes(runs, model, anew)
    if found is None:
        return
    run, differ = found
    beside, way = _beside(run, runs)
    raise ConfigError(
        f"{run.dumps}{beside} holds results of another experiment, {same.said(differ)} since"
        f"{_from_elsewhere(run, config) if 'data' in differ else ''}: use another --name, or {way}"
    )


def _from_elsewhere(run: Run, config: Config) -> str:
    """In brackets, the folder that the data of these results came from, if it is another."""
    about = config_of(run).get("settings", {})
    if "data" not in about:
        return ""
    old = Config.data if about["data"] is None else Path(about["data"])
    return "" if old.resolve() == config.data.resolve() else f" (it was --data {old})"


def _other_shapes(runs: Sequence[Run], model: nn.Module | None, anew: bool) -> tuple[Run, list[str]] | None:
    """Of results without fingerprints, which older versions wrote, at least the shapes of the weights can be seen."""
    if model is None:
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in models.state_of(model).items()}
    for run in same.neighbours(runs[0]):
        before = {} if same.recorded(run) or (anew and run in runs) else tickets.shapes_of(run, "initial")
        if before and before != shapes:
            return run, ["model"]
    return None


def facts(images: data.Images, config: Config) -> dict[str, object]:
    """What config.json says of the data beyond their fingerprint, so that a finished run need not read them again."""
    return {"data_file": prints.of_file(_file(config)), "classes": images.classes, "image_shape": list(images.shape)}


def at_hand(config: Config, run: Run) -> tuple[dict[str, str], nn.Module | None]:
    """The fingerprints of the experiment that the settings mean now, and its model, for a run that is finished: nothing
    is downloaded, and data are only read if their file is not the one that was used. Nothing where nothing is known of
    the results to compare them with."""
    abouts = [config_of(other) for other in same.neighbours(run)]
    about = next((about for about in abouts if about.get("classes") and "data" in about.get("fingerprint", ())), None)
    if about is None:
        return {}, None
    make = models.find(config.arch_type, config.dataset, about["classes"], config.data)
    found, file = {"model": identity.of_model(make)}, _file(config)
    if file.exists():
        alike = about["data_file"] == prints.of_file(file)
        found["data"] = about["fingerprint"]["data"] if alike else data.load(config.dataset, config.data).fingerprint
    return {**found, **start_tickets.fingerprints(config)}, make()


def _file(config: Config) -> Path:
    return names.npz(config.data, names.dataset(config.dataset))
