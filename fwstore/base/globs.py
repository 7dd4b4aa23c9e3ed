"""Globs over names with segments: of tensors, of runs.

Invariant: ``*`` and ``?`` stay within a segment, ``**`` crosses segments, everything else means itself.
"""

from __future__ import annotations

import re

_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_MEANINGS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def glob_pattern(glob: str) -> str:
    """Return the regular expression of a glob, to be matched with whole names."""
    return "".join(_MEANINGS.get(token, re.escape(token)) for token in _TOKENS.findall(glob))


def glob_matches(glob: str, name: str) -> bool:
    """Return whether a glob means a name."""
    return re.fullmatch(glob_pattern(glob), name) is not None
