"""One checkpoint, to be looked at and loaded.

Invariant: a checkpoint never changes; what it names is read when asked for, verified, and either right or an
error - `Expired` when retention took it away meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fwstore.base.errors import NotFound
from fwstore.checkpoint.access import Access
from fwstore.checkpoint.describe import (
    CheckpointDescription,
    ChunkTable,
    PackDescription,
    chunk_table,
    describe,
    pack_descriptions,
)
from fwstore.checkpoint.lazy import LazyTensor, TensorMapping
from fwstore.checkpoint.load import Selection, load_into, load_tree, read_boxes
from fwstore.checkpoint.reserved import annotation_path, rank_path, read_bytes
from fwstore.checkpoint.selection import Only, Rename
from fwstore.checkpoint.states import load_skeleton
from fwstore.content.manifest import Manifest, NoSuchTensor, open_manifest
from fwstore.format.paths import TensorPath
from fwstore.format.state import decode_state
from fwstore.format.summary import SnapshotEntry
from fwstore.plan.box import Box

T = TypeVar("T")


class Checkpoint:
    """One saved state of a run. Made by `Run.latest`, `run[step]` and others."""

    def __init__(
        self,
        access: Access,
        entry: SnapshotEntry,
        *,
        sites: tuple[str, ...] = (),
        elsewhere: bool = False,
    ) -> None:
        self._access = access
        self._entry = entry
        self._sites = sites
        self._elsewhere = elsewhere
        self._manifest: Manifest | None = None
        self._tensors: TensorMapping | None = None

    def __repr__(self) -> str:
        return f"Checkpoint({self.run!r}, step={self.step}, id={self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and (self.id, self.lineage) == (
            other.id,
            other.lineage,
        )

    def __hash__(self) -> int:
        return hash((self.id, self.lineage))

    @property
    def run(self) -> str:
        """Name of the run."""
        return self._access.keys.name

    @property
    def lineage(self) -> str:
        """Uuid of the run."""
        return self._access.lineage

    @property
    def step(self) -> int:
        """The step that was saved."""
        return self._entry.step

    @property
    def id(self) -> str:
        """The id of the snapshot, unique for ever."""
        return self._entry.id

    @property
    def term(self) -> int:
        """Term of the job that saved it."""
        return self._entry.term

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that had it whole when it was listed; empty where there is but one store."""
        return self._sites

    @property
    def elsewhere(self) -> bool:
        """Whether it was not complete at this site when it was listed; it loads from the sites that have it."""
        return self._elsewhere

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics given at the save."""
        return dict(self._entry.metrics)

    @property
    def parent(self) -> str | None:
        """Id of the checkpoint before it in the run's history."""
        return self._entry.parent

    @property
    def wall_time(self) -> float:
        """Seconds since the Unix epoch at the commit, by the writer's clock; for display."""
        return self._entry.wall_time

    @property
    def manifest(self) -> Manifest:
        """The verified manifest; internal to fwstore."""
        # No cached properties: until Python 3.12 all checkpoints would wait for the one that reads.
        if self._manifest is None:
            self._manifest = self.reading(
                lambda: open_manifest(
                    self._access.origin,
                    self._access.keys,
                    self.id,
                    bytes.fromhex(self._entry.root.digest),
                )
            )
        return self._manifest

    @property
    def access(self) -> Access:
        """What reads it; internal to fwstore."""
        return self._access

    @property
    def entry(self) -> SnapshotEntry:
        """What the log says of it; internal to fwstore."""
        return self._entry

    @property
    def position(self) -> Any:
        """The data position given at the save, or None."""
        stored = self.manifest.root.position
        return None if stored is None else decode_state(stored)

    @property
    def tensors(self) -> Mapping[TensorPath | str, LazyTensor]:
        """All tensors by path or by displayed name; reading a slice reads only the bytes it needs."""
        if self._tensors is None:
            self._tensors = TensorMapping(self)
        return self._tensors

    def load(
        self,
        into: Any = None,
        *,
        only: Only = None,
        rename: Rename = None,
        dtype: Any = None,
        strict: bool = True,
    ) -> Any:
        """Load the state, or fill an existing one.

        Args:
            into: Nested state whose tensors are filled in place on any world and mesh; None makes a new
                state with whole tensors.
            only: Globs over tensor names (``*`` within a segment, ``**`` across); others are not read.
            rename: From saved names to those of `into`; a function, or a mapping of leading segments.
            dtype: ``"cast"`` converts to the dtypes of `into`; a dtype name converts floating-point
                tensors of a new state. Either makes complex tensors complex ones only.
            strict: Missing and unexpected names raise, and so do globs that match nothing; False loads what
                fits.

        Returns:
            The new state; or `into`, with plain values replaced by the saved ones.

        Raises:
            InvalidInput: Names, shapes or dtypes do not fit; all of them are listed.
            Corrupt: Stored bytes are damaged; tensor, pack and store are named.
            Expired: Retention removed the checkpoint meanwhile.
        """
        selection = Selection(only=only, rename=rename, dtype=dtype, strict=strict)
        if into is None:
            return self.reading(lambda: load_tree(self.access, self.manifest, selection))
        return self.reading(lambda: load_into(self.access, self.manifest, into, selection))

    def state(self) -> Any:
        """Return the saved state with a placeholder in place of every tensor."""
        return self.reading(lambda: load_skeleton(self.access, self.manifest))

    def per_rank(self, rank: int, default: Any = None) -> Any:
        """Return the plain value that a rank gave as `per_rank`, or the default when it gave none."""
        return self._reserved_value(rank_path(rank), default)

    def annotation(self, name: str, default: bytes | None = None) -> bytes | None:
        """Return a named byte string of the snapshot, or the default."""
        try:
            return self.reading(
                lambda: read_bytes(self.access, self.manifest, annotation_path(name))
            )
        except NoSuchTensor:
            return default

    def read_into(
        self, wanted: Mapping[TensorPath, Sequence[tuple[Box, np.ndarray[Any, Any]]]]
    ) -> None:
        """Read boxes of many tensors at once into numpy arrays of raw element size, verified.

        Args:
            wanted: By tensor path, boxes of the global shape and the arrays that receive them.
        """
        self.reading(lambda: read_boxes(self.access, self.manifest, wanted))

    def describe(self) -> CheckpointDescription:
        """Return what the root says of the checkpoint."""
        return self.reading(lambda: describe(self.manifest, self._entry, self.run))

    def packs(self) -> tuple[PackDescription, ...]:
        """Return all packs it refers to; their order gives the pack numbers of `chunks`."""
        return self.reading(lambda: pack_descriptions(self.manifest))

    def chunks(self, path: TensorPath | str) -> ChunkTable:
        """Return where every chunk of a tensor lies, with its content hash."""
        info = self.tensors[path]
        return self.reading(lambda: chunk_table(self.access, self.manifest, info.path))

    def reading(self, read: Callable[[], T]) -> T:
        """Run a read; a missing object becomes `Expired` or `Corrupt` by what the log says; internal."""
        try:
            return read()
        except NotFound as error:
            if isinstance(error, NoSuchTensor):
                raise
            raise self._access.log.why_missing(self.id) from error

    def _reserved_value(self, path: TensorPath, default: Any) -> Any:
        try:
            stored = self.reading(lambda: read_bytes(self.access, self.manifest, path))
        except NoSuchTensor:
            return default
        return decode_state(stored)
