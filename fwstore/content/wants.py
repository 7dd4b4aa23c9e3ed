"""What a load asks of packs: pure planning between the resharding plan and the requests.

Invariant: every want of a tensor is in exactly one request, and a chunk that several wants share is read
once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fwstore.base.config import Limits
from fwstore.base.errors import Corrupt
from fwstore.content.footers import Pack
from fwstore.format.blocks import BLOCK_BYTES, ID_PREFIX_BYTES, ChunkHeader, encode_chunk_header
from fwstore.format.footer import Chunks
from fwstore.format.paths import TensorPath, display_path
from fwstore.plan.box import Box
from fwstore.plan.coalesce import plan_coalesce
from fwstore.plan.reshard import ChunkRead


class HostWritable(Protocol):
    """Memory that numpy cannot address, such as a device's."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The raw dtype of its elements."""
        ...

    def copy_from_host(self, slices: tuple[slice, ...], source: npt.NDArray[Any], /) -> None:
        """Copy host memory over a part; returns when done."""
        ...


class Destination(Protocol):
    """A box of a tensor and the memory that receives it."""

    @property
    def box(self) -> Box:
        """Where it lies in the global shape."""
        ...

    @property
    def array(self) -> npt.NDArray[Any] | HostWritable:
        """Memory of the sizes of the box; a numpy array may have any strides."""
        ...


@dataclass(frozen=True, slots=True)
class TensorRead:
    """The reads of one tensor.

    Attributes:
        path: Names the tensor in errors.
        itemsize: Bytes of one element.
        reads: Which part of which chunk goes to which piece.
        pieces: The memory that receives them.
    """

    path: TensorPath
    itemsize: int
    reads: Iterable[ChunkRead]
    pieces: Sequence[Destination]


class Want(NamedTuple):
    """One part of a chunk that goes to one piece."""

    tensor: TensorRead
    read: ChunkRead

    @property
    def target(self) -> tuple[npt.NDArray[Any] | HostWritable, tuple[slice, ...]]:
        """The memory of the piece, and which part of it is wanted."""
        piece = self.tensor.pieces[self.read.piece]
        return piece.array, self.read.wanted.relative_to(piece.box).slices()


@dataclass(frozen=True, slots=True)
class WantedChunk:
    """A chunk to be read, and who wants parts of it.

    Attributes:
        pack: The pack that holds it.
        number: Its number there.
        offset: Where its stored bytes begin.
        codec: Number of its codec.
        raw_length: Bytes after decoding.
        stored_length: Bytes in the pack.
        digest: XXH3-128 of the stored bytes.
        id: Content hash of the decoded bytes.
        wants: The parts wanted of it.
    """

    pack: Pack
    number: int
    offset: int
    codec: int
    raw_length: int
    stored_length: int
    digest: bytes
    id: bytes
    wants: Sequence[Want]

    @property
    def start(self) -> int:
        """Where its header begins."""
        return self.offset - BLOCK_BYTES

    @property
    def header(self) -> bytes:
        """The header that stands before its stored bytes."""
        return encode_chunk_header(
            ChunkHeader(
                self.codec,
                self.raw_length,
                self.stored_length,
                self.digest,
                self.id[:ID_PREFIX_BYTES],
            )
        )

    def __str__(self) -> str:
        tensor, read = self.wants[0]
        ranges = ", ".join(f"{part.start}:{part.stop}" for part in read.stored.slices())
        where = f"tensor {display_path(tensor.path)}" + (f"[{ranges}]" if ranges else "")
        return f"{where}, which is chunk {self.number} of {self.pack.key},"


@dataclass(frozen=True, slots=True)
class Request:
    """One contiguous read of a pack.

    Attributes:
        offset: Where it begins.
        length: How long it is.
        chunks: The wanted chunks in it, by offset.
    """

    offset: int
    length: int
    chunks: Sequence[WantedChunk]

    @property
    def key(self) -> str:
        """The pack."""
        return self.chunks[0].pack.key

    @property
    def chunk_count(self) -> int:
        """How many chunks are wanted of it."""
        return len(self.chunks)

    @property
    def raw_bytes(self) -> int:
        """Raw bytes of those chunks."""
        return sum(chunk.raw_length for chunk in self.chunks)


Wants = Mapping[int, Sequence[Want]]


def group_wants(tensors: Iterable[TensorRead]) -> dict[int, dict[int, list[Want]]]:
    """Return the wants of all tensors by pack and chunk."""
    grouped: dict[int, dict[int, list[Want]]] = {}
    for tensor in tensors:
        for read in tensor.reads:
            chunks = grouped.setdefault(read.pack, {})
            chunks.setdefault(read.chunk, []).append(Want(tensor, read))
    return grouped


def plan_requests(pack: Pack, footer: Chunks, wants: Wants, limits: Limits) -> list[Request]:
    """Return the reads of one pack, by offset.

    Raises:
        Corrupt: A want does not fit the footer: the snapshot contradicts its pack.
    """
    chunks = _wanted_chunks(pack, footer, wants)
    requests = plan_coalesce(
        [(chunk.start, BLOCK_BYTES + chunk.stored_length) for chunk in chunks],
        gap_bytes=limits.read_gap_bytes,
        request_bytes=limits.read_request_bytes,
    )
    return [
        Request(request.offset, request.length, [chunks[index] for index in request.indices])
        for request in requests
    ]


def _wanted_chunks(pack: Pack, footer: Chunks, wants: Wants) -> list[WantedChunk]:
    numbers = sorted(wants)
    if numbers and not 0 <= numbers[0] <= numbers[-1] < len(footer):
        raise Corrupt(
            f"a snapshot refers to chunk {numbers[-1]} of {pack.key}, which has {len(footer)}"
        )
    rows = zip(
        numbers,
        footer.offsets[numbers].tolist(),
        footer.codecs[numbers].tolist(),
        footer.raw_lengths[numbers].tolist(),
        footer.stored_lengths[numbers].tolist(),
        strict=True,
    )
    chunks = []
    for number, offset, codec, raw_length, stored_length in rows:
        digest, chunk_id = footer.digests[number].tobytes(), footer.ids[number].tobytes()
        chunk = WantedChunk(
            pack, number, offset, codec, raw_length, stored_length, digest, chunk_id, wants[number]
        )
        _check_lengths(chunk)
        chunks.append(chunk)
    return chunks


def _check_lengths(chunk: WantedChunk) -> None:
    for tensor, read in chunk.wants:
        expected = math.prod(read.stored.sizes) * tensor.itemsize
        if chunk.raw_length != expected:
            raise Corrupt(
                f"a snapshot expects {expected} bytes of {chunk}; it has {chunk.raw_length}"
            )
