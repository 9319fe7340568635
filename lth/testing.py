"""For tests of training loops: `assert_ticket` in pytest."""

from __future__ import annotations

from typing import Any

from lth.api.audit import AuditError, audit


def assert_ticket(model: Any, ticket: Any = None, **options: Any) -> None:
    """AssertionError, with the sentences of `lth.audit`, unless `model` is the ticket. Its `ticket` and `options` are
    those of `lth.audit`."""
    __tracebackhide__ = True
    try:
        audit(model, ticket, **options)
    except AuditError as error:
        raise AssertionError(str(error)) from None
