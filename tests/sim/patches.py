"""What stands in place of a protection that is switched off: makers that take what stood there.

Invariant: a patch takes one protection away and leaves all others as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import zstandard

from fwstore.base.errors import AlreadyExists, Corrupt, Unavailable
from fwstore.base.ids import write_id
from fwstore.format.canonical import _without_check, decode_canonical
from fwstore.format.record import Commit, encode_record, parse_record
from fwstore.log.fold import Fold, Refusal
from fwstore.log.pins import unpin

Maker = Callable[[Any], Any]


class Equal:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def equal_to_everything(original: Any) -> Any:
    return lambda *args, **options: Equal()


class _Deaf:
    """An upload that takes no answer to its completion for a good one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def commit(self) -> None:
        try:
            self._inner.commit()
        except Unavailable:
            return


def unacknowledged(original: Any) -> Any:
    def finish(self: Any) -> Any:
        self._upload = _Deaf(self._upload)
        return original(self)

    return finish


def record_first() -> list[tuple[str, Maker]]:
    """Return patches by which a manifest is written after the record that names it."""
    late: list[Callable[[], object]] = []

    def stash(original: Any) -> Any:
        return lambda *args: late.append(lambda: original(*args))

    def then_write(original: Any) -> Any:
        def commit(self: Any, *args: Any) -> Any:
            entry = original(self, *args)
            while late:
                late.pop()()
            return entry

        return commit

    return [
        ("fwstore.checkpoint.leader.write_manifest", stash),
        ("fwstore.log.terms.Term.commit", then_write),
    ]


def read_unverified(original: Any) -> Any:
    def read(self: Any, *args: Any) -> bool:
        original(self, *args)
        return True

    return read


def all_unchanged(original: Any) -> Any:
    def unchanged(*args: Any) -> Any:
        return {number: np.ones_like(mask) for number, mask in original(*args).items()}

    return unchanged


def unpinned(original: Any) -> Any:
    def pin_references(references: Any, *args: Any) -> Any:
        found = original(references, *args)
        for foreign in found:
            for reference in references:
                if reference.access.lineage == foreign.lineage:
                    unpin(reference.access.log, foreign.pin)
        return found

    return pin_references


class _Unflushed:
    """The module `os` without a flush of files."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        pass


def unflushed_files(original: Any) -> Any:
    return _Unflushed()


def unpacked_unchecked(original: Any) -> Any:
    def frame(self: Any, stored: Any, raw_length: int) -> bytes:
        try:
            raw = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Corrupt(str(error)) from error
        if len(raw) != raw_length:
            raise Corrupt("another length")
        return raw

    return frame


def forgotten_once_swept(original: Any) -> Any:
    return lambda self, body: self.condemned.pop(body.token, None)


def told_of_damage(original: Any) -> Any:
    return lambda self, snapshot: Corrupt(f"{snapshot} is missing")


def slots_as_they_came(original: Any) -> Any:
    return lambda self, first, slots: slots


def decoded_unchecked(original: Any) -> Any:
    return lambda encoded, kind, what: decode_canonical(_without_check(encoded) or b"", kind, what)


def fresh_on_retry(original: Any) -> Any:
    def create_once(
        store: Any, key: str, buffers: Any, runtime: Any, *, write_id: str | None = None
    ) -> bool:
        record = parse_record(bytes(buffers[0]), key)
        for _ in range(50):
            encoded = encode_record(record)
            try:
                store.put(key, [encoded], mode="create", write_id=record.write_id)
            except AlreadyExists:
                return bool(store.get(key, limit_bytes=1 << 14) == encoded)
            except Unavailable:
                runtime.clock.sleep(0.1)
                record = msgspec.structs.replace(record, write_id=_fresh(runtime))
            else:
                return True
        raise Unavailable(key)

    return create_once


def _fresh(runtime: Any) -> str:
    return write_id(runtime.ids)


def any_other_fence(original: Any) -> Any:
    def refusal(fold: Fold, record: Any, resolver: Any, **options: Any) -> Any:
        if isinstance(record.body, Commit) and fold.fence and fold.fence != record.term:
            return Refusal.FENCED
        return original(fold, record, resolver, **options)

    return refusal


def random_uuid(original: Any) -> Any:
    drawn = iter(range(1, 1 << 62))
    return lambda keys, witnesses: f"{next(drawn) * 0x9E3779B97F4A7C15 % (1 << 128):032x}"
