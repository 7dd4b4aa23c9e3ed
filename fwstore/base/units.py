"""Sizes, durations and rates as people write them: ``256MiB``, ``10m``, ``90s``, ``10 Gbit/s``.

Invariant: parsing what formatting printed gives the value back within its printed precision.
"""

from __future__ import annotations

import re

from fwstore.base.errors import InvalidInput

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SIZES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "pb": 10**15,
    "eb": 10**18,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1 << 40,
    "pib": 1 << 50,
    "eib": 1 << 60,
}
_DURATIONS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_RATES: dict[str, float] = {
    **{
        f"{scale}bit": 10**power / 8
        for scale, power in (("", 0), ("k", 3), ("m", 6), ("g", 9), ("t", 12))
    },
    **{unit: float(size) for unit, size in _SIZES.items() if unit},
}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Return a number of bytes from ``"256MiB"``, ``"1.5 GB"`` or a plain integer.

    Raises:
        InvalidInput: The text is not a size.
    """
    if isinstance(text, int):
        return text
    match = _NUMBER.fullmatch(text)
    unit = match and _SIZES.get(match[2].lower())
    if match is None or unit is None:
        raise InvalidInput(f"{text!r} is not a size; write for example 256MiB or 1.5GB")
    return round(float(match[1]) * unit)


def parse_duration(text: str | float) -> float:
    """Return seconds from ``"90s"``, ``"10m"``, ``"1.5h"`` or a plain number of seconds.

    Raises:
        InvalidInput: The text is not a duration.
    """
    if isinstance(text, int | float):
        if text >= 0:
            return float(text)
        # Also what is not a number: a wait that is compared with it would never end.
        raise InvalidInput(f"{text!r} is not a duration; it must be 0 or more seconds")
    match = _NUMBER.fullmatch(str(text))
    unit = match and _DURATIONS.get(match[2].lower())
    if match is None or unit is None:
        raise InvalidInput(f"{text!r} is not a duration; write for example 90s, 10m or 2h")
    return float(match[1]) * unit


def parse_rate(text: str) -> float:
    """Return bytes per second from ``"10 Gbit/s"``, ``"300Mbit/s"`` or ``"1.25 GB/s"``.

    Raises:
        InvalidInput: The text is not a rate of more than 0.
    """
    amount, slash, second = text.rpartition("/")
    match = _NUMBER.fullmatch(amount)
    unit = match and _RATES.get(match[2].lower())
    if match is None or not unit or not slash or second.strip() != "s" or not float(match[1]):
        raise InvalidInput(f"{text!r} is not a rate; write for example 10 Gbit/s or 300 MB/s")
    return float(match[1]) * unit


def format_size(size_bytes: float) -> str:
    """Return a size in binary units with three significant digits, for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} EiB"


def format_duration(seconds: float) -> str:
    """Return a duration in the largest fitting unit, for people."""
    for limit, scale, unit in ((1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if abs(seconds) < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def format_rate(bytes_per_second: float) -> str:
    """Return a rate in bits per second with three significant digits, for people: links are sold by the bit."""
    bits = bytes_per_second * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if abs(bits) < 1000:
            return f"{bits:.3g} {unit}"
        bits /= 1000
    return f"{bits:.3g} Tbit/s"
