"""docs/flags.md, made from the settings: PYTHONPATH=. python tests/flag_page.py >docs/flags.md."""

from lth.settings.arms import ARMS, CONTROLS, CRITERIA
from lth.settings.flags import EVERY, PRESETS, make_parser

HEAD = """# All flags

Made from the settings by `tests/flag_page.py`; `python main.py --help` shows the same. Hyphens may be used
(`--prune-type`); `--no-NAME` turns a switch off. A duration is `5` or `5ep` (epochs), `500it` (iterations) or `1%`
(of a round). `combine_plots.py --help` and `reproduce.py --help` list the flags of the other programs.
"""


def cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    lines = [HEAD]
    for group in make_parser()._action_groups:
        actions = [action for action in group._group_actions if "--help" not in action.option_strings]
        if not actions:
            continue
        lines += [f"## {(group.title or '').capitalize()}", "", "| flag | meaning |", "| --- | --- |"]
        for action in actions:
            names = ", ".join(f"`{name}`" for name in action.option_strings if not name.startswith("--no-"))
            lines.append(f"| {names} | {cell(action.help or '')} |")
        lines.append("")
    arms = {name: arm.help for name, arm in ARMS.items()}
    arms |= {f"ARM_{name}": control.help for name, control in CONTROLS.items()}
    lines += ["## Arms", "", "[arms.md](arms.md) has their papers.", "", "| `--prune_type` | between rounds |"]
    lines += ["| --- | --- |", *(f"| `{name}` | {cell(help)} |" for name, help in arms.items()), ""]
    lines += ["## Criteria", "", "The weights with the lowest values are pruned.", "", "| `--prune_method` | value |"]
    lines += ["| --- | --- |", *(f"| `{name}` | {cell(score.__doc__ or '')} |" for name, score in CRITERIA.items()), ""]
    lines += ["## Presets", "", f"All have `{EVERY}`; flags beside a preset win.", "", "| `--preset` | flags |"]
    lines += ["| --- | --- |", *(f"| `{name}` | `{flags}` |" for name, flags in PRESETS.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
