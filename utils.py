"""What the scripts in this folder share; the code is in lth/."""

from lth.commands.command import conclude, exit_code, perform, side_by_side

__all__ = ["conclude", "exit_code", "perform", "side_by_side"]
