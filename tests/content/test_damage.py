"""Flip and cut bytes of a snapshot: the right bytes or an error that says where, never wrong bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fwstore.base.errors import Corrupt, NotFound, Unavailable, Unsupported
from fwstore.codec.registry import ZSTD_1
from fwstore.content.build import BuiltSnapshot
from fwstore.content.footers import FooterCache
from fwstore.content.verified import Origin
from fwstore.store.base import ReadInto
from fwstore.store.memory import MemoryStore
from support.faults import FaultyStore
from support.snapshots import Site, make_runtime, raw

ARRAYS: dict[Any, Any] = {
    ("model", "w"): np.random.default_rng(5).standard_normal((4, 3)).astype(np.float32),
    ("model", "z"): np.zeros((16, 20), np.uint8),
    ("step",): np.array(12),
}
CELLS: dict[Any, Any] = {("model", "w"): ((1, 2), (1, 3)), ("model", "z"): ((1, 8), (1, 20))}


def make_site(**limits: Any) -> tuple[Site, BuiltSnapshot]:
    runtime = make_runtime(**limits)
    site = Site(MemoryStore(runtime), runtime, codec=ZSTD_1)
    return site, site.save(ARRAYS, CELLS)


def replace(site: Site, key: str, content: bytes) -> None:
    site.store.put(key, [content], mode="overwrite")


def outcome(site: Site, built: BuiltSnapshot, origin: Origin | None = None) -> str:
    """Return "loaded" or the name of the error; wrong bytes fail the test."""
    try:
        loaded = site.load(built, origin)
    except (Corrupt, Unsupported) as error:
        return type(error).__name__
    for path, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[path], raw(array))
    return "loaded"


@pytest.mark.slow
def test_every_flipped_byte_of_every_object_is_harmless_or_found() -> None:
    site, built = make_site()
    for key in [found.key for found in site.store.list("")]:
        whole = site.store.get(key, limit_bytes=1 << 20)
        outcomes = []
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            replace(site, key, bytes(damaged))
            outcomes.append(outcome(site, built))
        replace(site, key, whole)
        assert "Unsupported" not in outcomes
        if not key.startswith("packs/"):
            assert set(outcomes) == {"Corrupt"}, key
        else:
            assert_pack_outcomes(site, built, key, outcomes)
    assert outcome(site, built) == "loaded"


def assert_pack_outcomes(
    site: Site, built: BuiltSnapshot, key: str, outcomes: Sequence[str]
) -> None:
    """Only the pack's header, its trailer and the padding may be damaged without notice."""
    pack = next(pack for pack in site.open(built).all_packs() if pack.key == key)
    footer = FooterCache(site.origin).get(pack)
    unread = set(range(64)) | set(range(len(outcomes) - 64, len(outcomes)))
    for offset, length in zip(footer.offsets.tolist(), footer.stored_lengths.tolist(), strict=True):
        unread |= set(range(offset + length, offset + -(-length // 64) * 64))
    assert unread == {n for n, result in enumerate(outcomes) if result == "loaded"}


@pytest.mark.slow
def test_every_truncation_of_a_pack_is_found() -> None:
    site, built = make_site()
    (pack,) = site.open(built).all_packs()
    whole = site.store.get(pack.key, limit_bytes=1 << 20)
    for length in range(0, len(whole) - 64, 3):
        replace(site, pack.key, whole[:length])
        assert outcome(site, built) == "Corrupt"


def damage_payload(site: Site, built: BuiltSnapshot) -> str:
    """Flip a byte in the stored bytes of the first chunk."""
    (pack,) = site.open(built).all_packs()
    whole = bytearray(site.store.get(pack.key, limit_bytes=1 << 20))
    whole[130] ^= 1
    replace(site, pack.key, bytes(whole))
    return pack.key


def test_the_error_names_tensor_chunk_pack_and_store() -> None:
    site, built = make_site()
    key = damage_payload(site, built)
    with pytest.raises(Corrupt) as caught:
        site.load(built)
    message = str(caught.value)
    assert "tensor step, which is chunk 0 of" in message
    assert key in message
    assert "memory://" in message


def test_another_store_is_read_where_the_first_is_damaged() -> None:
    site, built = make_site(read_request_bytes=200)
    copy = MemoryStore(site.runtime)
    for found in site.store.list(""):
        copy.put(found.key, [site.store.get(found.key, limit_bytes=1 << 20)], mode="create")
    origin = Origin(stores=(site.store, copy), runtime=site.runtime)
    damage_payload(site, built)
    assert outcome(site, built, origin) == "loaded"
    replace(site, built.root_object.key, b"rubbish")
    assert outcome(site, built, origin) == "loaded"
    site.store.delete([built.objects[0].key])
    assert outcome(site, built, origin) == "loaded"
    site.store.delete([pack.key for pack in site.open_at(built, origin).all_packs()])
    assert outcome(site, built, origin) == "loaded"


class BadAnswers(FaultyStore):
    """Damages what is read, a number of times."""

    times = 0

    def read_into(self, key: str, reads: Sequence[ReadInto]) -> None:
        super().read_into(key, reads)
        if self.times:
            self.times -= 1
            for read in reads:
                for buffer in read.buffers:
                    if buffer.nbytes > 0:
                        buffer[0] ^= 0xFF

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        found = super().get(key, limit_bytes=limit_bytes)
        if self.times:
            self.times -= 1
            return found[:-1] + bytes([found[-1] ^ 1])
        return found


def test_a_bad_answer_is_asked_for_once_more() -> None:
    site, built = make_site()
    store = BadAnswers(site.store)
    origin = Origin(stores=(store,), runtime=site.runtime)
    store.times = 1
    assert outcome(site, built, origin) == "loaded"
    store.times = 1
    manifest = site.open_at(built, origin)
    assert manifest.root == built.root
    store.times = 2
    with pytest.raises(Corrupt, match="root"):
        site.open_at(built, origin)


def test_a_store_that_does_not_answer_is_not_damage() -> None:
    site, built = make_site()
    store = FaultyStore(
        site.store, lambda operation: "fail" if operation.name == "read_into" else None
    )
    with pytest.raises(Unavailable):
        site.load(built, Origin(stores=(store,), runtime=site.runtime))


def test_what_is_gone_everywhere_is_not_found() -> None:
    site, built = make_site()
    site.store.delete([built.root_object.key])
    with pytest.raises(NotFound):
        site.load(built)
