"""What may befall a request on its way, and plans that say which request it befalls: data.

Invariant: a plan with the same requests in the same order makes the same trouble.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Fault = Literal[
    # The server never hears of the request; the connection is closed, reset, or silent.
    "drop",
    "reset",
    "stall",
    # The server does what was asked, and no answer comes.
    "lose",
    "lose_reset",
    "lose_stall",
    # The server does it when `Proxy.land` is called; no answer comes.
    "late",
    # The answer breaks off: within its head, in the middle or before the last byte of its body; or falls silent.
    "cut_head",
    "cut_half",
    "cut",
    "freeze",
    # The answer is complete but for half of its bytes, or the last one, of which it does not speak.
    "halve",
    "short",
    # A range is ignored and the whole object sent.
    "whole",
    # One bit of the body changes, on the way back or on the way there.
    "flip",
    "flip_sent",
    # Checksums and tags are taken out of the answer; those of a request are signed.
    "strip",
    # The server gets the request twice and the second answer is passed on; or once more at `Proxy.land`.
    "twice",
    "again",
]


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        number: From 1.
        method: The HTTP method.
        path: Path and query.
        headers: Names in lower case.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """An answer in place of the server's, which never hears of the request."""

    status: int
    body: bytes = b""


Trouble = Fault | Answer
Plan = Callable[[Request], Trouble | None]

BUSY = Answer(503)
SLOW_DOWN = Answer(
    503,
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>",
)
BROKEN = Answer(500, b"<Error><Code>InternalError</Code><Message>Try again.</Message></Error>")
# What hotel networks and captive portals say to everything.
HTML = Answer(200, b"<!DOCTYPE html><html><body>Please accept our terms of use.</body></html>")
EMPTY = Answer(200)


def no_trouble(request: Request) -> Trouble | None:
    """Let everything pass."""
    return None


@dataclass
class Rule:
    """A plan: some requests, found by what they ask, meet some trouble.

    Attributes:
        trouble: What befalls them.
        method: A pattern of the whole method.
        key: A pattern that the path and query contain.
        after: How many of these requests pass first.
        times: How many of those behind them it befalls.
    """

    trouble: Trouble
    method: str = ".*"
    key: str = ""
    after: int = 0
    times: float = 1
    met: int = 0

    def __call__(self, request: Request) -> Trouble | None:
        """Return what befalls a request."""
        if not re.fullmatch(self.method, request.method) or not re.search(self.key, request.path):
            return None
        self.met += 1
        return self.trouble if 0 < self.met - self.after <= self.times else None

    @property
    def happened(self) -> bool:
        """Whether any request met it."""
        return self.met > self.after


def any_of(*rules: Plan) -> Plan:
    """Return a plan by which every request meets what the first rule has for it."""

    def plan(request: Request) -> Trouble | None:
        found = [trouble for trouble in (rule(request) for rule in rules) if trouble is not None]
        return found[0] if found else None

    return plan
