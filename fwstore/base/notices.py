"""What people should know and what must not stop the work that it is about.

Invariant: telling never raises, also where warnings are errors.
"""

from __future__ import annotations

import logging
import warnings


def tell(message: str, *, stacklevel: int = 1) -> None:
    """Warn; where warnings are errors, write a line to the log instead."""
    try:
        warnings.warn(message, stacklevel=stacklevel + 1)
    except UserWarning:
        # The save or the resume that this is about goes well without what the warning tells of.
        log(message)


def log(message: str) -> None:
    """Write a line to the log: by default it appears on stderr."""
    logging.getLogger("fwstore").warning(message)
