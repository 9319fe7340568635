"""Published claims: what a paper says beside what is measured here. Uses all of lth but its front doors.

published.py is the table, and the only place to touch for a new one; claim.py says what a claim is; forms.py turns one
into settings; cost.py says what that will take; judge.py asks the records of the runs; report.py prints and writes what
came of it. reproduce.py is the command.
"""

from lth.claims.claim import Claim, Statement
from lth.claims.published import CLAIMS

__all__ = ["CLAIMS", "Claim", "Statement"]
