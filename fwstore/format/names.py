"""Names of runs and datasets, as users choose them.

Invariant: an accepted name is a safe object key on every store: no empty, dotted or reserved segment.
"""

from __future__ import annotations

import re

from fwstore.base.errors import InvalidInput

NAME_BYTES_MAX = 400
# Below the 255 bytes of a file name: the catalog adds the generation and a mark to the last segment.
SEGMENT_BYTES_MAX = 230
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def validate_name(name: object) -> str:
    """Return the name when it may name a run or dataset.

    Raises:
        InvalidInput: The name breaks a rule; the message says which.
    """
    if not isinstance(name, str) or not name:
        raise InvalidInput("a name must be a non-empty text such as 'meta-llama/Llama-3.1-70B'")
    if len(name) > NAME_BYTES_MAX:
        raise InvalidInput(
            f"name {name[:40]!r}... has {len(name)} characters; at most {NAME_BYTES_MAX} are allowed"
        )
    for segment in name.split("/"):
        if not _SEGMENT.fullmatch(segment):
            raise InvalidInput(
                f"name {name!r} has the segment {segment!r}; segments begin with a letter or digit "
                "and hold only letters, digits, '.', '_' and '-'"
            )
        if len(segment) > SEGMENT_BYTES_MAX:
            raise InvalidInput(
                f"name {name[:40]!r}... has a segment of {len(segment)} characters; at most "
                f"{SEGMENT_BYTES_MAX} are allowed between two '/'"
            )
        if segment.endswith("."):
            raise InvalidInput(f"name {name!r} has a segment that ends with a dot")
    return name
