"""Import of foreign checkpoints as snapshots of a run.

Invariant: the snapshot becomes visible whole or not at all, and a run that the import itself began is
removed again when it fails. Memory does not grow with the size of the checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fwstore import AlreadyExists, DeviceArray, FwstoreError, Piece, Run, Shard, Unavailable
from fwstore_migrate.files import FileSource
from fwstore_migrate.states import ForeignState

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How a foreign checkpoint enters a run.

    Attributes:
        step: The step it becomes.
        under: A key to put the whole state under, such as "model"; None for none.
        append: Allow a run that exists. Whoever writes to it is fenced.
    """

    step: int = 0
    under: str | None = None
    append: bool = False


def import_checkpoint(
    run: Run, foreign: ForeignState, options: ImportOptions, advance: Advance | None = None
) -> None:
    """Store a foreign checkpoint as one snapshot of a run.

    Args:
        run: The run, which need not exist yet.
        foreign: What `open_foreign` returned.
        options: How it enters the run.
        advance: Told the bytes read, from any thread.

    Raises:
        AlreadyExists: The run exists and `append` is not set, or it has the step.
        FwstoreError: The checkpoint cannot be read or stored; nothing of it is visible.
    """
    exists = run.exists()
    _check_target(run, options, exists=exists)
    sources = _Sources(advance or (lambda _: None))
    state = sources.visit(foreign.state)
    writer = run.writer()
    try:
        with writer:
            handle = writer.save(
                options.step, state if options.under is None else {options.under: state}
            )
            try:
                handle.result()
            except BaseException:
                # The writer waits for what it has begun: it must fail soon, not read to the end.
                sources.stop()
                raise
    except BaseException:
        _undo(run, options.step, writer.term, exists=exists)
        raise


def _check_target(run: Run, options: ImportOptions, *, exists: bool) -> None:
    if exists and not options.append:
        found = "exists" if run.checkpoints() else "exists, though it has no checkpoint yet"
        raise AlreadyExists(
            f"run {run.name!r} {found}; choose another name, or --append to add a step to it, which "
            "stops a job that is writing to it"
        )
    if exists and any(found.step == options.step for found in run.checkpoints()):
        raise AlreadyExists(
            f"run {run.name!r} has step {options.step}; name another, as in {run.name}@STEP"
        )


def _undo(run: Run, step: int, term: int, *, exists: bool) -> None:
    """Take back what became visible although the import did not end well, and nothing else."""
    # The reason for the failure is being raised; that the store also refuses the clean-up adds nothing.
    with contextlib.suppress(FwstoreError):
        if any(entry.term > term for entry in run.log()):
            # A newer job owns the run; what this import had left became void with its term.
            return
        if not exists:
            run.delete("import failed")
        elif any(found.step == step for found in run.checkpoints()):
            run.remove(step)


class _Sources:
    """Rebuilds a state with sources that are counted and can be stopped; ties stay ties."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self.stopped = False
        self._made: dict[int, Shard] = {}

    def stop(self) -> None:
        """Let every read from now on fail."""
        self.stopped = True

    def visit(self, value: Any) -> Any:
        """Return a state whose shards read through this."""
        if isinstance(value, Shard):
            if id(value) not in self._made:
                pieces = tuple(self._piece(piece) for piece in value.pieces)
                self._made[id(value)] = replace(value, pieces=pieces)
            return self._made[id(value)]
        if isinstance(value, dict):
            return type(value)((key, self.visit(entry)) for key, entry in value.items())
        if type(value) in (list, tuple):
            return type(value)(self.visit(entry) for entry in value)
        return value

    def _piece(self, piece: Piece) -> Piece:
        if isinstance(piece.array, np.ndarray):
            return piece
        return Piece(piece.box, _Source(piece.array, self))


@dataclass(frozen=True, slots=True)
class _Source(FileSource):
    """A source that tells how many bytes were read from it."""

    source: DeviceArray
    sources: _Sources

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def copy_to_host(
        self, slices: tuple[slice, ...], target: NDArray[Any]
    ) -> Callable[[], object] | None:
        if self.sources.stopped:
            raise Unavailable("the import was interrupted")
        wait = self.source.copy_to_host(slices, target)
        self.sources.advance(target.nbytes)
        return wait
