"""numpy scalars and arrays inside the plain state: those that are not tensors, such as text and dates.

Invariant: an array comes back with its dtype, byte order, shape and bytes; nothing is created whose
size the stored bytes do not prove.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from fwstore.base.errors import Corrupt, UnsupportedValue

_UNITS = "Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as"
_DTYPE = re.compile(
    r"[<>|](?:b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,9}"
    rf"|[mM]8(?:\[[0-9]{{0,9}}(?:{_UNITS})\])?)"
)
_CODE_POINT_MAX = 0x10FFFF


def array_fields(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Return dtype, bytes in C order and shape of an array.

    Raises:
        UnsupportedValue: Its dtype holds objects, fields or platform-dependent floats.
    """
    name = array.dtype.str
    if not _DTYPE.fullmatch(name):
        raise UnsupportedValue(f"a numpy value of dtype {array.dtype}")
    return name, array.tobytes(), *array.shape


def array_of_fields(name: str, content: bytes, *shape: int) -> np.ndarray[Any, Any]:
    """Return the array of its stored fields, writable.

    Raises:
        Corrupt: The fields do not fit together.
    """
    if type(name) is not str or not _DTYPE.fullmatch(name):
        raise Corrupt("a stored array has an unknown dtype")
    dtype = np.dtype(name)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise Corrupt("a stored array has a malformed shape")
    # Elements of no bytes prove nothing about their number, so only a single one may have none.
    if math.prod(shape) * dtype.itemsize != len(content) or math.prod(shape) > max(len(content), 1):
        raise Corrupt("a stored array has a length that does not fit its shape")
    array = np.frombuffer(bytearray(content), np.uint8)
    _check_content(array, dtype)
    return np.ndarray(shape, dtype, array.data)


def scalar_fields(scalar: np.generic) -> tuple[str, bytes]:
    """Return dtype and bytes of a numpy scalar.

    Raises:
        UnsupportedValue: Its dtype has no stored form.
    """
    name, content = array_fields(np.asarray(scalar))
    return name, content


def scalar_of_fields(name: str, content: bytes) -> np.generic:
    """Return the numpy scalar of its stored fields.

    Raises:
        Corrupt: The fields do not fit together.
    """
    scalar: np.generic = array_of_fields(name, content).reshape(1)[0]
    return scalar


def _check_content(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> None:
    """Refuse bytes that numpy would only stumble over when an element is read."""
    if dtype.kind == "U" and array.size:
        codes = array.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if codes.max() > _CODE_POINT_MAX:
            raise Corrupt("a stored array of text holds an invalid character")
    if dtype.kind == "b" and array.size and array.max() > 1:
        raise Corrupt("a stored array of truth values holds another value")
