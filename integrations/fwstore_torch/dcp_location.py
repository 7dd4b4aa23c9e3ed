"""Which checkpoint a DCP ``checkpoint_id`` names.

Invariant: one id names one (repository, run, step) on every rank and in every process, found without
I/O. Below a repository, ids that differ only in the separator or in leading zeros of the step are one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fwstore import InvalidInput

RUN_NAME = "checkpoint"
"""The run of an id that names a directory or URL and nothing in it."""

STEP = 0
"""The step of such an id; saving again replaces it."""

CheckpointId = str | os.PathLike[str]

_SCHEMES = frozenset({"file", "memory", "s3", "gs", "az"})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FRAGMENT = re.compile(r"(?P<url>.+)#(?P<run>[^#@]+)(?:@(?P<step>[0-9]+))?", re.DOTALL)
_NUMBERED = re.compile(r"(?P<name>.*?)[-_.]?(?P<step>[0-9]{1,12})", re.DOTALL)


@dataclass(frozen=True)
class Location:
    """The place of one checkpoint.

    Attributes:
        shown: The id as DCP logs it.
        url: The repository.
        run: The run in it.
        step: The step; None is the newest to a reader and the one after the newest to a writer.
    """

    shown: str | Path
    url: str
    run: str = RUN_NAME
    step: int | None = STEP

    def of_rank(self, rank: int) -> Location:
        """Return where one rank of a save without collectives keeps its own checkpoint."""
        return replace(self, run=f"{self.run}/rank-{rank}")


def locate(checkpoint_id: CheckpointId, repository: CheckpointId | None = None) -> Location:
    """Return the place that an id names.

    Args:
        checkpoint_id: A directory or URL, or one followed by ``#run`` or ``#run@step``. Only in a str is
            ``#`` looked for; a path object always names a directory.
        repository: A directory or URL below which the id must lie: the id then names a run and a step
            of that repository.

    Raises:
        InvalidInput: The scheme is foreign, or the id does not lie below the repository.
    """
    shown = _shown(checkpoint_id)
    if not is_location(checkpoint_id):
        raise InvalidInput(f"{shown} has a scheme that fwstore has no store for")
    if repository is not None:
        return _below(checkpoint_id, repository)
    fragment = _FRAGMENT.fullmatch(checkpoint_id) if isinstance(checkpoint_id, str) else None
    if fragment is None:
        return Location(shown, os.fspath(checkpoint_id))
    step = fragment["step"]
    return Location(shown, fragment["url"], fragment["run"], None if step is None else int(step))


def is_location(checkpoint_id: CheckpointId) -> bool:
    """Return whether an id is a directory or has a scheme of a store of fwstore."""
    text = os.fspath(checkpoint_id)
    scheme = _SCHEME.match(text)
    return bool(text) and (scheme is None or scheme[1].lower() in _SCHEMES)


def _below(checkpoint_id: CheckpointId, repository: CheckpointId) -> Location:
    root, names = os.fspath(repository), os.fspath(checkpoint_id)
    if _SCHEME.match(root) is None:
        relative = Path(os.path.relpath(names, root)).parts
    else:
        prefix = root.rstrip("/") + "/"
        if not names.startswith(prefix):
            raise InvalidInput(f"{names} does not lie below the repository {root}")
        relative = tuple(part for part in names.removeprefix(prefix).split("/") if part)
    if not relative or ".." in relative:
        raise InvalidInput(f"{names} does not lie below the repository {root}")
    *parents, last = relative
    numbered = _NUMBERED.fullmatch(last)
    if numbered is None:
        return Location(_shown(checkpoint_id), root, "/".join(relative))
    # "step" alone says nothing; any other word keeps "model-100" apart from "optimizer-100".
    word = [] if numbered["name"] in ("", "step") else [numbered["name"]]
    run = "/".join([*parents, *word]) or RUN_NAME
    return Location(_shown(checkpoint_id), root, run, int(numbered["step"]))


def _shown(checkpoint_id: CheckpointId) -> str | Path:
    text = os.fspath(checkpoint_id)
    return text if _SCHEME.match(text) or not text else Path(text)
