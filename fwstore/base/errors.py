"""The error tree: one class per reaction of the caller.

Invariant: every error that leaves a public function is an `FwstoreError`; foreign errors are
translated at one seam (the store adapters, the importers) and chained with ``from``.

    FwstoreError
    +-- NotFound (KeyError)         ask for something else
    |   +-- Expired                 it was there; retention or gc removed it
    +-- AlreadyExists               choose another name or step
    +-- Conflict                    someone else changed it first: read again, decide again
    |   +-- Fenced                  a newer job owns the run, or may own it: stop writing
    +-- Unavailable                 try again later
    +-- Corrupt                     bytes are not what was written: restore them from elsewhere
    +-- InvalidInput (ValueError)   the caller must change its arguments
    |   +-- UnsupportedValue        a value in the state cannot be stored
    +-- LimitExceeded               raise the limit or make it smaller
    +-- Unsupported                 this version, store or platform cannot do that
    +-- PermissionDenied            fix the credentials
    +-- InternalError               a bug of fwstore: report it
"""

from __future__ import annotations

from typing import ClassVar


class FwstoreError(Exception):
    """Base of all errors of fwstore.

    Args:
        message: What happened, to which object, and what to do about it.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class NotFound(FwstoreError, KeyError):
    """The named thing does not exist."""

    code = "not_found"


class Expired(NotFound):
    """The named thing existed and was removed by retention or garbage collection."""

    code = "expired"


class AlreadyExists(FwstoreError):
    """A thing of that name exists and is not replaced."""

    code = "already_exists"


class Conflict(FwstoreError):
    """Another actor changed the state first; read it again before deciding again."""

    code = "conflict"


class Fenced(Conflict):
    """A newer job owns this run, or may own it; this writer must stop."""

    code = "fenced"


class Unavailable(FwstoreError):
    """A store or peer did not answer in time; the same call may succeed later."""

    code = "unavailable"


class Corrupt(FwstoreError):
    """Stored bytes differ from what was written."""

    code = "corrupt"


class InvalidInput(FwstoreError, ValueError):
    """An argument is wrong; the message says which and why."""

    code = "invalid_input"


class UnsupportedValue(InvalidInput):
    """A value in the state has no stored form; the message names its key path."""

    code = "unsupported_value"


class LimitExceeded(FwstoreError):
    """Something is larger than a documented limit."""

    code = "limit_exceeded"


class Unsupported(FwstoreError):
    """This version, store or platform cannot do what was asked."""

    code = "unsupported"


class PermissionDenied(FwstoreError):
    """The credentials in use do not allow the operation."""

    code = "permission_denied"


class InternalError(FwstoreError):
    """An invariant of fwstore itself is broken."""

    code = "internal_error"
