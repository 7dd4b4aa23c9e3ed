"""DCP's BYTE_IO values as plain state, and plain state as BYTE_IO.

Invariant: bytes become a plain value only if that value gives exactly these bytes again; all others are
kept as they are. Bytes that were read from a store are never unpickled here: DCP's planner does that.
"""

from __future__ import annotations

import io
from typing import Any

import torch

from fwstore import InvalidInput, LimitExceeded, encode_state
from fwstore_torch.tensors import adapter

PLAIN_BYTES_MAX = 64 << 10
"""Larger values stay bytes: the plain part of a state is read by every reader."""

OPAQUE = object()
"""What `PlainValues.of` returns for bytes that are no plain value."""


class PlainValues:
    """Remembers what it saw: states repeat the same few values for every parameter."""

    def __init__(self) -> None:
        self._values: dict[bytes, Any] = {}

    def of(self, raw: bytes) -> Any:
        """Return the plain value that some bytes hold, or `OPAQUE`."""
        if len(raw) > PLAIN_BYTES_MAX:
            return OPAQUE
        if raw not in self._values:
            self._values[raw] = _plain_value(raw)
        return self._values[raw]


def to_bytes(value: Any) -> bytes:
    """Return a value in the form that DCP's planners load."""
    target = io.BytesIO()
    torch.save(value, target)
    return target.getvalue()


def _plain_value(raw: bytes) -> Any:
    try:
        value = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - a planner may write anything; what torch cannot load stays bytes
        return OPAQUE
    foreign = adapter.plain(value)
    plain = value if foreign is None else foreign
    try:
        encode_state(plain)
    except (InvalidInput, LimitExceeded):
        return OPAQUE
    return plain if to_bytes(value) == raw else OPAQUE
