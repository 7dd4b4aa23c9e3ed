"""Names of content: BLAKE3 tells what bytes are, XXH3-128 whether they changed or were damaged.

Invariant: an id of content is always BLAKE3, keyed where the repository has a key; XXH3 never names
content, since it can be forged. Both read the caller's buffer in place and release the GIL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash
from blake3 import blake3
from typing_extensions import Buffer

from fwstore.base.errors import InvalidInput

KEY_BYTES = 32
_KEY_ID_CONTEXT = "fwstore 1 hash key id"
_KEY_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ContentHash:
    """BLAKE3 as one repository computes it.

    Attributes:
        key: The 32 bytes that make ids meaningless to others, or None.
    """

    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.key is not None and len(self.key) != KEY_BYTES:
            raise InvalidInput(f"a hash key has {KEY_BYTES} bytes, not {len(self.key)}")

    @property
    def key_id(self) -> str | None:
        """What tells keys apart without giving one away; None without a key."""
        if self.key is None:
            return None
        return blake3(self.key, derive_key_context=_KEY_ID_CONTEXT).hexdigest(length=_KEY_ID_BYTES)

    def digest(self, *buffers: Buffer) -> bytes:
        """Return the 32 bytes of the BLAKE3 of some C-contiguous buffers, one after another."""
        hasher = blake3() if self.key is None else blake3(key=self.key)
        for buffer in buffers:
            hasher.update(buffer)
        return hasher.digest()


class Hashes(NamedTuple):
    """What names a chunk, and what tells whether it changed."""

    id: bytes
    digest: bytes


def xxh3_128(buffer: Buffer) -> bytes:
    """Return the 16 bytes of the XXH3-128 of a C-contiguous buffer."""
    return xxhash.xxh3_128_digest(buffer)


def hash_chunks(content_hash: ContentHash, chunks: Iterable[Buffer]) -> list[Hashes]:
    """Return the hashes of C-contiguous buffers, each hashed twice while it is in the cache."""
    return [Hashes(content_hash.digest(chunk), xxh3_128(chunk)) for chunk in chunks]
