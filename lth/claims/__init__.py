"""Published claims: statements of papers, measured here. Uses all of lth but its front doors.

published.py and rivals.py are the table, and the only place to touch for a new one; claim.py says what a claim is, and
turns one into settings; findings.py judges the records of the runs, prints and writes what was found. reproduce.py is
the script, and estimates how long a claim takes.
"""

from lth.claims.claim import Claim, Statement
from lth.claims.published import CLAIMS

__all__ = ["CLAIMS", "Claim", "Statement"]
