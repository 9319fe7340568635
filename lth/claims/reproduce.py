"""Reproduce published claims: statements of papers, measured here with intervals, and whether they hold.

    python reproduce.py --list
    python reproduce.py lenet --quick
    python reproduce.py lenet --trials 3 --jobs 2 --report docs/reproduction.md

All flags of main.py may follow, and repeating a command continues where it stopped. Every table names --quick and flags
that change the experiment. The claims are in lth/claims/published.py.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lth.claims import CLAIMS, claim
from lth.claims.claim import Form
from lth.settings import flags
from lth.settings.checks import ConfigError, collect_errors, did_you_mean
from lth.settings.names import npz_file

if TYPE_CHECKING:
    from lth.commands import forecast

    Costs = dict[tuple[object, ...], forecast.Cost]  # measured so far, by the settings that matter


def parser() -> argparse.ArgumentParser:
    """The flags of main.py, and this script's."""
    parser = flags.make_parser("reproduce.py")
    parser.usage = f"{parser.prog} NAME [NAME ...] [--quick] [--finished] [--report FILE] [flags of main.py]"
    parser.description = parser.as_called(__doc__ or "")
    own = parser.add_argument_group("claims")
    own.add_argument("--list", action="store_true", help="list the claims, and how long each takes here")
    own.add_argument(
        "--quick", action="store_true", help="a form of less than three minutes; not the published experiment"
    )
    own.add_argument("--finished", action="store_true", help="train nothing: judge by the rounds that are finished")
    report = "write or update each claim's section of this Markdown file"
    own.add_argument("--report", type=flags.argparse_type(text_file), metavar="FILE", help=report)
    return parser


def text_file(text: str) -> Path:
    """A file of text, existing or new."""
    file = Path(text)
    try:
        file.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"must be a file of text or a new one ({error})") from None
    return file.resolve()


def main(argv: Sequence[str]) -> int:
    """Measure the claims that the command line names, one after another, or list them."""
    command_line = parser()
    options, rest = command_line.parse_known_args(argv)
    settings = vars(options)
    listing, quick, finished, file = (settings.pop(name) for name in ("list", "quick", "finished", "report"))
    names = list(dict.fromkeys(word for word in rest if not word.startswith("-")))
    problems = flags.unknown_problems(command_line, [word for word in rest if word.startswith("-")])
    known_claims = ", ".join(CLAIMS)
    unknown = [name for name in names if name not in CLAIMS]
    problems += [f"there is no claim {name!r}{did_you_mean(name, CLAIMS)} (known: {known_claims})" for name in unknown]
    if not names and not listing:
        problems.append(f"name a claim ({known_claims}), or give --list")
    forms = []
    for name in [name for name in names if name in CLAIMS] or CLAIMS:
        with collect_errors(problems):
            forms.append(claim.form(CLAIMS[name], flags.as_argv(settings), quick))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return list_claims(forms) if listing else measure(forms, finished, file, argv)


def list_claims(forms: Sequence[Form]) -> int:
    """A line per claim: its name, the paper and figure, and how long it takes here."""
    costs: Costs = {}
    width = max(len(form.slug) for form in forms)
    for form in forms:
        needs = f" (needs {form.claim.needs})" if form.claim.needs and not form.quick else ""
        label = f"{form.slug:{width}}  {form.claim.paper}, {form.claim.where}{needs}"
        print(f"{label}: {duration(form, costs)}", flush=True)
    print("times: estimated from a few steps of each dense network; add --quick for the quick forms")
    return 0


def measure(forms: Sequence[Form], finished: bool, file: Path | None, argv: Sequence[str]) -> int:
    """Train what is missing, unless only `finished` rounds are to be judged; print the tables and write them."""
    from lth.claims import findings
    from lth.commands import session
    from lth.experiment import TrialError

    failure = None
    for form in forms:
        if not finished:
            print(f"{form.slug}: {duration(form, {})} if nothing is finished yet", flush=True)
        for config in form.configs.values():
            try:
                session.check_finished(config) if finished else session.run(config, command=argv)
            except (session.TrialsFailed, TrialError) as error:  # the others are complete and can be looked at
                failure = error
        if any(config.dry_run for config in form.configs.values()):
            continue
        results = findings.findings(form)
        print(findings.text(form, results, shutil.get_terminal_size((100, 24)).columns))
        written = [findings.write(form, results), *(findings.renew(file, form, results) if file else [])]
        print("\n".join(["", "written:", *(f"  {path}" for path in written), ""]), flush=True)
    if failure:
        raise failure
    return 0


def duration(form: Form, costs: Costs) -> str:
    """`18 trainings, at most 3 minutes here`, from a few measured steps and evaluations of its networks, and with these
    jobs. Downloads nothing. `costs` keeps the measurements for the next claim."""
    from lth.commands import device as devices
    from lth.commands import forecast, loop, prepare

    total, count = 0.0, sum(map(claim.trainings, form.configs.values()))
    for config in (prepare.with_valid_size(replace(config, ticket=None)) for config in form.configs.values()):
        if not npz_file(config.data, config.dataset).exists():
            return f"{count} trainings (no estimate: the images of {config.dataset} are not here)"
        key = (config.arch_type, config.dataset, config.batch_size, config.precision, config.gpu, config.augment)
        images, problem = prepare.prepare(config)
        device, _ = devices.choose(config.gpu)
        if key not in costs:
            costs[key] = forecast.measure_cost(config, images, problem, device)
        at_once = min(loop.process_count(config), config.trials) if device.type == "cpu" else 1
        total += claim.trainings(config) * costs[key].training(config, images) / at_once
    return f"{count} trainings, at most {forecast.in_words(total / 60)} here"
