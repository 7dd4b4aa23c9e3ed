"""The messages of a save: what ranks send to the leader and what it answers.

Invariant: the first byte tells the kind of a message, so a failure or a skip is never taken for a
contribution.
"""

from __future__ import annotations

import msgspec

from fwstore.base.errors import Corrupt
from fwstore.checkpoint.coordinator import decode_failure, encode_failure, wait_for
from fwstore.checkpoint.messages import outcome_key
from fwstore.checkpoint.session import Session
from fwstore.format.root import Totals
from fwstore.format.summary import SnapshotEntry

SKIPPED = b"S"
_PART, _FAILED, _COMMITTED = b"P", b"F", b"C"


class Committed(msgspec.Struct, frozen=True):
    """A save whose record counts: what the log says of it and what it holds."""

    entry: SnapshotEntry
    totals: Totals


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Committed).decode


def part_message(part: bytes) -> bytes:
    """Return a rank's contribution as a message."""
    return _PART + part


def failure_message(error: BaseException) -> bytes:
    """Return the failure of a rank or of the leader as a message."""
    return _FAILED + encode_failure(error)


def committed_message(committed: Committed) -> bytes:
    """Return the leader's good news as a message."""
    return _COMMITTED + _encode(committed)


def read_part(message: bytes, rank: int) -> bytes | None:
    """Return the contribution of a rank, or None when it skipped the save.

    Raises:
        FwstoreError: What made the rank fail.
    """
    kind, content = message[:1], message[1:]
    if kind == SKIPPED:
        return None
    if kind == _FAILED:
        error = decode_failure(content)
        raise type(error)(f"rank {rank} failed: {error.message}")
    return content


def read_outcome(message: bytes) -> Committed | None:
    """Return what the leader committed, or None when the save was skipped.

    Raises:
        FwstoreError: What made the save fail.
    """
    kind, content = message[:1], message[1:]
    if kind == SKIPPED:
        return None
    if kind == _FAILED:
        raise decode_failure(content)
    try:
        return _decode(content)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the leader sent a malformed outcome: {error}") from error


def wait_outcome(session: Session, save: int) -> Committed | None:
    """Wait for the leader's answer to a save.

    Raises:
        FwstoreError: What made the save fail; `Unavailable` when the leader does not answer in time.
    """
    runtime = session.access.runtime
    deadline = runtime.clock.monotonic() + runtime.limits.commit_timeout_s
    _, message = wait_for(session.coordinator, (outcome_key(save),), runtime, deadline=deadline)
    return read_outcome(message)
