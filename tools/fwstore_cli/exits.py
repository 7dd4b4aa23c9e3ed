"""Exit codes of every command, so that scripts can tell what to do next.

Invariant: a code means one reaction of the caller and never changes its meaning.
"""

from __future__ import annotations

import enum
from typing import Self

from fwstore import (
    AlreadyExists,
    Conflict,
    Corrupt,
    FwstoreError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)


class ExitCode(enum.IntEnum):
    """What a command reports to the shell."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Attach what the code means, for docs and help."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "done"
    BUG = 1, "an error inside fwstore: report it"
    USAGE = 2, "wrong arguments or unusable input: change them"
    NOT_FOUND = 3, "no such repository, run, step, tensor or file, or it has expired"
    CONFLICT = 4, "it exists already, or someone else changed it first: look again, then decide"
    CORRUPT = 5, "stored bytes are not what was written: restore them from elsewhere"
    UNAVAILABLE = 6, "the store did not answer in time: try again later"
    DENIED = 7, "the credentials do not allow it"
    TOO_LARGE = 8, "larger than a documented limit, or the store is full"
    UNSUPPORTED = 9, "this version, or this store, cannot do that"
    INTERRUPTED = 130, "interrupted; nothing half-written is visible"


_OF_ERROR: tuple[tuple[type[FwstoreError], ExitCode], ...] = (
    (NotFound, ExitCode.NOT_FOUND),
    (AlreadyExists, ExitCode.CONFLICT),
    (Conflict, ExitCode.CONFLICT),
    (Unavailable, ExitCode.UNAVAILABLE),
    (Corrupt, ExitCode.CORRUPT),
    (InvalidInput, ExitCode.USAGE),
    (LimitExceeded, ExitCode.TOO_LARGE),
    (Unsupported, ExitCode.UNSUPPORTED),
    (PermissionDenied, ExitCode.DENIED),
)


def exit_code(error: FwstoreError) -> ExitCode:
    """Return the exit code of an error."""
    for kind, code in _OF_ERROR:
        if isinstance(error, kind):
            return code
    return ExitCode.BUG


def exit_table() -> str:
    """Return the codes and their meanings as text."""
    return "\n".join(f"{code.value:>3}  {code.meaning}" for code in ExitCode)
