"""What the scripts of this folder share: how a program ends, how results are shown. The work is done in lth/."""

from lth.commands.command import conclude, exit_code, perform, side_by_side

__all__ = ["conclude", "exit_code", "perform", "side_by_side"]
